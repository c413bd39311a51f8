// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

const (
	// stopLimit is how long a stop may take beyond the waits of the engine's own stop protocol: KILL, and the proof.
	stopLimit = 2 * time.Minute
	// stopAgain is how often a stop that did not succeed is tried again.
	stopAgain = 30 * time.Second
)

// replica is one engine of a pool through all its starts: the actor that alone launches it, talks to its process, and decides
// with the pool's policy when it is started again.
type replica struct {
	pool     *pool
	index    int
	edition  uint64
	spec     registry.Spec
	prepared *enginev1.PreparedEngine
	// startedBy says why the first start is made.
	startedBy string
	// quiet starts make no handoff: a reload does that at its switch.
	quiet bool
	// leftover is a start of an earlier manager that is taken over in place of the first start; nil if there is none. before
	// are others, which are ended first.
	leftover *launch.Leftover
	before   []func(context.Context) error
	// turn is waited for before the first start, and giveTurn gives it; nil for none.
	turn     <-chan struct{}
	giveTurn func()
	// onStage is told of each phase of a start; nil for nobody.
	onStage func(registry.Phase)

	// life ends when the replica is to end; halt ends it.
	life context.Context //nolint:containedctx // The life of an actor, which outlives every caller.
	halt context.CancelCauseFunc
	// stops takes orders to stop the engine, or to leave it; gone is closed when nothing of it is left, or it was left.
	stops chan stopOrder
	gone  chan struct{}
	// poked takes the wish to start at once, woken the news that no drain keeps it from starting any more; a value is kept.
	poked, woken chan struct{}
	// tried is closed when the first start has an outcome, which tryErr is.
	tried  chan struct{}
	once   sync.Once
	tryErr error
	// madeProcess is whether any start has made a process; valid once tried is closed.
	madeProcess bool
	// stopped is how it was stopped, valid once gone is closed.
	stopped launch.Stopped

	// Guarded by the pool's lock: what is known of it; whether it is started again when it fails; its engine while it is
	// READY or DRAINING; when that had last something to do.
	view       registry.Replica
	supervised bool
	engine     Engine
	lastActive time.Time
}

// stopOrder asks the actor to stop its engine, or to leave it running.
type stopOrder struct {
	ending launch.Ending
	leave  bool
	failed chan error // gets an error if the engine could not be stopped; else gone is closed.
}

// newReplica returns a replica of the pool that is made of these; its caller puts it where it belongs, and runs it.
func (p *pool) newReplica(index int, m made, startedBy string) *replica {
	life, halt := context.WithCancelCause(p.pools.base)
	return &replica{
		pool: p, index: index, edition: m.edition, spec: m.spec, prepared: m.prepared, startedBy: startedBy,
		life: life, halt: halt,
		stops: make(chan stopOrder), gone: make(chan struct{}), poked: make(chan struct{}, 1), woken: make(chan struct{}, 1), tried: make(chan struct{}),
		view: registry.Replica{ID: p.id.Replica(index), Index: index, State: registry.ReplicaStarting},
	}
}

// hireLocked makes a replica part of the crew and runs it.
func (p *pool) hireLocked(r *replica) {
	if r.index < len(p.views) {
		r.view.Generation, r.view.Exit = p.views[r.index].Generation, p.views[r.index].Exit
		r.view.Supervision = p.tracks[r.index].Status()
		p.views[r.index] = r.view
	}
	p.crew[r.index] = r
	p.pools.work.Go(r.run)
}

// change changes what is known of the replica and tells everybody.
func (r *replica) change(change func(view *registry.Replica)) {
	r.pool.update(func() { r.changeLocked(change) })
}

func (r *replica) changeLocked(change func(view *registry.Replica)) {
	change(&r.view)
	if r.pool.crew[r.index] == r && r.index < len(r.pool.views) {
		r.pool.views[r.index] = r.view
	}
}

