// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// mustDrain drains pool a.
func mustDrain(t *testing.T, pools *Pools, options DrainOptions) DrainResult {
	t.Helper()
	result, err := pools.Drain(t.Context(), "a", options, ignoreDrain)
	if err != nil {
		t.Fatalf("Drain(%+v): %v", options, err)
	}
	return result
}

func TestDrainOfAnIdlePoolIsQuick(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 2))
		result := mustDrain(t, pools, DrainOptions{Deadline: time.Hour})
		if result.Forced || result.RequestsCut != 0 || result.Duration > time.Second || result.Pool.State != registry.StateStopped {
			t.Errorf("result is %+v, want an unforced stop within a second", result)
		}
		w.audit(t)
		if again := mustDrain(t, pools, DrainOptions{}); again.Duration != 0 {
			t.Errorf("a second drain took %s", again.Duration)
		}
	})
}

func TestDrainWaitsForRequests(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		e := w.engine(t, "a-0")
		e.set(3, false)
		go func() {
			pass(20 * time.Second)
			wantState(t, known, "a", registry.StateDraining)
			e.set(0, false)
		}()
		var told []DrainProgress
		result, err := pools.Drain(t.Context(), "a", DrainOptions{Deadline: time.Minute}, func(p DrainProgress) error {
			told = append(told, p)
			return nil
		})
		if err != nil || result.Forced || result.RequestsCut != 0 || result.Duration < 20*time.Second || result.Duration > 22*time.Second {
			t.Errorf("Drain = %+v, %v, want a stop soon after 20 s", result, err)
		}
		if e.offered {
			t.Error("the handoff was not withdrawn")
		}
		if len(told) < 15 || !told[2].Known || told[2].InFlight != 3 || told[len(told)-1].InFlight != 0 {
			t.Errorf("told %d times: %+v", len(told), told)
		}
	})
}

// One reading of zero is not enough: a request that was just accepted is not counted yet.
func TestDrainLooksTwice(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		e := w.engine(t, "a-0")
		go func() {
			pass(quiet / 2)
			e.set(1, false)
			pass(10 * time.Second)
			e.set(0, false)
		}()
		if result := mustDrain(t, pools, DrainOptions{Deadline: time.Minute}); result.Forced || result.Duration < 10*time.Second {
			t.Errorf("result is %+v, want the late request waited for", result)
		}
	})
}

func TestDrainForcesAtItsDeadline(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 2))
		w.engine(t, "a-0").set(2, false)
		w.engine(t, "a-1").set(1, false)
		result := mustDrain(t, pools, DrainOptions{Deadline: 5 * time.Second})
		if !result.Forced || result.RequestsCut != 3 || result.Duration < 5*time.Second || result.Duration > 6*time.Second {
			t.Errorf("result is %+v, want 3 requests cut after 5 s", result)
		}
		pool, _ := known.Get("a")
		if cut := pool.Replicas[0].Exit.RequestsCut; cut != 2 {
			t.Errorf("replica 0 says that %d requests were cut, want 2", cut)
		}
		w.audit(t)
	})
}

func TestDrainOfAnEngineThatDoesNotSay(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		w.engine(t, "a-0").set(0, true)
		result := mustDrain(t, pools, DrainOptions{Deadline: 5 * time.Second})
		if !result.Forced || result.Duration < 5*time.Second {
			t.Errorf("result is %+v, want it forced at the deadline", result)
		}
	})
}

func TestDrainWithoutDeadlineWaitsForNone(t *testing.T) {
	for _, requests := range []int{0, 2} {
		t.Run(fmt.Sprint("requests=", requests), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
				mustPreload(t, pools, spec("a", 1))
				w.engine(t, "a-0").set(requests, false)
				result := mustDrain(t, pools, DrainOptions{})
				if result.Forced != (requests > 0) || result.RequestsCut != requests || result.Duration > time.Second {
					t.Errorf("result is %+v, want %d requests cut at once", result, requests)
				}
			})
		})
	}
}

func TestDrainGivesUp(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 2))
		e := w.engine(t, "a-0")
		e.set(1, false)
		result := mustDrain(t, pools, DrainOptions{Deadline: 5 * time.Second, GiveUp: true})
		if !result.GaveUp || result.Forced || result.RequestsCut != 0 || !e.offered {
			t.Errorf("result is %+v, want it given up and offered again", result)
		}
		wantState(t, known, "a", registry.StateReady)
		w.audit(t, "a-0", "a-1")
	})
}

func TestDrainThatGivesUpKeepsACrashInMind(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 2))
		w.engine(t, "a-0").set(1, false)
		go func() {
			pass(time.Second)
			w.engine(t, "a-1").crash()
		}()
		mustDrain(t, pools, DrainOptions{Deadline: 5 * time.Second, GiveUp: true})
		wantState(t, known, "a", registry.StateDegraded)
		pass(2 * time.Second)
		wantState(t, known, "a", registry.StateReady)
		w.audit(t, "a-0", "a-1")
	})
}

