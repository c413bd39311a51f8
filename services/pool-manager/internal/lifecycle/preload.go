// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/progress"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// LoadEvent is what a caller of Preload is told on the way: a phase, or the provisioner's progress.
type LoadEvent struct {
	Phase    registry.Phase
	Progress *enginev1.Progress
}

// How outcomes of requests with an id are remembered, so that a repeated call is answered alike.
const (
	requestMemory = 10 * time.Minute
	maxRequests   = 4096
)

// preload is one load under way, or the memory of one.
type preload struct {
	spec registry.Spec
	// before is what the pool was, with what supervision remembered; known is false if it was not.
	before    made
	tracks    map[int]supervision.Track
	loadTimes map[int]time.Duration
	known     bool
	hub       *progress.Hub
	cancel    context.CancelCauseFunc

	// mu guards phases and changed.
	mu      sync.Mutex
	phases  []registry.Phase
	changed chan struct{}

	// done is closed when pool, err and ended are set.
	done  chan struct{}
	pool  *registry.Pool
	err   error
	ended time.Time
}

// phase is the one that began last.
func (l *preload) phase() registry.Phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.phases[len(l.phases)-1]
}

// enter tells callers that a phase began. Entering one again, or an earlier one, changes nothing.
func (l *preload) enter(phase registry.Phase) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.phases); n > 0 && l.phases[n-1] >= phase {
		return
	}
	l.phases = append(l.phases, phase)
	close(l.changed)
	l.changed = make(chan struct{})
}

