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
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/progress"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
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
	// before is what the pool was; State is 0 if it was not.
	before registry.Pool
	hub    *progress.Hub
	cancel context.CancelCauseFunc

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
// that is READY with an equal spec is returned at once. If ctx ends the call returns and the load goes on. A load that
// fails before an engine was started leaves everything as it was; one whose engine failed leaves the pool FAILED.
func (p *Pools) Preload(ctx context.Context, spec registry.Spec, requestID string, emit func(LoadEvent) error) (*registry.Pool, error) {
	load, ready, err := p.beginLoad(ctx, spec, requestID)
	if err != nil || ready != nil {
		return ready, err
	}
	return load.follow(ctx, emit)
}

// beginLoad finds or starts the load that answers a call, or finds that there is nothing to do.
func (p *Pools) beginLoad(ctx context.Context, spec registry.Spec, requestID string) (*preload, *registry.Pool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return nil, nil, cancelError(errClosing, spec.ID)
	}
	key := string(spec.ID) + "/" + requestID
	if requestID != "" {
		p.forgetRequestsLocked()
		if load, ok := p.requests[key]; ok {
			if !equalSpecs(load.spec, spec) {
				return nil, nil, reason.New(reason.InvalidParams, fmt.Sprintf("request %q was for another spec", requestID),
					reason.Field("request_id"), reason.Remedy("use a new request id for a new spec"))
			}
			return load, nil, nil
		}
		if len(p.requests) >= maxRequests {
			return nil, nil, reason.New(reason.LimitExceeded, fmt.Sprintf("%d request ids are remembered", maxRequests),
				reason.Field("request_id"), reason.Remedy("call without a request id, or later"), reason.RetryAfter(requestMemory))
		}
	}
	target, ok := p.pools[spec.ID]
	if !ok {
		target = newPool(spec.ID, p)
	}
	load, ready, err := target.beginLoad(ctx, spec)
	if load != nil {
		p.pools[spec.ID] = target
		if requestID != "" {
			p.requests[key] = load
		}
	}
	return load, ready, err
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

func (p *pool) beginLoad(ctx context.Context, spec registry.Spec) (*preload, *registry.Pool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, nil, reason.New(reason.PoolBusy, fmt.Sprintf("pool %s is being forgotten", p.id),
			reason.Meta("pool_id", string(p.id)), reason.Remedy("call again"), reason.RetryAfter(100*time.Millisecond))
	case p.draining != nil:
		return nil, nil, reason.New(reason.PoolDraining, fmt.Sprintf("pool %s is being drained", p.id),
			reason.Meta("pool_id", string(p.id)), reason.Remedy("call again when it is stopped"), reason.RetryAfter(time.Second))
	case p.loading != nil && equalSpecs(p.loading.spec, spec):
		return p.loading, nil, nil
	case p.loading != nil:
		return nil, nil, reason.New(reason.PoolBusy, fmt.Sprintf("pool %s is being loaded with another spec", p.id),
			reason.Meta("pool_id", string(p.id)), reason.Remedy("wait for it, or cancel it"), reason.RetryAfter(time.Second))
	case len(p.alive) > 0 && !equalSpecs(p.snapshot.Spec, spec):
		return nil, nil, reason.New(reason.PoolExists, fmt.Sprintf("pool %s runs with another spec", p.id),
			reason.Field("spec"), reason.Meta("pool_id", string(p.id)), reason.Remedy("drain it first, or use another pool id"))
	case p.snapshot.State == registry.StateReady:
		return nil, p.putLocked(), nil
	}
	load := &preload{
		spec:    spec,
		before:  p.snapshot,
		hub:     progress.NewHub(progress.Config{Now: p.pools.config.Now}),
		phases:  []registry.Phase{registry.PhasePreparing},
		changed: make(chan struct{}),
		done:    make(chan struct{}),
	}
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx)) // Going away is not cancelling.
	load.cancel = cancel
	p.loading = load
	p.updateLocked(func(pool *registry.Pool) {
		pool.Spec, pool.State, pool.Phase, pool.Failure = spec, registry.StateLoading, registry.PhasePreparing, nil
	})
	p.pools.work.Go(func() {
		defer cancel(nil)
		p.load(work, load)
	})
	return load, nil, nil
}

// putLocked returns the snapshot as the registry knows it.
func (p *pool) putLocked() *registry.Pool {
	put, _ := p.pools.config.Registry.Get(p.id)
	return put
}

func equalSpecs(a, b registry.Spec) bool {
	return a.ID == b.ID && a.PreparedID == b.PreparedID && a.Replicas == b.Replicas && a.Port == b.Port &&
		a.StartupTimeout == b.StartupTimeout && proto.Equal(a.Prepare, b.Prepare)
}

// load runs one load from its begin to its end.
func (p *pool) load(ctx context.Context, load *preload) {
	began := p.pools.config.Now()
	made, err := p.prepareAndStart(ctx, load)
	if err != nil && ctx.Err() != nil && reason.Of(err) != reason.StopFailed {
		err = cancelError(context.Cause(ctx), p.id)
	}
	load.hub.Close(progress.Outcome{State: enginev1.StepState_STEP_STATE_CANCELLED})

	load.pool = p.finishLoad(ctx, load.before, made, err)
	load.err, load.ended = err, p.pools.config.Now()
	close(load.done)
	p.pools.log.Info("preload ended", zap.String("pool_id", string(p.id)), zap.Stringer("reason", reason.Of(err)),
		zap.Duration("duration", load.ended.Sub(began)))
}

