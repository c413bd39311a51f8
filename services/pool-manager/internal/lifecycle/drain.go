// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// How the engines' own counts are read while a drain waits. There is no way to be told, so they are asked: soon at first, since
// most requests end soon, then less often. Idle must be seen twice, settle apart: a request that has just been accepted
// is not counted by the engine yet.
const (
	firstAsk   = 25 * time.Millisecond
	slowestAsk = 250 * time.Millisecond
	settle     = 50 * time.Millisecond
	// askLimit is how long an engine may take to answer; an engine that does not is one that does not say.
	askLimit = 2 * time.Second
	// lastAskLimit is how long it may take at the deadline, to be told how many requests are cut.
	lastAskLimit = 500 * time.Millisecond
	// tellEvery is how often callers are told although nothing has changed.
	tellEvery = time.Second
)

var errDeadline = errors.New("the drain's deadline has come")

// DrainOptions say how a pool is drained.
type DrainOptions struct {
	// Deadline is how long to wait for requests in flight; 0 waits for none.
	Deadline time.Duration
	// GiveUp leaves the engines running at the deadline.
	GiveUp bool
}

// DrainProgress is where a drain stands.
type DrainProgress struct {
	// Stopping is false while requests are waited for.
	Stopping bool
	// InFlight is the number of requests; meaningless unless Known.
	InFlight int
	Known    bool
	// Remaining is the time left until the deadline.
	Remaining time.Duration
}

// DrainResult is how a drain ended.
type DrainResult struct {
	Forced      bool
	GaveUp      bool
	RequestsCut int
	Duration    time.Duration
	Killed      bool
	Pool        *registry.Pool
}

// drain is one drain under way.
type drain struct {
	// reached ends the waiting with errDeadline.
	reached context.CancelCauseFunc

	// mu guards giveUp, deadline, timer, progress and changed.
	mu       sync.Mutex
	giveUp   bool
	deadline time.Time
	timer    *time.Timer
	progress DrainProgress
	changed  chan struct{}

	// done is closed when result and err are set.
	done   chan struct{}
	result DrainResult
	err    error
}

// newDrain returns a drain whose deadline runs from now, and the context of its waiting.
func newDrain(ctx context.Context, options DrainOptions) (*drain, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	d := &drain{
		reached:  cancel,
		giveUp:   options.GiveUp,
		deadline: time.Now().Add(options.Deadline),
		progress: DrainProgress{Remaining: options.Deadline},
		changed:  make(chan struct{}),
		done:     make(chan struct{}),
	}
	d.timer = time.AfterFunc(options.Deadline, func() { cancel(errDeadline) })
	return d, ctx
}

// tighten makes a drain under way what a second caller asks for, as far as that is sterner: the earlier deadline counts, and
// forcing rather than giving up.
func (d *drain) tighten(options DrainOptions) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.giveUp = d.giveUp && options.GiveUp
	if deadline := time.Now().Add(options.Deadline); deadline.Before(d.deadline) {
		d.deadline = deadline
		d.timer.Reset(options.Deadline)
	}
}

func (d *drain) remaining(now time.Time) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(d.deadline.Sub(now), 0)
}

func (d *drain) givesUp() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.giveUp
}

func (d *drain) tell(progress DrainProgress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.progress = progress
	close(d.changed)
	d.changed = make(chan struct{})
}

// follow tells emit the newest progress until the drain has ended, and returns its outcome. If emit fails or ctx ends
// it returns that; the drain goes on.
func (d *drain) follow(ctx context.Context, emit func(DrainProgress) error) (DrainResult, error) {
	for {
		d.mu.Lock()
		progress, changed := d.progress, d.changed
		d.mu.Unlock()
		if err := emit(progress); err != nil {
			return DrainResult{}, err
		}
		select {
		case <-d.done:
			return d.result, d.err
		case <-changed:
		case <-ctx.Done():
			return DrainResult{}, context.Cause(ctx)
		}
	}
}

// Drain takes a pool out of service and returns when no process of it is left, or the engines were left running at the
// deadline as asked. On a pool that has no engine it returns at once; on one that is being drained it attaches, and the
// sterner of both callers' options count; a load under way it cancels, which leaves the pool STOPPED. If ctx ends the call
// returns and the drain goes on.
func (p *Pools) Drain(ctx context.Context, id registry.PoolID, options DrainOptions, emit func(DrainProgress) error) (DrainResult, error) {
	began := p.config.Now()
	for {
		pool := p.pool(id)
		if pool == nil {
			return DrainResult{}, notFound(id)
		}
		if load := pool.cancelLoad(errDrained); load != nil {
			select {
			case <-load.done:
				continue
			case <-ctx.Done():
				return DrainResult{}, context.Cause(ctx)
			}
		}
		drain, idle, err := pool.beginDrain(ctx, options)
		switch {
		case errors.Is(err, errLoading):
			continue
		case err != nil || idle != nil:
			return DrainResult{Pool: idle, Duration: p.config.Now().Sub(began)}, err
		}
		return drain.follow(ctx, emit)
	}
}