// follow tells emit what happens until the load has ended, and returns its outcome. If emit fails or ctx ends it
// returns that; the load goes on.
func (l *preload) follow(ctx context.Context, emit func(LoadEvent) error) (*registry.Pool, error) {
	reader, told := l.hub.Reader(), 0
	phases := func() (<-chan struct{}, error) {
		l.mu.Lock()
		fresh, changed := slices.Clone(l.phases[told:]), l.changed
		l.mu.Unlock()
		for _, phase := range fresh {
			if err := emit(LoadEvent{Phase: phase}); err != nil {
				return nil, err
			}
		}
		told += len(fresh)
		return changed, nil
	}
	if _, err := phases(); err != nil {
		return nil, err
	}
	for {
		events, err := reader.Next(ctx)
		if errors.Is(err, io.EOF) {
			break // The provisioner has done its part.
		}
		if err != nil {
			return nil, err
		}
		for _, event := range events {
			if err := emit(LoadEvent{Progress: event}); err != nil {
				return nil, err
			}
		}
	}
	for {
		changed, err := phases()
		if err != nil {
			return nil, err
		}
		select {
		case <-changed:
		case <-l.done:
			if _, err := phases(); err != nil {
				return nil, err
			}
			return l.pool, l.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Preload makes a pool be what spec says and returns it READY. Equal calls attach to the load under way, and a pool
// that is READY with an equal spec is returned at once; one whose replicas wait to be started again starts them now. If ctx
// ends the call returns and the load goes on. A load that fails before an engine was started leaves everything as it was;
// one whose engine failed leaves the pool FAILED. A pool that was loaded is owned, by later managers too.
func (p *Pools) Preload(ctx context.Context, spec registry.Spec, requestID string, emit func(LoadEvent) error) (*registry.Pool, error) {
	load, recovering, ready, err := p.beginLoad(spec, requestID)
	switch {
	case err != nil || ready != nil:
		return ready, err
	case recovering != nil:
		return recovering.nudge(ctx)
	}
	return load.follow(ctx, emit)
}

// beginLoad finds or starts the load that answers a call, or finds a pool that recovers, or that there is nothing to do.
func (p *Pools) beginLoad(spec registry.Spec, requestID string) (load *preload, recovering *pool, ready *registry.Pool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return nil, nil, nil, cancelError(errClosing, spec.ID)
	}
	key := string(spec.ID) + "/" + requestID
	if requestID != "" {
		if load, err := p.requestLocked(key, requestID, spec); load != nil || err != nil {
			return load, nil, nil, err
		}
	}
	target, ok := p.pools[spec.ID]
	if !ok {
		target = newPool(spec.ID, p)
	}
	load, recovering, ready, err = target.beginLoad(spec)
	if load != nil {
		p.pools[spec.ID] = target
		if requestID != "" {
			p.requests[key] = load
		}
	}
	return load, recovering, ready, err
}

// requestLocked returns the load that a call with a known request id was for, or nil if the id is new and may be remembered.
func (p *Pools) requestLocked(key, requestID string, spec registry.Spec) (*preload, error) {
	p.forgetRequestsLocked()
	if load, ok := p.requests[key]; ok {
		if !equalSpecs(load.spec, spec) {
			return nil, reason.New(reason.InvalidParams, fmt.Sprintf("request %q was for another spec", requestID),
				reason.Field("request_id"), reason.Remedy("use a new request id for a new spec"))
		}
		return load, nil
	}
	if len(p.requests) >= maxRequests {
		return nil, reason.New(reason.LimitExceeded, fmt.Sprintf("%d request ids are remembered", maxRequests),
			reason.Field("request_id"), reason.Remedy("call without a request id, or later"), reason.RetryAfter(requestMemory))
	}
	return nil, nil
}

func (p *Pools) forgetRequestsLocked() {
	oldest := p.config.Now().Add(-requestMemory)
	for key, load := range p.requests {
		select {
		case <-load.done:
			if load.ended.Before(oldest) {
				delete(p.requests, key)
			}
		default:
		}
	}
}

func (p *pool) beginLoad(spec registry.Spec) (load *preload, recovering *pool, ready *registry.Pool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, nil, nil, p.busy("is being forgotten", "call again", 100*time.Millisecond)
	case p.draining != nil:
		return nil, nil, nil, p.beingDrained()
	case p.loading != nil && equalSpecs(p.loading.spec, spec):
		return p.loading, nil, nil, nil
	case p.loading != nil:
		return nil, nil, nil, p.busy("is being loaded with another spec", "wait for it, or cancel it", time.Second)
	case p.reloading != nil:
		return nil, nil, nil, p.busy("is being reloaded", "wait for it, or cancel it", time.Second)
	case p.aliveLocked() && !p.wanted:
		return nil, nil, nil, p.busy("has engines that could not be stopped", "drain it again", time.Second)
	case p.aliveLocked() && !equalSpecs(p.spec, spec):
		return nil, nil, nil, reason.New(reason.PoolExists, fmt.Sprintf("pool %s runs with another spec", p.id),
			reason.Field("spec"), reason.Meta("pool_id", string(p.id)), reason.Remedy("reload it, drain it first, or use another pool id"))
	case p.state == registry.StateReady:
		return nil, nil, p.snapshotLocked(), nil
	case p.aliveLocked():
		return nil, p, nil, nil
	}
	work, cancel := context.WithCancelCause(p.pools.base) // Going away is not cancelling.
	load = &preload{
		spec:      spec,
		before:    p.made,
		tracks:    p.tracks,
		loadTimes: p.loadTimes,
		known:     p.state != 0,
		hub:       progress.NewHub(progress.Config{Now: p.pools.config.Now}),
		cancel:    cancel,
		phases:    []registry.Phase{registry.PhasePreparing},
		changed:   make(chan struct{}),
		done:      make(chan struct{}),
	}
	p.loading = load
	p.made = made{spec: spec, edition: p.edition + 1, views: p.views}
	p.publishLocked()
	p.pools.work.Go(func() {
		defer cancel(nil)
		p.load(work, load)
	})
	return load, nil, nil, nil
}

func (p *pool) busy(how, remedy string, retry time.Duration) error {
	return reason.New(reason.PoolBusy, fmt.Sprintf("pool %s %s", p.id, how),
		reason.Meta("pool_id", string(p.id)), reason.Remedy(remedy), reason.RetryAfter(retry))
}

func (p *pool) beingDrained() error {
	return reason.New(reason.PoolDraining, fmt.Sprintf("pool %s is being drained", p.id),
		reason.Meta("pool_id", string(p.id)), reason.Remedy("call again when it is stopped"), reason.RetryAfter(time.Second))
}

func equalSpecs(a, b registry.Spec) bool {
	fresh, live := differences(a, b)
	return a.ID == b.ID && len(fresh) == 0 && len(live) == 0
}

// load runs one load from its begin to its end.
func (p *pool) load(ctx context.Context, load *preload) {
	began := p.pools.config.Now()
	processes, err := p.prepareAndStart(ctx, load)
	if err != nil && ctx.Err() != nil && reason.Of(err) != reason.StopFailed {
		err = cancelError(context.Cause(ctx), p.id)
	}
	load.hub.Close(progress.Outcome{State: enginev1.StepState_STEP_STATE_CANCELLED})

	load.pool = p.finishLoad(ctx, load, processes, err)
	load.err, load.ended = err, p.pools.config.Now()
	close(load.done)
	took := load.ended.Sub(began)
	p.pools.config.Observer.PreloadEnded(reason.Of(err), took)
	p.pools.log.Info("preload ended", zap.String("pool_id", string(p.id)), zap.Stringer("reason", reason.Of(err)),
		zap.Duration("duration", took))
}

// finishLoad publishes what a load has come to: the pool as its engines are; FAILED if it failed after a process had been
// made, unless our own disk was at fault, or if one is left that could not be stopped; STOPPED if it was drained; else as it was
// before.
func (p *pool) finishLoad(ctx context.Context, load *preload, processes bool, err error) *registry.Pool {
	saved := done(nil)
	p.mu.Lock()
	p.loading = nil
	switch {
	case err == nil:
		defer p.mu.Unlock()
		return p.publishLocked()
	case reason.Of(err) == reason.StopFailed || processes && ctx.Err() == nil && !isStorage(err):
		p.wanted, p.why, p.failure = false, "failed", p.failed(err)
		saved = p.commitLocked() // Whatever it was to be before, it is not any more.
		p.publishLocked()
	case errors.Is(context.Cause(ctx), errDrained):
		p.wanted, p.why, p.failure = false, "drain", nil
		saved = p.commitLocked()
		p.publishLocked()
	case load.known:
		p.made, p.tracks, p.loadTimes = load.before, load.tracks, load.loadTimes
		p.publishLocked()
	default:
		p.gone = true
	}
	gone := p.gone
	p.mu.Unlock()
	if err := <-saved; err != nil { // The keeper goes on trying.
		p.pools.log.Warn("what became of a load is not on disk yet", zap.String("pool_id", string(p.id)), zap.Error(err))
	}
	if gone {
		if err := p.pools.forget(p); err != nil {
			p.pools.log.Warn("logs of a load that left nothing were not deleted", zap.String("pool_id", string(p.id)), zap.Error(err))
		}
	}
	return nil
}

// isStorage is whether a load failed because of our own disk, which says nothing of the engine.
func isStorage(err error) bool {
	return reason.Of(err) == reason.DiskFull || reason.Of(err) == reason.StorageFailed
}

// prepareAndStart returns nil when every replica is READY, and it is durable that the pool is to serve. Otherwise no engine
// that it started is left; it says whether a process of any had been made.
func (p *pool) prepareAndStart(ctx context.Context, load *preload) (processes bool, err error) {
	prepared, err := p.pools.prepare(ctx, load.spec, load.hub.Publish)
	if err != nil {
		return false, err
	}
	load.hub.Close(progress.Outcome{})
	failpoint.Hit(failpoint.PreloadPrepared)
	if err := p.pools.awaitAside(ctx, p.id); err != nil {
		return false, err
	}
	if err := p.recallGenerations(); err != nil {
		return false, err
	}
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	load.enter(registry.PhaseStarting)
	replicas := p.addReplicas(load, prepared)
	bound := bind(ctx, replicas)
	err = awaitReady(replicas)
	if !bound() && err == nil {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = p.own(replicas)
	}
	if err != nil {
		err = undo(replicas, err)
	}
	return slices.ContainsFunc(replicas, func(r *replica) bool { return r.madeProcess }), err
}

// recallGenerations has a pool go on counting its starts where those are that are on record: also after a load that a crash has
// cut short, a start that nobody wrote into the record of the pool, or the loss of that record.
func (p *pool) recallGenerations() error {
	highest, err := p.pools.config.Records.Generations(string(p.id))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for index, generation := range highest {
		p.generations[index] = max(p.generations[index], generation)
	}
	return nil
}

// prepare gets an engine and a model ready to run, as the spec says.
func (p *Pools) prepare(ctx context.Context, spec registry.Spec, report func(*enginev1.Progress)) (*enginev1.PreparedEngine, error) {
	if spec.PreparedID != "" {
		return p.config.Preparer.Prepared(ctx, spec.PreparedID)
	}
	return p.config.Preparer.Prepare(ctx, spec.Prepare, spec.ID, report)
}

// addReplicas starts every replica of the spec.
func (p *pool) addReplicas(load *preload, prepared *enginev1.PreparedEngine) []*replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prepared = prepared
	p.tracks, p.loadTimes = make(map[int]supervision.Track), make(map[int]time.Duration)
	old := p.views
	p.views = make([]registry.Replica, load.spec.Replicas)
	copy(p.views, old)
	replicas := make([]*replica, load.spec.Replicas)
	for index := range replicas {
		r := p.newReplica(index, p.made, "preload")
		r.onStage = load.enter
		replicas[index] = r
		p.hireLocked(r)
	}
	p.publishLocked()
	return replicas
}