// run owns the engine, start after start, until nothing of it is left and it is not to be started again.
func (r *replica) run() {
	defer r.end()
	if !r.clearBefore() || !r.awaitTurn() {
		r.finish(nil)
		return
	}
	if r.leftover == nil && !r.rest(0) { // A drain may have begun meanwhile.
		return
	}
	for by := r.startedBy; ; by = "restart" {
		adopting := r.leftover != nil
		if !adopting && r.pool.pools.awaitAside(r.life, r.pool.id) != nil { // Two of a replica would share a device.
			r.finish(nil)
			return
		}
		engine, err := r.start(by)
		if errors.Is(err, launch.ErrLeave) {
			r.settle(err)
			return
		}
		var failure supervision.Failure
		var over bool
		switch {
		case adopting && engine == nil && isUnknown(err) && r.life.Err() == nil:
			if r.rest(0) {
				continue // Nobody saw how it ended, so it counts for nothing: the next start shows.
			}
			return
		case err == nil:
			failure, over = r.serve(engine)
		case engine != nil:
			over = r.endSurvivors(engine, err)
			failure = failureOf(err)
		default:
			failure = failureOf(err)
		}
		if over || !r.again(failure, err) {
			return
		}
	}
}

// isUnknown is whether a start has ended while no manager saw it.
func isUnknown(err error) bool {
	var failed *launch.Error
	return errors.As(err, &failed) && failed.Exit != nil && failed.Exit.Class == enginev1.ExitClass_EXIT_CLASS_UNKNOWN
}

// end makes known that nothing of it is left.
func (r *replica) end() {
	r.settle(errEnded)
	r.halt(errEnded)
	p := r.pool
	p.mu.Lock()
	if p.crew[r.index] == r {
		delete(p.crew, r.index)
	}
	if i := slices.Index(p.retiring, r); i >= 0 {
		p.retiring = slices.Delete(slices.Clone(p.retiring), i, i+1)
		p.publishLocked()
	}
	p.mu.Unlock()
	close(r.gone)
}

var errEnded = errors.New("the replica has ended")

// settle makes the outcome of the first start known.
func (r *replica) settle(err error) {
	r.once.Do(func() {
		r.tryErr = err
		close(r.tried)
	})
}

// clearBefore ends what an earlier manager has left in its place. It says whether to go on.
func (r *replica) clearBefore() bool {
	for _, end := range r.before {
		if !r.clear(end) {
			return false
		}
	}
	return r.life.Err() == nil
}

// clear ends one start, and tries again until that has succeeded or it is told to leave it; whoever wants the replica to stop
// meanwhile is told that it is left.
func (r *replica) clear(end func(context.Context) error) bool {
	attempt := func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, stopLimit)
		defer cancel()
		return end(ctx)
	}
	for {
		if r.life.Err() == nil {
			err := attempt(r.life)
			if err == nil {
				return true
			}
			r.pool.pools.log.Error("an engine of an earlier manager could not be ended", r.fields(zap.Error(err))...)
			r.pool.update(func() {
				r.pool.failure = r.pool.failed(err)
				r.changeLocked(func(view *registry.Replica) { view.State = registry.ReplicaStopping })
			})
		}
		select {
		case <-time.After(stopAgain):
			if r.life.Err() != nil && attempt(r.pool.pools.base) == nil { // Who has told it to end was told that it is left.
				return true
			}
		case order := <-r.stops:
			if order.leave {
				return false
			}
			if err := attempt(r.pool.pools.base); err != nil {
				order.failed <- err
				continue
			}
			return true
		}
	}
}

func (r *replica) awaitTurn() bool {
	if r.turn == nil {
		return true
	}
	select {
	case <-r.turn:
		return true
	case <-r.life.Done():
		return false
	}
}