// finishLoad publishes what a load has come to: the pool READY; FAILED if it failed after a process had been made, or if
// one is left that could not be stopped; STOPPED if it was drained; else as it was before.
func (p *pool) finishLoad(ctx context.Context, before registry.Pool, made bool, err error) *registry.Pool {
	p.mu.Lock()
	p.loading = nil
	switch {
	case err == nil:
		defer p.mu.Unlock()
		return p.updateLocked(func(pool *registry.Pool) { p.settle(pool) })
	case reason.Of(err) == reason.StopFailed || made && ctx.Err() == nil:
		p.updateLocked(func(pool *registry.Pool) {
			pool.State, pool.Phase = registry.StateFailed, 0
			pool.Failure = &registry.Failure{Reason: reason.Of(err), Message: err.Error(), At: p.pools.config.Now()}
		})
	case errors.Is(context.Cause(ctx), errDrained):
		p.updateLocked(func(pool *registry.Pool) { pool.State, pool.Phase, pool.Failure = registry.StateStopped, 0, nil })
	case before.State != 0:
		p.updateLocked(func(pool *registry.Pool) { *pool = before })
	default:
		p.gone = true
	}
	gone := p.gone
	p.mu.Unlock()
	if gone {
		if err := p.pools.forget(p); err != nil {
			p.pools.log.Warn("logs of a load that left nothing were not deleted", zap.String("pool_id", string(p.id)), zap.Error(err))
		}
	}
	return nil
}

// settle makes a pool READY, or FAILED if one of its engines has ended meanwhile.
func (p *pool) settle(pool *registry.Pool) {
	pool.State, pool.Phase, pool.Failure = registry.StateReady, 0, nil
	for _, replica := range pool.Replicas {
		if replica.State != registry.ReplicaReady {
			pool.State = registry.StateFailed
			pool.Failure = p.exited(replica)
			return
		}
	}
}

// prepareAndStart returns nil when every replica is READY. Otherwise none that it started is left; it says whether an
// engine of any had been started.
func (p *pool) prepareAndStart(ctx context.Context, load *preload) (started bool, err error) {
	var prepared *enginev1.PreparedEngine
	if load.spec.PreparedID != "" {
		prepared, err = p.pools.config.Preparer.Prepared(ctx, load.spec.PreparedID)
	} else {
		prepared, err = p.pools.config.Preparer.Prepare(ctx, load.spec.Prepare, p.id, load.hub.Publish)
	}
	if err != nil {
		return false, err
	}
	load.hub.Close(progress.Outcome{})
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	load.enter(registry.PhaseStarting)
	replicas := p.addReplicas(ctx, load, prepared)
	err = awaitReady(replicas)
	return slices.ContainsFunc(replicas, (*replica).hadEngine), err
}

// addReplicas starts every replica of the spec that does not live already.
func (p *pool) addReplicas(ctx context.Context, load *preload, prepared *enginev1.PreparedEngine) []*replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	var replicas []*replica
	p.updateLocked(func(pool *registry.Pool) {
		pool.Prepared, pool.Phase = prepared, registry.PhaseStarting
		old := pool.Replicas
		pool.Replicas = make([]registry.Replica, load.spec.Replicas)
		copy(pool.Replicas, old)
		for index := range pool.Replicas {
			if _, lives := p.alive[index]; lives {
				continue
			}
			r := p.newReplicaLocked(launch.Request{
				Pool: p.id, Replica: p.id.Replica(index), Index: index,
				Prepared: prepared, Port: load.spec.Port, StartupTimeout: load.spec.StartupTimeout,
			})
			pool.Replicas[index] = registry.Replica{
				ID: r.request.Replica, Index: index, Generation: r.request.Generation, State: registry.ReplicaStarting,
			}
			replicas = append(replicas, r)
		}
	})
	for _, r := range replicas {
		launching, cancel := context.WithCancelCause(ctx)
		r.cancelLaunch = cancel
		p.pools.work.Go(func() {
			defer cancel(nil)
			r.run(launching)
		})
	}
	return replicas
}

// errSibling stops replicas of a load that failed because of another one.
var errSibling = errors.New("another replica did not get ready")

// awaitReady returns nil when all replicas are READY. If one fails it stops the others, and returns when none is left.
func awaitReady(replicas []*replica) error {
	failed := make(chan error, len(replicas))
	for _, r := range replicas {
		go func() {
			<-r.launched
			failed <- r.launchErr
		}()
	}
	var first error
	for range replicas {
		err := <-failed
		if err != nil && first == nil {
			first = err
			for _, r := range replicas {
				r.cancelLaunch(errSibling)
			}
		}
	}
	if first == nil {
		return nil
	}
	for _, r := range replicas {
		if err := r.shut(0, errSibling); err != nil {
			first = errors.Join(err, first) // That something is left matters more than why it was to go.
		}
	}
	return first
}

// Cancel cancels the load of a pool and returns when nothing of it is left. It says whether there was one to cancel.
func (p *Pools) Cancel(ctx context.Context, id registry.PoolID) (bool, error) {
	pool := p.pool(id)
	if pool == nil {
		return false, notFound(id)
	}
	load := pool.cancelLoad(errCancelled)
	if load == nil {
		return false, nil
	}
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