// bind has replicas end when ctx does, until the returned function is called, which says whether ctx had not ended by then.
func bind(ctx context.Context, replicas []*replica) func() bool {
	return context.AfterFunc(ctx, func() {
		for _, r := range replicas {
			r.halt(context.Cause(ctx))
		}
	})
}

// own makes it durable that the pool is to serve, and has its replicas started again from now on when they fail.
func (p *pool) own(replicas []*replica) error {
	failpoint.Hit(failpoint.PreloadReady)
	p.mu.Lock()
	for _, r := range replicas {
		if p.crew[r.index] != r || r.view.State != registry.ReplicaReady {
			failure := p.exited(r.view)
			p.mu.Unlock()
			return reason.New(reason.WorkerStartFailed, failure.Message, reason.Remedy("read the pool's logs; they end with the engine's own words"))
		}
	}
	p.wanted, p.why, p.failure = true, "", nil
	for _, r := range replicas {
		r.supervised = true
	}
	before := p.keeper.durable
	saved := p.commitLocked()
	p.mu.Unlock()
	err := <-saved
	failpoint.Hit(failpoint.PreloadCommitted)
	if err != nil {
		p.mu.Lock()
		p.wanted, p.keeper.durable = false, before
		p.saveLocked()
		p.mu.Unlock()
	}
	return err
}

