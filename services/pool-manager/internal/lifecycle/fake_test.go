// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// world is a provisioner and a machine that behave: engines take time to start and to stop, have requests, end by
// themselves when told to, and are counted.
type world struct {
	prepareTime time.Duration
	launchTime  time.Duration
	stopTime    time.Duration
	prepareErr  error
	bootID      string

	mu         sync.Mutex
	prepares   int
	launches   int
	launchErr  map[registry.ReplicaID]error // what becomes of a launch.
	survives   bool                         // a launch that fails leaves its engine.
	stopErrs   int                          // how many stops fail before one succeeds.
	running    map[registry.ReplicaID]*engine
	deletedLog map[registry.PoolID]int

	records  map[string]state.PoolRecord // what is on disk.
	saveErr  error                       // what becomes of saves.
	proofErr error                       // what becomes of proofs.
	saves    int
	found    launch.Found // what an earlier manager has left.
	left     map[registry.ReplicaID]*engine
	ended    []string // what of it was ended.
}

func newWorld() *world {
	return &world{
		bootID: "boot", prepareTime: time.Second, launchTime: time.Second, stopTime: 100 * time.Millisecond,
		launchErr: map[registry.ReplicaID]error{}, running: map[registry.ReplicaID]*engine{}, deletedLog: map[registry.PoolID]int{},
		records: map[string]state.PoolRecord{}, left: map[registry.ReplicaID]*engine{},
	}
}

// newPools returns pools in this world, with their registry.
func (w *world) newPools(t *testing.T) (*Pools, *registry.Registry) {
	t.Helper()
	known, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	pools, err := New(t.Context(), Config{
		Registry: known, Preparer: w, Machine: w, Records: w, BootID: w.bootID, Random: func() float64 { return 0.5 },
	})
	if err != nil {
		t.Fatal(err)
	}
	return pools, known
}

// pass lets time of the bubble pass.
func pass(d time.Duration) { <-time.After(d) }

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *world) Prepare(ctx context.Context, spec *enginev1.PrepareSpec, _ registry.PoolID, report func(*enginev1.Progress)) (*enginev1.PreparedEngine, error) {
	w.mu.Lock()
	w.prepares++
	w.mu.Unlock()
	report(&enginev1.Progress{Event: &enginev1.Progress_Step{Step: &enginev1.Step{Id: "engine", State: enginev1.StepState_STEP_STATE_RUNNING}}})
	if err := wait(ctx, w.prepareTime); err != nil {
		return nil, err
	}
	return &enginev1.PreparedEngine{PreparedId: "prepared", Spec: spec}, w.prepareErr
}

func (w *world) Prepared(_ context.Context, id string) (*enginev1.PreparedEngine, error) {
	if id != "known" {
		return nil, reason.New(reason.PreparedNotFound, "no such prepared engine")
	}
	return &enginev1.PreparedEngine{PreparedId: id}, nil
}

func (w *world) Launch(ctx context.Context, request launch.Request, stage func(launch.Stage)) (Engine, error) {
	w.mu.Lock()
	w.launches++
	failure := w.launchErr[request.Replica]
	e := &engine{
		world: w, request: request, done: make(chan struct{}), offered: true,
		info: launch.Info{Endpoint: "http://" + string(request.Replica), PID: w.launches, Slots: 4, Started: time.Now()},
	}
	e.key = request.Replica
	if w.running[e.key] != nil { // A reload has two at once.
		e.key += registry.ReplicaID(fmt.Sprintf("#%d", request.Generation))
	}
	w.running[e.key] = e
	w.mu.Unlock()
	stage(launch.Stage{Phase: registry.PhaseLoading, PID: e.info.PID, Started: e.info.Started})
	err := wait(ctx, w.launchTime)
	if errors.Is(err, launch.ErrLeave) {
		return nil, err
	}
	if err == nil {
		stage(launch.Stage{Phase: registry.PhaseVerifying, PID: e.info.PID, Started: e.info.Started})
		err = failure
	}
	if err != nil && w.survives {
		return e, &launch.Error{Err: reason.New(reason.StopFailed, "still alive: 17 (D)", reason.Cause(err))}
	}
	if err != nil {
		e.vanish()
		return nil, &launch.Error{Exit: &registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_ERROR, Code: 1}, Err: err}
	}
	e.info.Ready = time.Now()
	e.ready.Store(true)
	return e, nil
}

func (w *world) Adopt(ctx context.Context, leftover launch.Leftover, request launch.Request, stage func(launch.Stage)) (Engine, error) {
	w.mu.Lock()
	e := w.left[request.Replica]
	w.mu.Unlock()
	if e == nil || e.request.Generation != leftover.Generation {
		return nil, &launch.Error{
			Exit: &registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_UNKNOWN},
			Err:  reason.New(reason.WorkerStartFailed, "it is gone"),
		}
	}
	stage(launch.Stage{Phase: registry.PhaseVerifying, PID: e.info.PID, Started: e.info.Started})
	if err := wait(ctx, 10*time.Millisecond); err != nil {
		return nil, err
	}
	e.info.Adopted = true
	return e, nil
}

