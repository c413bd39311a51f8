// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

var errDeadline = errors.New("the drain's deadline has come")

// DrainOptions say how a pool is drained.
type DrainOptions struct {
	// Deadline is how long to wait for requests in flight; 0 waits for none.
	Deadline time.Duration
	// GiveUp leaves the engines running at the deadline.
	GiveUp bool
	// By says why, for the records of the starts; empty means "drain".
	By string
	// keep leaves on disk that the pool is to serve.
	keep bool
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
	by      string

	// mu guards giveUp, keep, abandoned, deadline, timer, progress and changed.
	mu     sync.Mutex
	giveUp bool
	// keep leaves on disk that the pool is to serve.
	keep bool
	// abandoned is true once nobody can make the drain stop anything any more.
	abandoned bool
	deadline  time.Time
	timer     *time.Timer
	progress  DrainProgress
	changed   chan struct{}

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
		by:       cmp.Or(options.By, "drain"),
		keep:     options.keep,
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
	d.keep = d.keep && options.keep
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
	return d.giveUp || d.abandoned
}

func (d *drain) keeps() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.keep
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
			if isClosed(changed) { // The last step is told, too.
				continue
			}
			return d.result, d.err
		case <-changed:
		case <-ctx.Done():
			return DrainResult{}, context.Cause(ctx)
		}
	}
}

// Drain takes a pool out of service and returns when no process of it is left, or the engines were left running at the
// deadline as asked. On a pool that has no engine it returns at once; on one that is being drained it attaches, and the
// sterner of both callers' options count; a load under way it cancels, which leaves the pool STOPPED, and so it does with a
// reload. If ctx ends the call returns and the drain goes on. A pool that was drained stays so over restarts of the manager.
func (p *Pools) Drain(ctx context.Context, id registry.PoolID, options DrainOptions, emit func(DrainProgress) error) (DrainResult, error) {
	began := p.config.Now()
	for {
		pool := p.pool(id)
		if pool == nil {
			return DrainResult{}, notFound(id)
		}
		if ended := pool.cancelWork(errDrained); ended != nil {
			select {
			case <-ended:
				continue
			case <-ctx.Done():
				return DrainResult{}, context.Cause(ctx)
			}
		}
		drain, saved, err := pool.beginDrain(options)
		switch {
		case errors.Is(err, errAtWork):
			continue
		case err != nil:
			return DrainResult{}, err
		case drain == nil:
			if err := <-saved; err != nil {
				return DrainResult{}, err
			}
			if err := p.drainAside(ctx, id, options); err != nil {
				return DrainResult{}, err
			}
			return DrainResult{Pool: pool.current(), Duration: p.config.Now().Sub(began)}, nil
		}
		result, err := drain.follow(ctx, emit)
		if err == nil && !result.GaveUp {
			err = p.drainAside(ctx, id, options)
		}
		return result, err
	}
}

// drainAside waits for what an earlier manager has left of a pool. A manager that ends leaves that to the next one.
func (p *Pools) drainAside(ctx context.Context, id registry.PoolID, options DrainOptions) error {
	if options.keep {
		return nil
	}
	return p.awaitAside(ctx, id)
}

// errAtWork says that a load or a reload has begun since the last one was cancelled.
var errAtWork = errors.New("a load is under way")

// beginDrain attaches to the drain under way, starts one, or, if there is nothing to drain, makes it durable that the pool is not
// to serve and returns what tells when that is so.
func (p *pool) beginDrain(options DrainOptions) (*drain, <-chan error, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return nil, nil, notFound(p.id)
	case p.leaving && !options.keep: // Its engines are nobody's until the next manager has them.
		return nil, nil, cancelError(errClosing, p.id)
	case p.loading != nil || p.reloading != nil:
		return nil, nil, errAtWork
	case p.draining != nil:
		p.draining.tighten(options)
		return p.draining, nil, nil
	case !p.aliveLocked():
		if p.state == registry.StateStopped && !p.wanted && !p.keeper.wanted() {
			return nil, done(nil), nil
		}
		p.wanted, p.why, p.failure = false, "drain", nil
		p.publishLocked()
		if options.keep {
			return nil, done(nil), nil
		}
		return nil, p.commitLocked(), nil
	}
	return p.startDrainLocked(options), nil, nil
}

// done returns what tells of something that is over.
func done(err error) <-chan error {
	told := make(chan error, 1)
	told <- err
	return told
}

func (p *pool) startDrainLocked(options DrainOptions) *drain {
	d, waiting := newDrain(p.pools.base, options)
	p.draining = d
	p.pools.work.Go(func() { p.drain(waiting, d) })
	return d
}

// unloadLimit is how long the unloading of an idle pool waits for a request that has come meanwhile, before it is given up.
const unloadLimit = time.Second

// unloadLocked drains a pool that has been idle for long, unless it turns out to be busy.
func (p *pool) unloadLocked() {
	p.startDrainLocked(DrainOptions{Deadline: unloadLimit, GiveUp: true, By: "idle"})
}

// current returns the newest snapshot of the pool.
func (p *pool) current() *registry.Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshotLocked()
}

