// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// world is a provisioner and a machine that behave: engines take time to start and to stop, have requests, end by
// themselves when told to, and are counted.
type world struct {
	prepareTime time.Duration
	launchTime  time.Duration
	stopTime    time.Duration
	prepareErr  error

	mu         sync.Mutex
	prepares   int
	launches   int
	launchErr  map[registry.ReplicaID]error // what becomes of a launch.
	survives   bool                         // a launch that fails leaves its engine.
	stopErrs   int                          // how many stops fail before one succeeds.
	running    map[registry.ReplicaID]*engine
	deletedLog map[registry.PoolID]int
}

func newWorld() *world {
	return &world{
		prepareTime: time.Second, launchTime: time.Second, stopTime: 100 * time.Millisecond,
		launchErr: map[registry.ReplicaID]error{}, running: map[registry.ReplicaID]*engine{}, deletedLog: map[registry.PoolID]int{},
	}
}

// newPools returns pools in this world, with their registry.
func (w *world) newPools(t *testing.T) (*Pools, *registry.Registry) {
	t.Helper()
	known, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	pools, err := New(Config{Registry: known, Preparer: w, Launch: w.launch, DeleteLogs: w.deleteLogs})
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

func (w *world) launch(ctx context.Context, request launch.Request, stage func(launch.Stage)) (Engine, error) {
	w.mu.Lock()
	w.launches++
	failure := w.launchErr[request.Replica]
	e := &engine{
		world: w, request: request, done: make(chan struct{}), offered: true,
		info: launch.Info{Endpoint: "http://" + string(request.Replica), PID: w.launches, Slots: 4, Started: time.Now()},
	}
	w.running[request.Replica] = e
	w.mu.Unlock()
	stage(launch.Stage{Phase: registry.PhaseLoading, PID: e.info.PID, Started: e.info.Started})
	err := wait(ctx, w.launchTime)
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

func (w *world) deleteLogs(id registry.PoolID) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.deletedLog[id]++
	return nil
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
	info    launch.Info
	done    chan struct{}
	crashed sync.Once
	ready   atomic.Bool

	mu       sync.Mutex
	requests int
	mute     bool
	offered  bool
}

func (e *engine) set(requests int, mute bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.requests, e.mute = requests, mute
}

func (e *engine) vanish() {
	e.world.mu.Lock()
	defer e.world.mu.Unlock()
	delete(e.world.running, e.request.Replica)
}

// crash ends the engine by itself. Crashing twice changes nothing.
func (e *engine) crash() { e.crashed.Do(func() { close(e.done) }) }

func (e *engine) Info() launch.Info { return e.info }

func (e *engine) Done() <-chan struct{} { return e.done }

func (e *engine) InFlight(ctx context.Context) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.done:
		return 0, errors.New("connection refused")
	default:
	}
	if e.mute {
		return 0, fmt.Errorf("no answer: %w", ctx.Err())
	}
	return e.requests, nil
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

func (e *engine) Stop(ctx context.Context) (launch.Stopped, error) {
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
	return launch.Stopped{Exit: registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_STOPPED}}, nil
}

func (e *engine) Bury(context.Context) (registry.Exit, error) {
	e.vanish()
	return registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Signal: "SIGSEGV", Uptime: time.Minute, LastLines: []string{"last words"}}, nil
}