func (w *world) Leftovers(context.Context) (launch.Found, error) { return w.found, nil }

func (w *world) End(_ context.Context, leftover launch.Leftover, by string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = append(w.ended, fmt.Sprintf("%s-%d g%d by %s", leftover.Pool, leftover.Index, leftover.Generation, by))
	delete(w.running, leftover.Pool.Replica(leftover.Index))
	return nil
}

func (w *world) EndStray(_ context.Context, stray launch.Stray) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = append(w.ended, "stray "+string(stray.Replica))
	return nil
}

func (w *world) KeepOnly(map[registry.PoolID]bool) {}

func (w *world) SavePool(record state.PoolRecord) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saves++
	if w.saveErr != nil {
		return w.saveErr
	}
	w.records[record.PoolID] = record
	return nil
}

func (w *world) RemovePool(id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.records, id)
	return nil
}

func (w *world) LoadPools() (state.LoadedPools, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return state.LoadedPools{Pools: slices.Collect(maps.Values(w.records))}, nil
}

func (w *world) Starts(string) ([]state.StartRecord, error) { return nil, nil }

func (w *world) Generations(string) (map[int]uint64, error) { return nil, nil }

func (w *world) RemoveStarts(string) error { return nil }

func (w *world) DeleteLogs(id registry.PoolID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deletedLog[id]++
	return nil
}

// launched returns how many launches there were.
func (w *world) launched() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.launches
}

// engine returns the engine of a replica, which must run.
func (w *world) engine(t *testing.T, id registry.ReplicaID) *engine {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	e, ok := w.running[id]
	if !ok {
		t.Fatalf("replica %s has no engine", id)
	}
	return e
}

// audit fails unless exactly these replicas have an engine.
func (w *world) audit(t *testing.T, want ...registry.ReplicaID) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range want {
		if w.running[id] == nil {
			t.Errorf("replica %s has no engine", id)
		}
	}
	if len(w.running) != len(want) {
		t.Errorf("%d engines run, want %v", len(w.running), want)
	}
}

// engine is an engine of the world.
type engine struct {
	world   *world
	request launch.Request
	key     registry.ReplicaID
	info    launch.Info
	done    chan struct{}
	crashed sync.Once
	ready   atomic.Bool

	mu       sync.Mutex
	requests int
	counters float64
	mute     bool
	offered  bool
	released bool
}

func (e *engine) set(requests int, mute bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests, e.mute = requests, mute
}

func (e *engine) vanish() {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	delete(e.world.running, e.key)
}

// crash ends the engine by itself. Crashing twice changes nothing.
func (e *engine) crash() { e.crashed.Do(func() { close(e.done) }) }

func (e *engine) Info() launch.Info { return e.info }

func (e *engine) Done() <-chan struct{} { return e.done }

func (e *engine) Activity(ctx context.Context) (launch.Activity, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.done:
		return launch.Activity{}, errors.New("connection refused")
	default:
	}
	if e.mute {
		return launch.Activity{}, fmt.Errorf("no answer: %w", ctx.Err())
	}
	return launch.Activity{InFlight: e.requests, Counters: e.counters, HasCounters: true}, nil
}

func (e *engine) CPU() time.Duration { return time.Second }

func (e *engine) HasCanary() bool { return true }

func (e *engine) Canary(context.Context) error { return nil }

func (e *engine) Prove(context.Context, launch.Proof) error { return e.world.proofErr }

func (e *engine) Release() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.released = true
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	e.world.left[e.request.Replica] = e
}

func (e *engine) Withdraw() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.offered = false
	return nil
}

func (e *engine) Offer() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.offered = true
	return nil
}

func (e *engine) Stop(ctx context.Context, ending launch.Ending) (launch.Stopped, error) {
	if err := wait(ctx, e.world.stopTime); err != nil {
		return launch.Stopped{}, err
	}
	e.world.mu.Lock()
	fail := e.world.stopErrs > 0
	e.world.stopErrs--
	e.world.mu.Unlock()
	if fail {
		return launch.Stopped{}, reason.New(reason.StopFailed, "still alive: 17 (D)")
	}
	e.vanish()
	class := enginev1.ExitClass_EXIT_CLASS_STOPPED
	if ending.Hung {
		class = enginev1.ExitClass_EXIT_CLASS_HUNG
	}
	return launch.Stopped{Exit: registry.Exit{Class: class, RequestsCut: ending.RequestsCut, Ended: time.Now()}}, nil
}

func (e *engine) Bury(context.Context) (registry.Exit, error) {
	e.vanish()
	return registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Signal: "SIGSEGV", Uptime: time.Minute, Ended: time.Now(), LastLines: []string{"last words"}}, nil
}
