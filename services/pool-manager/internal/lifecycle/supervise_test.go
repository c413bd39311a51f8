// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// firstReplica is what is known of replica 0 of pool a.
func firstReplica(t *testing.T, known *registry.Registry) registry.Replica {
	t.Helper()
	pool, ok := known.Get("a")
	if !ok {
		t.Fatal("there is no pool a")
	}
	return pool.Replicas[0]
}

func TestEngineThatServedLongStartsAgainAtOnce(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		pass(time.Hour)
		w.engine(t, "a-0").crash()
		synctest.Wait()
		if r := firstReplica(t, known); r.State != registry.ReplicaStarting || r.Generation != 2 {
			t.Errorf("replica is %+v, want generation 2 STARTING", r)
		}
		wantState(t, known, "a", registry.StateRecovering)
		pass(2 * time.Second)
		wantState(t, known, "a", registry.StateReady)
		if r := firstReplica(t, known); r.Supervision.Restarts != 1 || r.Exit.Signal != "SIGSEGV" {
			t.Errorf("replica is %+v, want one restart and the last exit", r)
		}
	})
}

func TestCrashLoopOpensTheBreaker(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		w.mu.Lock()
		w.launchErr["a-0"] = reason.New(reason.WorkerStartFailed, "exit code 1")
		w.mu.Unlock()
		w.engine(t, "a-0").crash()
		pass(time.Minute)
		r := firstReplica(t, known)
		if r.State != registry.ReplicaBackoff || r.Supervision.Breaker != supervision.Open || r.Supervision.FailedStarts != 5 {
			t.Errorf("replica is %+v, want an open breaker after 5 starts", r)
		}
		pool, _ := known.Get("a")
		if pool.State != registry.StateRecovering || pool.Failure.Reason != reason.BreakerOpen {
			t.Errorf("pool is %+v, want RECOVERING with an open breaker", pool)
		}
		launches := w.launched()
		pass(4 * time.Minute)
		if w.launched() != launches {
			t.Errorf("%d starts with an open breaker", w.launched()-launches)
		}
		pass(2 * time.Minute) // The one trial fails, and the time doubles.
		if w.launched() != launches+1 {
			t.Errorf("%d trials, want 1", w.launched()-launches)
		}
		w.mu.Lock()
		delete(w.launchErr, "a-0")
		w.mu.Unlock()
		if n, err := pools.ResetBreaker("a"); n != 1 || err != nil {
			t.Errorf("ResetBreaker = %d, %v, want 1", n, err)
		}
		pass(2 * time.Second)
		wantState(t, known, "a", registry.StateReady)
		if r := firstReplica(t, known); r.Supervision.Breaker != supervision.Closed {
			t.Errorf("breaker is %s after a reset", r.Supervision.Breaker)
		}
	})
}

func TestPreloadStartsWhatWaits(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		w.mu.Lock()
		w.launchErr["a-0"] = reason.New(reason.WorkerStartFailed, "exit code 1")
		w.mu.Unlock()
		w.engine(t, "a-0").crash()
		pass(20 * time.Second)
		_, err := pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad)
		wantReason(t, err, reason.WorkerStartFailed)
		wantState(t, known, "a", registry.StateRecovering) // It stays owned.
		w.mu.Lock()
		delete(w.launchErr, "a-0")
		w.mu.Unlock()
		mustPreload(t, pools, spec("a", 1))
		wantState(t, known, "a", registry.StateReady)
	})
}

func TestHungEngineIsEndedAndStartedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		e := w.engine(t, "a-0")
		e.set(1, false) // A request, and nothing moves.
		pass(2 * time.Minute)
		if r := firstReplica(t, known); r.Generation < 2 || r.Exit == nil || r.Exit.Class.String() != "EXIT_CLASS_HUNG" {
			t.Errorf("replica is %+v, want the hung engine replaced", r)
		}
	})
}