// drain runs one drain from its begin to its end. The end of ctx is its deadline.
func (p *pool) drain(ctx context.Context, d *drain) {
	began := p.pools.config.Now()
	p.withdraw()
	failpoint.Hit(failpoint.DrainWithdrawn)
	counts, idle := awaitIdle(ctx, p.members, func(counts map[*replica]count) {
		d.tell(DrainProgress{InFlight: total(counts), Known: allKnown(counts), Remaining: d.remaining(time.Now())})
	})
	d.timer.Stop()
	d.reached(nil)
	failpoint.Hit(failpoint.DrainIdle)
	if !idle && d.givesUp() {
		d.result.GaveUp = true
	} else {
		d.result.Forced = !idle
		d.tell(DrainProgress{Stopping: true, InFlight: total(counts), Known: allKnown(counts)})
		p.unwant(d)
		failpoint.Hit(failpoint.DrainUnwanted)
		d.err = p.stopAll(d, counts)
		failpoint.Hit(failpoint.DrainStopped)
	}
	d.result.Duration = p.pools.config.Now().Sub(began)
	p.finishDrain(d)
	close(d.done)
	p.pools.config.Observer.DrainEnded(d.outcome(), d.result.RequestsCut, d.result.Duration)
	p.pools.log.Info("drain ended", zap.String("pool_id", string(p.id)), zap.String("by", d.by), zap.Bool("forced", d.result.Forced),
		zap.Bool("gave_up", d.result.GaveUp), zap.Int("requests_cut", d.result.RequestsCut),
		zap.Duration("duration", d.result.Duration), zap.Error(d.err))
}

// unwant makes it durable that the pool is not to serve: a manager that comes after must not start again what is stopped now.
func (p *pool) unwant(d *drain) {
	p.mu.Lock()
	p.wanted, p.why = false, d.by
	if d.keeps() {
		p.mu.Unlock()
		return
	}
	saved := p.commitLocked()
	p.mu.Unlock()
	if err := <-saved; err != nil { // The keeper goes on trying; the engines are to go all the same.
		p.pools.log.Error("that a pool is drained is not on disk yet", zap.String("pool_id", string(p.id)), zap.Error(err))
	}
}

func (d *drain) outcome() string {
	switch {
	case d.err != nil:
		return "failed"
	case d.result.GaveUp:
		return "gave_up"
	case d.result.Forced:
		return "forced"
	default:
		return "drained"
	}
}

// withdraw tells everybody that the pool takes no new requests.
func (p *pool) withdraw() {
	p.update(func() {
		for _, r := range p.crew {
			if r.view.State == registry.ReplicaReady {
				r.changeLocked(func(view *registry.Replica) { view.State = registry.ReplicaDraining })
			}
		}
	})
	for _, r := range p.members() {
		if engine := r.serving(); engine != nil {
			if err := engine.Withdraw(); err != nil {
				p.pools.log.Warn("handoff was not withdrawn", r.fields(zap.Error(err))...)
			}
		}
	}
}

// offer takes withdraw back for every engine that still lives, and has those started again that have ended meanwhile.
func (p *pool) offer() {
	p.mu.Lock()
	crew := p.crewLocked()
	p.mu.Unlock()
	for _, r := range crew {
		if engine := r.serving(); engine != nil {
			if err := engine.Offer(); err != nil {
				p.pools.log.Warn("handoff was not written again", r.fields(zap.Error(err))...)
			}
		}
		r.wake()
	}
}

// stopAll stops every engine at once and returns when none is left, or what could not be stopped.
func (p *pool) stopAll(d *drain, counts map[*replica]count) error {
	members := p.members()
	err := shutAll(members, d.by, counts, errDrained)
	for _, r := range members {
		d.result.Killed = d.result.Killed || r.wasKilled()
	}
	d.result.RequestsCut = total(counts)
	return err
}

// shutAll stops replicas at once and returns when none is left, or what could not be stopped.
func shutAll(replicas []*replica, by string, counts map[*replica]count, cause error) error {
	failed := make(chan error, len(replicas))
	for _, r := range replicas {
		go func() { failed <- r.shut(launch.Ending{By: by, RequestsCut: counts[r].requests}, cause) }()
	}
	var err error
	for range replicas {
		err = errors.Join(err, <-failed)
	}
	return err
}

// wasKilled is whether some process of the replica had to be killed. It is false while the replica lives.
func (r *replica) wasKilled() bool {
	select {
	case <-r.gone:
		return r.stopped.Killed
	default:
		return false
	}
}

func (p *pool) finishDrain(d *drain) {
	if d.result.GaveUp {
		p.update(func() {
			for _, r := range p.crew {
				if r.view.State == registry.ReplicaDraining {
					r.changeLocked(func(view *registry.Replica) { view.State = registry.ReplicaReady })
				}
			}
			p.draining = nil
			p.fillLocked()
		})
		p.offer()
		d.result.Pool = p.current()
		return
	}
	saved := done(nil)
	d.result.Pool = p.update(func() {
		p.draining = nil
		p.failure = nil
		if d.err != nil {
			p.failure = p.failed(d.err)
		}
		if !d.keeps() && p.keeper.wanted() { // Somebody has joined who wants it to stay drained.
			saved = p.commitLocked()
		}
	})
	if err := <-saved; err != nil { // The keeper goes on trying.
		p.pools.log.Error("that a pool is drained is not on disk yet", zap.String("pool_id", string(p.id)), zap.Error(err))
	}
}

// abandon ends a drain that still waits at once, and leaves the engines running.
func (d *drain) abandon() {
	d.mu.Lock()
	d.giveUp, d.abandoned = true, true
	d.mu.Unlock()
	d.reached(errDeadline)
}