// errLoading says that a load has begun since the last one was cancelled.
var errLoading = errors.New("a load is under way")

// beginDrain attaches to the drain under way, starts one, or returns the pool if there is nothing to drain.
func (p *pool) beginDrain(ctx context.Context, options DrainOptions) (*drain, *registry.Pool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, nil, notFound(p.id)
	case p.loading != nil:
		return nil, nil, errLoading
	case p.draining != nil:
		p.draining.tighten(options)
		return p.draining, nil, nil
	case len(p.alive) == 0:
		if p.snapshot.State != registry.StateStopped {
			p.updateLocked(func(pool *registry.Pool) { pool.State, pool.Failure = registry.StateStopped, nil })
		}
		return nil, p.putLocked(), nil
	}
	d, waiting := newDrain(context.WithoutCancel(ctx), options)
	p.draining = d
	p.pools.work.Go(func() { p.drain(waiting, d) })
	return d, nil, nil
}

// drain runs one drain from its begin to its end. The end of ctx is its deadline.
func (p *pool) drain(ctx context.Context, d *drain) {
	began := p.pools.config.Now()
	p.withdraw()
	inFlight, idle := p.awaitIdle(ctx, d)
	d.timer.Stop()
	d.reached(nil)
	if !idle && d.givesUp() {
		d.result.GaveUp = true
		p.offer()
	} else {
		d.result.Forced = !idle
		d.tell(DrainProgress{Stopping: true, InFlight: total(inFlight), Known: allKnown(inFlight)})
		d.err = p.stopAll(d, inFlight)
	}
	d.result.Duration = p.pools.config.Now().Sub(began)
	p.finishDrain(d)
	close(d.done)
	p.pools.log.Info("drain ended", zap.String("pool_id", string(p.id)), zap.Bool("forced", d.result.Forced), zap.Bool("gave_up", d.result.GaveUp),
		zap.Int("requests_cut", d.result.RequestsCut), zap.Duration("duration", d.result.Duration), zap.Error(d.err))
}

// withdraw tells everybody that the pool takes no new requests.
func (p *pool) withdraw() {
	p.update(func(pool *registry.Pool) {
		pool.State = registry.StateDraining
		for i := range pool.Replicas {
			if pool.Replicas[i].State == registry.ReplicaReady {
				pool.Replicas[i].State = registry.ReplicaDraining
			}
		}
	})
	for _, r := range p.live() {
		if err := r.engine.Withdraw(); err != nil {
			p.pools.log.Warn("handoff was not withdrawn", r.fields(zap.Error(err))...)
		}
	}
}

// offer takes withdraw back for every engine that still lives.
func (p *pool) offer() {
	for _, r := range p.live() {
		if err := r.engine.Offer(); err != nil {
			p.pools.log.Warn("handoff was not written again", r.fields(zap.Error(err))...)
		}
	}
	p.update(func(pool *registry.Pool) {
		for i := range pool.Replicas {
			if pool.Replicas[i].State == registry.ReplicaDraining {
				pool.Replicas[i].State = registry.ReplicaReady
			}
		}
		p.settle(pool)
	})
}

// stopAll stops every engine at once and returns when none is left, or what could not be stopped.
func (p *pool) stopAll(d *drain, inFlight map[*replica]count) error {
	replicas := p.live()
	failed := make(chan error, len(replicas))
	for _, r := range replicas {
		go func() { failed <- r.shut(inFlight[r].requests, errDrained) }()
	}
	var err error
	for range replicas {
		err = errors.Join(err, <-failed)
	}
	for _, r := range replicas {
		d.result.Killed = d.result.Killed || r.stopped.Killed
	}
	d.result.RequestsCut = total(inFlight)
	return err
}

func (p *pool) finishDrain(d *drain) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draining = nil
	switch {
	case d.err != nil:
		d.result.Pool = p.updateLocked(func(pool *registry.Pool) {
			pool.State = registry.StateFailed
			pool.Failure = &registry.Failure{Reason: reason.Of(d.err), Message: d.err.Error(), At: p.pools.config.Now()}
		})
	case d.result.GaveUp:
		d.result.Pool = p.putLocked()
	default:
		d.result.Pool = p.updateLocked(func(pool *registry.Pool) { pool.State, pool.Failure = registry.StateStopped, nil })
	}
}