func TestBusyEngineThatMovesIsLeftAlone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		e := w.engine(t, "a-0")
		for range 600 {
			e.mu.Lock()
			e.requests = 1
			e.counters++
			e.mu.Unlock()
			pass(30 * time.Second)
		}
		if r := firstReplica(t, known); r.Generation != 1 || r.State != registry.ReplicaReady {
			t.Errorf("replica is %+v, want it left alone", r)
		}
	})
}

func TestIdlePoolIsUnloaded(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		s := spec("a", 1)
		s.Residency, s.IdleTimeout = registry.TTL, 10*time.Minute
		mustPreload(t, pools, s)
		e := w.engine(t, "a-0")
		for range 30 { // Requests, whatever they do, keep it.
			e.set(1, false)
			e.mu.Lock()
			e.counters++
			e.mu.Unlock()
			pass(10 * time.Second)
			e.set(0, false)
			pass(50 * time.Second)
		}
		wantState(t, known, "a", registry.StateReady)
		pass(12 * time.Minute)
		wantState(t, known, "a", registry.StateStopped)
		if pool, _ := known.Get("a"); pool.Wanted {
			t.Error("an unloaded pool is wanted")
		}
		w.audit(t)
		mustPreload(t, pools, s)
	})
}

// restart makes pools anew, as another manager would find them.
func restart(t *testing.T, w *world, pools *Pools, found launch.Found) (*Pools, *registry.Registry) {
	t.Helper()
	if err := pools.Leave(t.Context()); err != nil {
		t.Fatalf("Leave: %v", err)
	}
	w.found = found
	again, known := w.newPools(t)
	if err := again.Restore(t.Context()); err != nil {
		t.Fatalf("Restore: %v", err)
	}
	return again, known
}

func TestRestoreTakesOver(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 2))
		launches := w.launched()
		again, known := restart(t, w, pools, launch.Found{Engines: []launch.Leftover{
			{Pool: "a", Index: 0, Generation: 1, Edition: 1, SameBoot: true, ReadyAt: time.Now()},
			{Pool: "a", Index: 1, Generation: 1, Edition: 1, SameBoot: true, ReadyAt: time.Now()},
			{Pool: "a", Index: 0, Generation: 7, Edition: 2, SameBoot: true}, // Of a reload that was not finished.
			{Pool: "b", Index: 0, Generation: 1, Edition: 1, SameBoot: true}, // Of a load that was not finished.
		}})
		wantState(t, known, "a", registry.StateReady)
		if r := firstReplica(t, known); !r.Adopted || r.Generation != 1 {
			t.Errorf("replica is %+v, want generation 1 adopted", r)
		}
		if w.launched() != launches {
			t.Errorf("%d launches", w.launched()-launches)
		}
		synctest.Wait()
		if len(w.ended) != 2 {
			t.Errorf("ended %v, want what belongs to nobody", w.ended)
		}
		if _, err := again.Drain(t.Context(), "a", DrainOptions{}, ignoreDrain); err != nil {
			t.Errorf("Drain: %v", err)
		}
		if err := again.Close(t.Context(), 0); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

func TestRestoreStartsWhatIsGone(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		s := spec("lazy", 1)
		s.Residency = registry.Lazy
		mustPreload(t, pools, s)
		w.bootID = "another boot" // The machine was started anew.
		again, known := restart(t, w, pools, launch.Found{})
		w.mu.Lock()
		clear(w.running)
		w.mu.Unlock()
		pass(5 * time.Second)
		wantState(t, known, "a", registry.StateReady)
		wantState(t, known, "lazy", registry.StateStopped)
		if r := firstReplica(t, known); r.Generation != 2 {
			t.Errorf("generation is %d, want 2", r.Generation)
		}
		if err := again.Close(t.Context(), 0); err != nil {
			t.Errorf("Close: %v", err)
		}
		if record := w.records["a"]; !record.Wanted {
			t.Error("a manager that ends has forgotten that pool a is to serve")
		}
	})
}

