// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// inBubble runs a test where time passes only when everybody waits. Its pools are closed and audited at the end.
func inBubble(t *testing.T, test func(t *testing.T, w *world, pools *Pools, known *registry.Registry)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		pools, known := w.newPools(t)
		test(t, w, pools, known)
		if err := pools.Close(t.Context(), 0); err != nil {
			t.Errorf("Close: %v", err)
		}
		w.audit(t)
	})
}

func spec(id registry.PoolID, replicas int) registry.Spec {
	return registry.Spec{
		ID: id, Replicas: replicas, Residency: registry.Pinned,
		Prepare: &enginev1.PrepareSpec{Engine: &enginev1.EngineSpec{Kind: "some"}},
		Restart: supervision.Policy{}.WithDefaults(), Health: supervision.Health{}.WithDefaults(),
	}
}

func ignoreLoad(LoadEvent) error { return nil }

func ignoreDrain(DrainProgress) error { return nil }

func mustPreload(t *testing.T, pools *Pools, s registry.Spec) *registry.Pool {
	t.Helper()
	pool, err := pools.Preload(t.Context(), s, "", ignoreLoad)
	if err != nil {
		t.Fatalf("Preload(%s): %v", s.ID, err)
	}
	return pool
}

func wantReason(t *testing.T, err error, want reason.Reason) {
	t.Helper()
	if got := reason.Of(err); got != want {
		t.Errorf("reason of %v is %s, want %s", err, got, want)
	}
}

func wantState(t *testing.T, known *registry.Registry, id registry.PoolID, want registry.State) {
	t.Helper()
	pool, ok := known.Get(id)
	if !ok || pool.State != want {
		t.Errorf("pool %s = %+v, want %s", id, pool, want)
	}
}

// wantNoPool fails if there is a pool a.
func wantNoPool(t *testing.T, known *registry.Registry) {
	t.Helper()
	if pool, ok := known.Get("a"); ok {
		t.Errorf("pool a is %s, want none", pool.State)
	}
}

func TestPreloadTellsItsPhasesAndEndsReady(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		var told []string
		pool, err := pools.Preload(t.Context(), spec("a", 2), "", func(event LoadEvent) error {
			if event.Progress != nil {
				told = append(told, "step "+event.Progress.GetStep().GetId()+" "+event.Progress.GetStep().GetState().String())
			} else {
				told = append(told, event.Phase.String())
			}
			return nil
		})
		if err != nil {
			t.Fatalf("Preload: %v", err)
		}
		want := []string{
			"PREPARING", "step engine STEP_STATE_RUNNING", "step engine STEP_STATE_DONE", "STARTING", "LOADING", "VERIFYING",
		}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
		if pool.State != registry.StateReady || len(pool.Replicas) != 2 || pool.Replicas[1].Endpoint != "http://a-1" {
			t.Errorf("pool is %+v, want READY with two replicas", pool)
		}
		w.audit(t, "a-0", "a-1")
	})
}

func TestEqualPreloadsAreOne(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		var callers sync.WaitGroup
		for range 5 {
			callers.Go(func() { mustPreload(t, pools, spec("a", 1)) })
		}
		callers.Wait()
		mustPreload(t, pools, spec("a", 1))
		if w.launches != 1 || w.prepares != 1 {
			t.Errorf("%d launches, %d prepares, want 1 of each", w.launches, w.prepares)
		}
	})
}

func TestOtherSpecIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *world, pools *Pools, _ *registry.Registry) {
		go func() { _, _ = pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad) }()
		synctest.Wait()
		_, err := pools.Preload(t.Context(), spec("a", 2), "", ignoreLoad)
		wantReason(t, err, reason.PoolBusy)
		mustPreload(t, pools, spec("a", 1))
		_, err = pools.Preload(t.Context(), spec("a", 2), "", ignoreLoad)
		wantReason(t, err, reason.PoolExists)
	})
}

func TestPreloadGoesOnWithoutItsCaller(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		ctx, leave := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer leave()
		if _, err := pools.Preload(ctx, spec("a", 1), "", ignoreLoad); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Preload = %v, want the caller's own end", err)
		}
		wantState(t, known, "a", registry.StateLoading)
		pass(5 * time.Second)
		wantState(t, known, "a", registry.StateReady)
		w.audit(t, "a-0")
	})
}

func TestPreloadOfPrepared(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *world, pools *Pools, known *registry.Registry) {
		_, err := pools.Preload(t.Context(), registry.Spec{ID: "a", PreparedID: "unknown", Replicas: 1}, "", ignoreLoad)
		wantReason(t, err, reason.PreparedNotFound)
		wantNoPool(t, known)
		mustPreload(t, pools, registry.Spec{ID: "a", PreparedID: "known", Replicas: 1})
	})
}