// errSibling stops replicas of a load that failed because of another one.
var errSibling = errors.New("another replica did not get ready")

// awaitReady returns nil when all replicas have got READY. If one fails it has the others end too, and returns why; undo waits
// until they have.
func awaitReady(replicas []*replica) error {
	failed := make(chan error, len(replicas))
	for _, r := range replicas {
		go func() {
			<-r.tried
			failed <- r.tryErr
		}()
	}
	var first error
	for range replicas {
		err := <-failed
		if err != nil && first == nil {
			first = err
			for _, r := range replicas {
				r.halt(errSibling)
			}
		}
	}
	return first
}

// undo stops replicas and returns when none is left, with why they were to go, or with what could not be stopped.
func undo(replicas []*replica, cause error) error {
	if left := shutAll(replicas, "undo", nil, errSibling); left != nil {
		return errors.Join(left, cause) // That something is left matters more than why it was to go.
	}
	return cause
}

// Cancel cancels the load of a pool and returns when nothing of it is left. It says whether there was one to cancel.
func (p *Pools) Cancel(ctx context.Context, id registry.PoolID) (bool, error) {
	pool := p.pool(id)
	if pool == nil {
		return false, notFound(id)
	}
	pool.mu.Lock()
	load := pool.loading
	pool.mu.Unlock()
	if load == nil {
		return false, nil
	}
	load.cancel(errCancelled)
	select {
	case <-load.done:
		if reason.Of(load.err) == reason.StopFailed {
			return false, load.err
		}
		return reason.Of(load.err) == reason.Cancelled, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}