func TestDrainedPoolStaysDrained(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		mustDrain(t, pools, DrainOptions{})
		again, known := restart(t, w, pools, launch.Found{})
		pass(5 * time.Second)
		wantState(t, known, "a", registry.StateStopped)
		w.audit(t)
		if err := again.Close(t.Context(), 0); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
}

func TestLoadCountsOnlyWhenItIsDurable(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		w.saveErr = reason.New(reason.DiskFull, "no space")
		_, err := pools.Preload(t.Context(), spec("a", 1), "", ignoreLoad)
		wantReason(t, err, reason.DiskFull)
		w.audit(t)
		w.saveErr = nil
		mustPreload(t, pools, spec("a", 1))
		wantState(t, known, "a", registry.StateReady)
		if !w.records["a"].Wanted {
			t.Error("the record does not say that the pool is to serve")
		}
	})
}

func ignoreReload(ReloadEvent) error { return nil }

func other(replicas int) registry.Spec {
	s := spec("a", replicas)
	s.Prepare = nil
	s.PreparedID = "known"
	return s
}

func TestReloadSwitchesInOneChange(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 2))
		old := w.engine(t, "a-0")
		old.set(1, false)
		go func() {
			pass(10 * time.Second)
			old.set(0, false)
		}()
		states := map[registry.State]bool{}
		watching, stop := context.WithCancel(t.Context())
		watched := make(chan struct{})
		go func() {
			defer close(watched)
			for watcher := known.Watch("", nil); ; {
				events, err := watcher.Next(watching)
				if err != nil {
					return
				}
				for _, event := range events {
					if event.Pool != nil {
						states[event.Pool.State] = true
					}
				}
			}
		}()
		result, err := pools.Reload(t.Context(), other(2), ReloadOptions{DrainDeadline: time.Minute}, ignoreReload)
		stop()
		<-watched
		if err != nil || result.Action != MakeBeforeBreak || result.RequestsCut != 0 || result.Duration < 9*time.Second {
			t.Errorf("Reload = %+v, %v", result, err)
		}
		if len(states) != 1 || !states[registry.StateReady] {
			t.Errorf("the pool was %v, want READY throughout", states)
		}
		pool, _ := known.Get("a")
		if pool.Edition != 2 || len(pool.Retiring) != 0 || pool.Replicas[0].Generation != 2 || pool.Prepared.GetPreparedId() != "known" {
			t.Errorf("pool is %+v, want edition 2", pool)
		}
		if w.records["a"].Edition != 2 {
			t.Errorf("the record has edition %d", w.records["a"].Edition)
		}
		mustDrain(t, pools, DrainOptions{})
		w.audit(t)
	})
}

func TestReloadThatFailsLeavesTheOld(t *testing.T) {
	for _, fault := range []string{"start", "proof", "disk", "cancel", "prepare"} {
		t.Run(fault, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
				mustPreload(t, pools, spec("a", 2))
				target := other(2)
				options := ReloadOptions{DrainDeadline: time.Minute}
				switch fault {
				case "start":
					w.launchErr["a-1"] = reason.New(reason.WorkerStartFailed, "exit code 1")
				case "proof":
					options.Proof.Prompt = "Hello"
					w.proofErr = reason.New(reason.ProofFailed, "wrong answer")
				case "disk":
					w.saveErr = reason.New(reason.DiskFull, "no space")
				case "prepare":
					target.PreparedID = "unknown"
				case "cancel":
					go func() {
						pass(500 * time.Millisecond)
						if cancelled, err := pools.CancelReload(t.Context(), "a"); !cancelled || err != nil {
							t.Errorf("CancelReload = %t, %v", cancelled, err)
						}
					}()
				}
				if _, err := pools.Reload(t.Context(), target, options, ignoreReload); err == nil {
					t.Error("Reload succeeded")
				}
				pool, _ := known.Get("a")
				if pool.State != registry.StateReady || pool.Edition != 1 || pool.Reload != nil || pool.Replicas[0].Generation != 1 {
					t.Errorf("pool is %+v, want the old one READY", pool)
				}
				w.audit(t, "a-0", "a-1")
				w.saveErr, w.proofErr = nil, nil
				delete(w.launchErr, "a-1")
				if _, err := pools.Reload(t.Context(), other(2), ReloadOptions{}, ignoreReload); err != nil {
					t.Errorf("Reload after that: %v", err)
				}
			})
		})
	}
}