func TestFailedPrepareLeavesEverythingAsItWas(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		w.prepareErr = reason.New(reason.DigestMismatch, "other bytes")
		_, err := pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad)
		wantReason(t, err, reason.DigestMismatch)
		wantNoPool(t, known)

		w.prepareErr = nil
		mustPreload(t, pools, spec("b", 1))
		if _, err := pools.Drain(t.Context(), "b", DrainOptions{}, ignoreDrain); err != nil {
			t.Fatalf("Drain: %v", err)
		}
		w.prepareErr = reason.New(reason.DigestMismatch, "other bytes")
		_, err = pools.Preload(t.Context(), spec("b", 2), "", ignoreLoad)
		wantReason(t, err, reason.DigestMismatch)
		wantState(t, known, "b", registry.StateStopped)
		if pool, _ := known.Get("b"); pool.Spec.Replicas != 1 {
			t.Errorf("pool b has the spec of the failed load")
		}
	})
}

func TestFailedLaunchStopsTheOthersAndIsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		w.launchErr["a-1"] = reason.New(reason.WorkerStartFailed, "exit code 1")
		_, err := pools.Preload(t.Context(), spec("a", 3), "", ignoreLoad)
		wantReason(t, err, reason.WorkerStartFailed)
		w.audit(t)
		pool, _ := known.Get("a")
		if pool.State != registry.StateFailed || pool.Failure.Reason != reason.WorkerStartFailed || pool.Replicas[1].Exit.Code != 1 {
			t.Errorf("pool is %+v, want FAILED with the exit of replica 1", pool)
		}

		delete(w.launchErr, "a-1")
		pool = mustPreload(t, pools, spec("a", 2))
		if pool.Failure != nil || len(pool.Replicas) != 2 || pool.Replicas[1].Generation != 2 {
			t.Errorf("pool is %+v, want READY with second generations", pool)
		}
	})
}

func TestCancelLeavesNothing(t *testing.T) {
	for _, after := range []time.Duration{0, 500 * time.Millisecond, 1500 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
				caller := make(chan error, 1)
				go func() {
					_, err := pools.Preload(t.Context(), spec("a", 2), "", ignoreLoad)
					caller <- err
				}()
				synctest.Wait()
				pass(after)
				cancelled, err := pools.Cancel(t.Context(), "a")
				if err != nil || !cancelled {
					t.Errorf("Cancel = %t, %v, want true", cancelled, err)
				}
				w.audit(t)
				wantNoPool(t, known)
				wantReason(t, <-caller, reason.Cancelled)
				if w.deletedLog["a"] != 1 {
					t.Errorf("logs were deleted %d times, want once", w.deletedLog["a"])
				}
				_, err = pools.Cancel(t.Context(), "a")
				wantReason(t, err, reason.PoolNotFound)
			})
		})
	}
}

func TestCancelOfAReadyPoolChangesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, _ *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		if cancelled, err := pools.Cancel(t.Context(), "a"); cancelled || err != nil {
			t.Errorf("Cancel = %t, %v, want false", cancelled, err)
		}
		wantState(t, known, "a", registry.StateReady)
	})
}

// An engine that survives the undoing of its launch is not forgotten: its pool stays, says so, and can be drained later.
func TestEngineThatSurvivesItsLaunchIsKept(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		w.survives, w.stopErrs = true, 1
		go func() { _, _ = pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad) }()
		synctest.Wait()
		pass(1500 * time.Millisecond)
		cancelled, err := pools.Cancel(t.Context(), "a")
		wantReason(t, err, reason.StopFailed)
		if cancelled {
			t.Error("Cancel says that the load is undone")
		}
		wantState(t, known, "a", registry.StateFailed)
		w.audit(t, "a-0")
		wantReason(t, pools.Delete("a"), reason.PoolBusy)
		mustDrain(t, pools, DrainOptions{})
		wantState(t, known, "a", registry.StateStopped)
		w.audit(t)
	})
}

func TestRequestIDGetsTheFirstOutcome(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		w.prepareErr = reason.New(reason.DiskFull, "no space")
		call := func(id string, replicas int) error {
			_, err := pools.Preload(t.Context(), spec("a", replicas), id, ignoreLoad)
			return err
		}
		wantReason(t, call("one", 1), reason.DiskFull)
		w.prepareErr = nil
		wantReason(t, call("one", 1), reason.DiskFull)
		wantReason(t, call("one", 2), reason.InvalidParams)
		if err := call("two", 1); err != nil {
			t.Errorf("Preload with a new id: %v", err)
		}
		pass(requestMemory + time.Minute)
		if err := call("one", 1); err != nil {
			t.Errorf("Preload with a forgotten id: %v", err)
		}
		if w.prepares != 2 {
			t.Errorf("prepared %d times, want 2", w.prepares)
		}
	})
}

func TestExitIsSeenAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 2))
		w.engine(t, "a-0").crash()
		synctest.Wait()
		pool, _ := known.Get("a")
		if pool.State != registry.StateDegraded || pool.Failure.Reason != reason.EngineExited || !strings.Contains(pool.Failure.Message, "SIGSEGV") {
			t.Errorf("pool is %+v, want DEGRADED by SIGSEGV", pool)
		}
		if r := pool.Replicas[0]; r.State != registry.ReplicaBackoff || r.Endpoint != "" || r.Exit == nil || r.Supervision.NextAttempt.IsZero() {
			t.Errorf("replica 0 is %+v, want BACKOFF without endpoint", r)
		}
		if r := pool.Replicas[1]; r.State != registry.ReplicaReady {
			t.Errorf("replica 1 is %s, want READY", r.State)
		}
		_, err := pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad)
		wantReason(t, err, reason.PoolExists) // Replica 1 still serves.
		pool = mustPreload(t, pools, spec("a", 2))
		if pool.State != registry.StateReady || pool.Replicas[0].Generation != 2 || pool.Replicas[1].Generation != 1 {
			t.Errorf("pool is %+v, want READY with only replica 0 started anew", pool)
		}
	})
}

func TestDelete(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		wantReason(t, pools.Delete("a"), reason.PoolNotFound)
		mustPreload(t, pools, spec("a", 1))
		wantReason(t, pools.Delete("a"), reason.PoolBusy)
		if _, err := pools.Drain(t.Context(), "a", DrainOptions{}, ignoreDrain); err != nil {
			t.Fatalf("Drain: %v", err)
		}
		if err := pools.Delete("a"); err != nil {
			t.Errorf("Delete: %v", err)
		}
		wantNoPool(t, known)
		if w.deletedLog["a"] != 1 {
			t.Errorf("logs were deleted %d times, want once", w.deletedLog["a"])
		}
	})
}

func TestCloseEndsEverything(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		for i := range 20 {
			mustPreload(t, pools, spec(registry.PoolID(fmt.Sprint("p", i)), 2))
		}
		loading := make(chan error, 1)
		go func() {
			_, err := pools.Preload(t.Context(), spec("late", 1), "", ignoreLoad)
			loading <- err
		}()
		synctest.Wait()
		if err := pools.Close(t.Context(), time.Minute); err != nil {
			t.Errorf("Close: %v", err)
		}
		w.audit(t)
		wantReason(t, <-loading, reason.ShuttingDown)
		_, err := pools.Preload(t.Context(), spec("later", 1), "", ignoreLoad)
		wantReason(t, err, reason.ShuttingDown)
		for _, pool := range known.List() {
			if pool.State != registry.StateStopped {
				t.Errorf("pool %s is %s, want STOPPED", pool.Spec.ID, pool.State)
			}
		}
	})
}

// Random commands from many callers, with engines that crash, end with a registry that tells the truth and no engine
// that nobody knows. The seed of a failure repeats it.
func TestRandomCommands(t *testing.T) {
	t.Parallel()
	for seed := range uint64(30) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
				var callers sync.WaitGroup
				for caller := range uint64(6) {
					random := rand.New(rand.NewPCG(seed, caller))
					callers.Go(func() {
						for range 40 {
							randomCommand(t, random, w, pools)
							pass(time.Duration(random.IntN(1500)) * time.Millisecond)
						}
					})
				}
				callers.Wait()
				pass(time.Minute) // Whatever goes on without its caller ends.
				for _, pool := range known.List() {
					for _, r := range pool.Replicas {
						w.mu.Lock()
						_, runs := w.running[r.ID]
						w.mu.Unlock()
						if ready := r.State == registry.ReplicaReady; ready != runs && r.State != registry.ReplicaStarting {
							t.Errorf("replica %s of %s pool is %s, runs: %t", r.ID, pool.State, r.State, runs)
						}
					}
					if pool.State == registry.StateLoading || pool.State == registry.StateDraining {
						t.Errorf("pool %s is stuck in %s", pool.Spec.ID, pool.State)
					}
				}
			})
		})
	}
}

func randomCommand(t *testing.T, random *rand.Rand, w *world, pools *Pools) {
	id := registry.PoolID(fmt.Sprint("p", random.IntN(3)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+random.IntN(4000))*time.Millisecond)
	defer cancel()
	switch random.IntN(6) {
	case 0, 1:
		_, _ = pools.Preload(ctx, spec(id, 1+random.IntN(2)), "", ignoreLoad)
	case 2:
		_, _ = pools.Drain(ctx, id, DrainOptions{Deadline: time.Second, GiveUp: random.IntN(2) == 0}, ignoreDrain)
	case 3:
		_, _ = pools.Cancel(ctx, id)
	case 4:
		_ = pools.Delete(id)
	case 5:
		w.mu.Lock()
		e := w.running[id.Replica(0)]
		w.mu.Unlock()
		if e != nil && e.ready.Load() && random.IntN(2) == 0 {
			e.crash()
		} else if e != nil {
			e.set(random.IntN(2), random.IntN(4) == 0)
		}
	}
}