// start makes one start, or takes one over, and returns its outcome as Machine.Launch does.
func (r *replica) start(by string) (Engine, error) {
	p := r.pool
	leftover := r.leftover
	r.leftover = nil
	request := launch.Request{
		Pool: p.id, Replica: p.id.Replica(r.index), Index: r.index, Prepared: r.prepared, Port: r.spec.Port,
		StartupTimeout: r.spec.StartupTimeout, LoadStallLimit: r.spec.Health.LoadStallLimit,
		Edition: r.edition, StartedBy: by, Quiet: r.quiet, MustOffer: by == "preload",
	}
	p.update(func() {
		if p.crew[r.index] == r { // What can change live may have changed since the last start.
			r.spec = p.spec
			request.StartupTimeout, request.LoadStallLimit = r.spec.StartupTimeout, r.spec.Health.LoadStallLimit
		}
		if leftover != nil {
			request.Generation = leftover.Generation
		} else {
			p.generations[r.index]++
			request.Generation = p.generations[r.index]
			r.trackLocked(p.tracks[r.index].Starting(p.pools.config.Now()))
		}
		request.ExpectedLoad = p.loadTimes[r.index]
		r.changeLocked(func(view *registry.Replica) {
			*view = registry.Replica{
				ID: view.ID, Index: view.Index, Generation: request.Generation, State: registry.ReplicaStarting,
				Exit: view.Exit, Supervision: p.tracks[r.index].Status(),
			}
		})
	})
	began := p.pools.config.Now()
	var engine Engine
	var err error
	if leftover != nil {
		engine, err = p.pools.config.Machine.Adopt(r.life, *leftover, request, r.stage)
		p.pools.config.Observer.Adopted(err == nil, p.pools.config.Now().Sub(began))
	} else {
		engine, err = p.pools.config.Machine.Launch(r.life, request, r.stage)
	}
	if err == nil {
		p.pools.config.Observer.EngineReady(by, p.pools.config.Now().Sub(began))
		return engine, nil
	}
	if errors.Is(err, launch.ErrLeave) {
		return nil, err
	}
	if failed := (*launch.Error)(nil); errors.As(err, &failed) {
		r.madeProcess = true
		if failed.Exit != nil {
			p.pools.config.Observer.EngineEnded(failed.Exit.Class, failed.Exit.Uptime)
		}
	}
	r.notReady(engine, err)
	return engine, err
}

// notReady makes known that a start has failed.
func (r *replica) notReady(engine Engine, err error) {
	var failed *launch.Error
	made := errors.As(err, &failed)
	r.change(func(view *registry.Replica) {
		switch {
		case engine != nil: // It was told to stop, and does not.
			view.State = registry.ReplicaStopping
		case r.life.Err() != nil: // It was told to stop.
			view.State = registry.ReplicaStopped
		case r.supervised: // Nobody is to take it for given up before that is decided.
			view.State = registry.ReplicaBackoff
		default:
			view.State = registry.ReplicaFailed
		}
		view.Loading, view.Endpoint = nil, ""
		if made && failed.Exit != nil {
			view.Exit = failed.Exit
		}
		if engine == nil {
			view.PID = 0
		}
	})
	r.settle(err)
	r.pool.pools.log.Info("replica did not get ready", r.fields(zap.Bool("process", made), zap.Error(err))...)
}

func (r *replica) stage(stage launch.Stage) {
	r.change(func(view *registry.Replica) {
		view.PID, view.Started, view.LogPath, view.Loading = stage.PID, stage.Started, stage.LogPath, stage.Loading
	})
	if r.onStage != nil {
		r.onStage(stage.Phase)
	}
}

// trackLocked remembers what supervision made of what has happened.
func (r *replica) trackLocked(track supervision.Track) {
	r.pool.tracks[r.index] = track
	status := track.Status()
	r.changeLocked(func(view *registry.Replica) { view.Supervision = status })
}

// failureOf is what supervision is told of a start that did not get ready.
func failureOf(err error) supervision.Failure {
	failure := supervision.Failure{Class: enginev1.ExitClass_EXIT_CLASS_ERROR}
	var failed *launch.Error
	if errors.As(err, &failed) && failed.Exit != nil {
		failure.Class = failed.Exit.Class
	}
	return failure
}