func TestReloadWithOutageRollsBack(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		first := spec("a", 1)
		first.Port = 9000
		mustPreload(t, pools, first)
		target := other(1)
		target.Port = 9000
		_, err := pools.Reload(t.Context(), target, ReloadOptions{}, ignoreReload)
		wantReason(t, err, reason.OutageNotAccepted)

		w.proofErr = reason.New(reason.ProofFailed, "wrong answer")
		options := ReloadOptions{AcceptOutage: true, Proof: launch.Proof{Prompt: "Hello"}}
		_, err = pools.Reload(t.Context(), target, options, ignoreReload)
		wantReason(t, err, reason.ProofFailed)
		pool, _ := known.Get("a")
		if pool.State != registry.StateReady || pool.Edition != 1 || pool.Replicas[0].Generation != 3 {
			t.Errorf("pool is %+v, want the old one started again", pool)
		}
		w.proofErr = nil
		result, err := pools.Reload(t.Context(), target, options, ignoreReload)
		if err != nil || result.Outage == 0 || result.Action != BreakBeforeMake {
			t.Errorf("Reload = %+v, %v", result, err)
		}
		wantState(t, known, "a", registry.StateReady)
	})
}

func TestReloadOfWhatCanChangeLive(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		if result, err := pools.Reload(t.Context(), spec("a", 1), ReloadOptions{}, ignoreReload); err != nil || result.Action != ReloadNone {
			t.Errorf("Reload to the same = %+v, %v", result, err)
		}
		target := spec("a", 1)
		target.Labels = map[string]string{"team": "search"}
		target.Health.Interval = time.Second
		result, err := pools.Reload(t.Context(), target, ReloadOptions{}, ignoreReload)
		if err != nil || result.Action != ReloadLive || len(result.LiveFields) != 2 {
			t.Errorf("Reload = %+v, %v", result, err)
		}
		if w.launched() != 1 {
			t.Errorf("%d launches for a label", w.launched()-1)
		}
		if pool, _ := known.Get("a"); pool.Spec.Labels["team"] != "search" || pool.Reload != nil || pool.Edition != 1 {
			t.Errorf("pool is %+v, want the first edition with labels", pool)
		}

		w.saveErr = reason.New(reason.DiskFull, "no space")
		_, err = pools.Reload(t.Context(), spec("a", 1), ReloadOptions{}, ignoreReload)
		wantReason(t, err, reason.DiskFull)
		if pool, _ := known.Get("a"); pool.Spec.Labels["team"] != "search" || pool.Reload != nil || pool.State != registry.StateReady {
			t.Errorf("pool is %+v, want what is on disk", pool)
		}
	})
}

// Who has read the old endpoint just before the switch is answered there, though the old engine was idle.
func TestReplacedEngineServesOnForAMoment(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		old := w.engine(t, "a-0")
		var switched time.Time
		_, err := pools.Reload(t.Context(), other(1), ReloadOptions{DrainDeadline: time.Minute}, func(event ReloadEvent) error {
			if event.Phase == registry.ReloadDrainingOld {
				switched = time.Now()
				pass(999 * time.Millisecond)
				w.mu.Lock()
				defer w.mu.Unlock()
				if w.running[old.key] != old {
					t.Error("the old engine has ended with the switch")
				}
			}
			return nil
		})
		if err != nil || switched.IsZero() {
			t.Fatalf("Reload = %v, switched at %v", err, switched)
		}
		w.audit(t, old.key+"#2")
	})
}