func TestDrainOfAnEngineThatEndsMeanwhile(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		e := w.engine(t, "a-0")
		e.set(1, false)
		go func() {
			pass(time.Second)
			e.crash()
		}()
		result := mustDrain(t, pools, DrainOptions{Deadline: time.Hour})
		if result.Duration > 5*time.Second {
			t.Errorf("drain took %s after the engine had ended", result.Duration)
		}
		wantState(t, known, "a", registry.StateStopped)
	})
}

func TestDrainCancelsALoad(t *testing.T) {
	for _, after := range []time.Duration{0, 1500 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
				loading := make(chan error, 1)
				go func() {
					_, err := pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad)
					loading <- err
				}()
				synctest.Wait()
				pass(after)
				result := mustDrain(t, pools, DrainOptions{Deadline: time.Minute})
				if result.Forced || result.Pool.State != registry.StateStopped {
					t.Errorf("result is %+v, want an unforced stop", result)
				}
				for _, r := range result.Pool.Replicas {
					if r.State != registry.ReplicaStopped {
						t.Errorf("replica %s is %s, want STOPPED", r.ID, r.State)
					}
				}
				wantReason(t, <-loading, reason.Cancelled)
				w.audit(t)
			})
		})
	}
}

func TestSternerDrainCounts(t *testing.T) {
	tests := []struct {
		name          string
		first, second DrainOptions
		wantGaveUp    bool
		want          time.Duration
	}{
		{"earlier deadline", DrainOptions{Deadline: time.Hour}, DrainOptions{Deadline: 5 * time.Second}, false, 6 * time.Second},
		{"later deadline", DrainOptions{Deadline: 5 * time.Second}, DrainOptions{Deadline: time.Hour}, false, 5 * time.Second},
		{"force", DrainOptions{Deadline: 5 * time.Second, GiveUp: true}, DrainOptions{Deadline: time.Hour}, false, 5 * time.Second},
		{"give up", DrainOptions{Deadline: 5 * time.Second}, DrainOptions{Deadline: time.Hour, GiveUp: true}, false, 5 * time.Second},
		{"both give up", DrainOptions{Deadline: time.Hour, GiveUp: true}, DrainOptions{GiveUp: true}, true, time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
				mustPreload(t, pools, spec("a", 1))
				w.engine(t, "a-0").set(1, false)
				first := make(chan DrainResult, 1)
				go func() { first <- mustDrain(t, pools, tt.first) }()
				pass(time.Second)
				second := mustDrain(t, pools, tt.second)
				if got := <-first; got.Duration != second.Duration || got.GaveUp != second.GaveUp {
					t.Errorf("the callers were told %+v and %+v", got, second)
				}
				if second.GaveUp != tt.wantGaveUp || second.Duration < tt.want || second.Duration > tt.want+time.Second {
					t.Errorf("result is %+v, want gave up: %t after %s", second, tt.wantGaveUp, tt.want)
				}
			})
		})
	}
}

func TestDrainAttaches(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		w.engine(t, "a-0").set(1, false)
		first := make(chan DrainResult, 1)
		go func() { first <- mustDrain(t, pools, DrainOptions{Deadline: 5 * time.Second}) }()
		synctest.Wait()
		_, err := pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad)
		wantReason(t, err, reason.PoolDraining)
		second := mustDrain(t, pools, DrainOptions{Deadline: time.Hour})
		if got := <-first; got.Duration != second.Duration || second.Duration > 6*time.Second {
			t.Errorf("drains took %s and %s, want the first deadline for both", got.Duration, second.Duration)
		}
	})
}

func TestDrainGoesOnWithoutItsCaller(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		w.engine(t, "a-0").set(1, false)
		ctx, leave := context.WithTimeout(t.Context(), time.Second)
		defer leave()
		if _, err := pools.Drain(ctx, "a", DrainOptions{Deadline: 5 * time.Second}, ignoreDrain); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Drain = %v, want the caller's own end", err)
		}
		pass(time.Minute)
		wantState(t, known, "a", registry.StateStopped)
	})
}

func TestStopThatFailsMayBeRepeated(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		w.stopErrs = 1
		_, err := pools.Drain(t.Context(), "a", DrainOptions{}, ignoreDrain)
		wantReason(t, err, reason.StopFailed)
		wantState(t, known, "a", registry.StateFailed)
		w.audit(t, "a-0") // Still there, and still ours.
		wantReason(t, pools.Delete("a"), reason.PoolBusy)
		mustDrain(t, pools, DrainOptions{})
		wantState(t, known, "a", registry.StateStopped)
	})
}

func TestDrainOfAnUnknownPool(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *world, pools *Pools, _ *registry.Registry) {
		_, err := pools.Drain(t.Context(), "nobody", DrainOptions{}, ignoreDrain)
		wantReason(t, err, reason.PoolNotFound)
	})
}