// again decides what comes after a failure, waits for it, and says whether another start is to be made. err is why the last
// one did not get ready; nil if it had.
func (r *replica) again(failure supervision.Failure, err error) bool {
	p := r.pool
	now := p.pools.config.Now()
	p.mu.Lock()
	if r.life.Err() != nil || !r.supervised {
		if r.view.State == registry.ReplicaBackoff { // It was to be started again a moment ago.
			r.changeLocked(func(view *registry.Replica) { view.State = registry.ReplicaStopped })
			p.publishLocked()
		}
		p.mu.Unlock()
		return false
	}
	select { // A wish of before the failure is not one to skip the wait.
	case <-r.poked:
	default:
	}
	track, decision := p.tracks[r.index].Failed(now, p.spec.Restart, failure, p.pools.config.Random())
	state := registry.ReplicaBackoff
	if decision.Verdict == supervision.GiveUp {
		state = registry.ReplicaFailed
	}
	r.trackLocked(track)
	r.changeLocked(func(view *registry.Replica) { view.State = state })
	switch {
	case decision.Verdict == supervision.BreakerOpened:
		p.failure = &registry.Failure{Reason: reason.BreakerOpen, Message: fmt.Sprintf("replica %s: %s", r.view.ID, decision.Cause), At: now}
	case err != nil:
		p.failure = p.failed(err)
	default:
		p.failure = p.exited(r.view)
	}
	p.saveLocked()
	p.publishLocked()
	p.mu.Unlock()

	failpoint.Hit(failpoint.RestartDecided)
	if decision.Verdict == supervision.BreakerOpened {
		p.pools.config.Observer.BreakerOpened()
	}
	p.pools.log.Warn("replica failed", r.fields(zap.Stringer("class", failure.Class), zap.Bool("was_ready", failure.WasReady),
		zap.Bool("gives_up", decision.Verdict == supervision.GiveUp), zap.Duration("delay", decision.Delay), zap.String("cause", decision.Cause))...)
	if decision.Verdict == supervision.GiveUp {
		return false
	}
	p.pools.config.Observer.Restart(decision.Delay)
	return r.rest(decision.Delay)
}

// rest waits until the replica is to be started again, which is never while its pool is drained. It says whether it is.
func (r *replica) rest(delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for due := delay == 0; ; {
		if due && !r.pool.isDraining() && r.life.Err() == nil {
			return true
		}
		select {
		case <-timer.C:
			due = true
		case <-r.poked:
			due = true
		case <-r.woken:
		case <-r.life.Done():
			r.finish(nil)
			return false
		}
	}
}

func (p *pool) isDraining() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.draining != nil
}

// poke has a replica that waits start at once. On one that does not wait it has no effect.
func (r *replica) poke() { leaveValue(r.poked) }

// wake has a replica start whose time to start has come while its pool was drained.
func (r *replica) wake() { leaveValue(r.woken) }

func leaveValue(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// finish makes known that the replica has been stopped.
func (r *replica) finish(exit *registry.Exit) {
	r.change(func(view *registry.Replica) {
		view.State, view.Endpoint, view.PID, view.Loading = registry.ReplicaStopped, "", 0, nil
		view.Supervision.NextAttempt = time.Time{}
		if exit != nil {
			view.Exit = exit
		}
	})
}

// shut stops the replica wherever it is and returns when nothing of it is left. It may be called by anybody.
func (r *replica) shut(ending launch.Ending, cause error) error {
	return r.order(stopOrder{ending: ending, failed: make(chan error, 1)}, cause)
}

// leave ends the replica and leaves its engine running, for the next manager.
func (r *replica) leave() {
	_ = r.order(stopOrder{leave: true, failed: make(chan error, 1)}, launch.ErrLeave)
}

func (r *replica) order(order stopOrder, cause error) error {
	r.halt(cause)
	select {
	case r.stops <- order:
	case <-r.gone:
		return nil
	}
	select {
	case err := <-order.failed:
		return err
	case <-r.gone:
		return nil
	}
}

// failed says why a pool has failed.
func (p *pool) failed(err error) *registry.Failure {
	return &registry.Failure{Reason: reason.Of(err), Message: err.Error(), At: p.pools.config.Now()}
}

// exited says why a pool has failed one of whose replicas has ended by itself.
func (p *pool) exited(view registry.Replica) *registry.Failure {
	message := fmt.Sprintf("replica %s ended by itself", view.ID)
	if view.Exit != nil {
		message += ": " + launch.Describe(*view.Exit)
	}
	return &registry.Failure{Reason: reason.EngineExited, Message: message, At: p.pools.config.Now()}
}

func (r *replica) fields(more ...zap.Field) []zap.Field {
	return append([]zap.Field{
		zap.String("pool_id", string(r.pool.id)),
		zap.String("replica_id", string(r.pool.id.Replica(r.index))),
		zap.Uint64("edition", r.edition),
	}, more...)
}