// What could not be stopped for a reload keeps its place until it is gone; then an engine of what the pool is gets it.
func TestPlaceOfAnEngineThatCouldNotBeStoppedIsFilled(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		first := spec("a", 1)
		first.Port = 9000
		mustPreload(t, pools, first)
		stuck := w.engine(t, "a-0")
		w.mu.Lock()
		w.stopErrs = 2 // That of the reload, and the first one after it.
		w.mu.Unlock()
		target := other(1)
		target.Port = 9000
		_, err := pools.Reload(t.Context(), target, ReloadOptions{AcceptOutage: true}, ignoreReload)
		wantReason(t, err, reason.StopFailed)
		if now := w.engine(t, "a-0"); now != stuck || w.launched() != 1 {
			t.Errorf("%d launches while the old engine lives", w.launched()-1)
		}
		pass(3 * stopAgain)
		if now := w.engine(t, "a-0"); now == stuck || w.launched() != 2 {
			t.Errorf("%d launches, want one more", w.launched())
		}
		wantState(t, known, "a", registry.StateReady)
		if pool, _ := known.Get("a"); pool.Edition != 1 {
			t.Errorf("pool is %+v, want what it was", pool)
		}
	})
}

func TestReloadScales(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		for _, replicas := range []int{3, 2} {
			if _, err := pools.Reload(t.Context(), spec("a", replicas), ReloadOptions{}, ignoreReload); err != nil {
				t.Fatalf("Reload to %d: %v", replicas, err)
			}
			pool, _ := known.Get("a")
			if pool.State != registry.StateReady || len(pool.Replicas) != replicas || pool.Replicas[0].Generation != 1 {
				t.Errorf("pool is %+v, want %d replicas, the first untouched", pool, replicas)
			}
		}
		if w.launched() != 3 {
			t.Errorf("%d launches, want 3", w.launched())
		}
		w.audit(t, "a-0", "a-1")
	})
}

func TestDrainUndoesAReload(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		mustPreload(t, pools, spec("a", 1))
		reloaded := make(chan error, 1)
		go func() {
			_, err := pools.Reload(t.Context(), other(1), ReloadOptions{}, ignoreReload)
			reloaded <- err
		}()
		pass(500 * time.Millisecond)
		mustDrain(t, pools, DrainOptions{})
		wantReason(t, <-reloaded, reason.Cancelled)
		wantState(t, known, "a", registry.StateStopped)
		w.audit(t)
	})
}

func TestDrainNode(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
		for _, id := range []registry.PoolID{"a", "b", "c"} {
			mustPreload(t, pools, spec(id, 1))
		}
		w.engine(t, "b-0").set(2, false)
		var told []registry.PoolID
		sum, err := pools.DrainNode(t.Context(), DrainOptions{Deadline: time.Second}, 2, func(one PoolDrained) error {
			told = append(told, one.Pool)
			return nil
		})
		if err != nil || sum.Pools != 3 || sum.RequestsCut != 2 || len(told) != 3 {
			t.Errorf("DrainNode = %+v, %v, told of %v", sum, err, told)
		}
		w.audit(t)
		stop := errors.New("the caller has gone")
		if _, err := pools.DrainNode(t.Context(), DrainOptions{}, 0, func(PoolDrained) error { return stop }); !errors.Is(err, stop) {
			t.Errorf("DrainNode = %v, want the caller's own end", err)
		}
	})
}

// A drain that somebody asks for while the manager ends is for good.
func TestDrainWhileTheManagerEndsStays(t *testing.T) {
	for _, after := range []time.Duration{time.Second, 20 * time.Second} {
		t.Run(after.String(), func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world, pools *Pools, _ *registry.Registry) {
				mustPreload(t, pools, spec("a", 1))
				w.engine(t, "a-0").set(1, false)
				closed := make(chan error, 1)
				go func() { closed <- pools.Close(t.Context(), 10*time.Second) }()
				pass(after)
				mustDrain(t, pools, DrainOptions{Deadline: time.Minute})
				if err := <-closed; err != nil {
					t.Errorf("Close: %v", err)
				}
				if w.records["a"].Wanted {
					t.Error("the record says that the pool is to serve")
				}
			})
		})
	}
}
