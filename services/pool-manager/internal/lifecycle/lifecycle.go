// SPDX-License-Identifier: Apache-2.0

// Package lifecycle makes pools be what was asked for: it loads them, owns their engines through failures and restarts of the
// manager, reloads them, drains them and forgets them.
//
// A pool has at most one operation at a time (a load, a drain, a reload), which runs on its own and outlives the caller who
// asked for it; callers attach to it, and may leave. Each engine belongs to one replica, whose goroutine alone launches,
// stops and buries it, and starts it again as supervision decides. Every change is put into the registry as a new snapshot.
//
// What must survive the manager is on disk before it counts: that a pool is to serve before a load ends, that it is not
// before a drain stops anything, and which engines serve before a reload switches. An engine belongs to its pool if the pool
// is to serve and both are of the same edition; Restore takes over those, and ends all others.
//
// No lock is held while anything is waited for (G14). All exported methods may be called by many goroutines at once.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// defaultParallelLoads is how many pools are loaded at once after a restart of the machine: more would fight for the disk.
const defaultParallelLoads = 2

// Config of a Pools. Every field without a default is required.
type Config struct {
	Registry *registry.Registry
	Preparer Preparer
	Machine  Machine
	Records  Records
	// BootID tells which boot of the machine this is.
	BootID string
	// ParallelLoads is how many pools Restore loads at once; 0 means 2. Taking over engines that run is not bounded.
	ParallelLoads int
	// KeepStrays leaves engines alone that nobody has a record of, rather than ending them.
	KeepStrays bool
	// Observer; nil means nobody.
	Observer Observer
	// Logger; nil means none.
	Logger *zap.Logger
	// Now is the clock of snapshots and durations; nil means time.Now.
	Now func() time.Time
	// Random returns numbers of [0,1), which spread restarts; nil means rand.Float64.
	Random func() float64
}

// Pools is the set of pools of one node. Make one with New, call Restore once, and Close or Leave it.
type Pools struct {
	config Config
	log    *zap.Logger
	// base is the context of all work, which outlives every caller. It never ends.
	base context.Context //nolint:containedctx // Nobody else could give it to work that nobody asked for.

	// work counts the goroutines of operations, replicas and saves; Close and Leave wait for it.
	work sync.WaitGroup
	// ending is closed when nothing may be waited for any more; end closes it once.
	ending chan struct{}
	end    sync.Once

	// mu guards all below, and is taken before a pool's own.
	mu       sync.Mutex
	pools    map[registry.PoolID]*pool
	requests map[string]*preload
	closing  bool

	// asideMu guards aside, whose channels are closed when what an earlier manager has left of a pool, and belongs to none, is
	// gone. It is taken last.
	asideMu sync.Mutex
	aside   map[registry.PoolID][]<-chan struct{}
}

// New returns a Pools without pools. It starts nothing. All work has the values of ctx; its end changes nothing.
func New(ctx context.Context, config Config) (*Pools, error) {
	if config.Registry == nil || config.Preparer == nil || config.Machine == nil || config.Records == nil {
		return nil, errors.New("lifecycle: registry, preparer, machine and records are required")
	}
	if config.ParallelLoads < 0 {
		return nil, fmt.Errorf("lifecycle: %d parallel loads", config.ParallelLoads)
	}
	if config.ParallelLoads == 0 {
		config.ParallelLoads = defaultParallelLoads
	}
	if config.Observer == nil {
		config.Observer = ignore{}
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Random == nil {
		config.Random = rand.Float64
	}
	return &Pools{
		config:   config,
		log:      config.Logger,
		base:     context.WithoutCancel(ctx),
		ending:   make(chan struct{}),
		pools:    make(map[registry.PoolID]*pool),
		requests: make(map[string]*preload),
		aside:    make(map[registry.PoolID][]<-chan struct{}),
	}, nil
}

// Why work is cancelled. Callers see the reasons that cancelError makes of them.
var (
	errCancelled = errors.New("it was cancelled")
	errDrained   = errors.New("it was cancelled by a drain")
	errClosing   = errors.New("the service is shutting down")
)

// cancelError says what a caller of cancelled work is told.
func cancelError(cause error, id registry.PoolID) error {
	if errors.Is(cause, errClosing) {
		return reason.New(reason.ShuttingDown, "the pool manager is shutting down", reason.Meta("pool_id", string(id)),
			reason.Remedy("call again when it has been started anew"))
	}
	return reason.New(reason.Cancelled, fmt.Sprintf("pool %s: %v", id, cause),
		reason.Meta("pool_id", string(id)), reason.Remedy("call again if that was not meant"))
}

// pool returns the pool with this id, or nil.
func (p *Pools) pool(id registry.PoolID) *pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pools[id]
}

// all returns every pool, in no order.
func (p *Pools) all() []*pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	pools := make([]*pool, 0, len(p.pools))
	for _, pool := range p.pools {
		pools = append(pools, pool)
	}
	return pools
}

// Alive returns nil if no lock of any pool is stuck. It returns late, or never, if one is.
func (p *Pools) Alive() error {
	for _, pool := range p.all() {
		_ = pool.current()
	}
	return nil
}

func notFound(id registry.PoolID) error {
	return reason.New(reason.PoolNotFound, fmt.Sprintf("no pool %q", id), reason.Field("pool_id"),
		reason.Meta("pool_id", string(id)), reason.Remedy("list the pools to see which there are"))
}

// Delete forgets a pool that is STOPPED or FAILED without a live engine, with its logs and starts, for good.
func (p *Pools) Delete(id registry.PoolID) error {
	pool := p.pool(id)
	if pool == nil {
		return notFound(id)
	}
	if len(p.asideOf(id)) > 0 {
		return pool.busy("has engines of an earlier manager that are being ended", "drain it first", time.Second)
	}
	pool.mu.Lock()
	if pool.gone {
		pool.mu.Unlock()
		return notFound(id)
	}
	if pool.leaving {
		pool.mu.Unlock()
		return cancelError(errClosing, id)
	}
	if pool.loading != nil || pool.draining != nil || pool.aliveLocked() {
		state := pool.state
		pool.mu.Unlock()
		return reason.New(reason.PoolBusy, fmt.Sprintf("pool %s is %s", id, state),
			reason.Meta("pool_id", string(id)), reason.Meta("state", state.String()), reason.Remedy("drain it first"))
	}
	before := pool.keeper.durable
	pool.gone = true
	pool.mu.Unlock()
	// First the starts: a pool without them is one whose deletion was cut short; they without a pool would come back with another.
	err := p.config.Records.RemoveStarts(string(id))
	if err == nil {
		pool.mu.Lock()
		pool.keeper.durable = nil
		removed := pool.saveLocked()
		pool.mu.Unlock()
		err = <-removed
	}
	if err != nil {
		pool.mu.Lock()
		pool.gone, pool.keeper.durable = false, before
		pool.saveLocked()
		pool.mu.Unlock()
		return err
	}
	failpoint.Hit(failpoint.DeleteRemoved)
	p.log.Info("pool deleted", zap.String("pool_id", string(id)))
	if err := p.forget(pool); err != nil {
		return reason.New(reason.StorageFailed, fmt.Sprintf("delete the logs of pool %s", id), reason.Cause(err),
			reason.Remedy("the pool is forgotten; remove its folder below logs in the state directory"))
	}
	return nil
}

// forget removes a pool that is marked gone, first its logs and starts, then the pool itself, which goes even if those stay.
func (p *Pools) forget(pool *pool) error {
	err := errors.Join(p.config.Machine.DeleteLogs(pool.id), p.config.Records.RemoveStarts(string(pool.id)))
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pools, pool.id)
	p.config.Registry.Delete(pool.id)
	failpoint.Hit(failpoint.DeleteForgotten)
	return err
}

// shut refuses new work and cancels what is loading or reloading.
func (p *Pools) shut() []*pool {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	pools := p.all()
	for _, pool := range pools {
		pool.cancelWork(errClosing)
	}
	return pools
}

// Close refuses new work, cancels what is loading, stops every engine after a drain with this deadline, and returns when none
// is left and no goroutine of this Pools runs; or, with an error, when ctx ends. What the pools are to be stays on disk: the
// next manager starts them again. Closing again waits again.
func (p *Pools) Close(ctx context.Context, deadline time.Duration) error {
	pools := p.shut()
	err := p.drainAll(ctx, pools, defaultParallelDrains*2, func(ctx context.Context, pool *pool) error {
		return pool.halt(ctx, deadline)
	})
	if err != nil {
		return fmt.Errorf("drain the node: %w", err)
	}
	return p.wait(ctx)
}

// Leave refuses new work, undoes what is loading, and returns when no goroutine of this Pools runs; or, with an error, when ctx
// ends. Engines go on serving, and are taken over by the next manager. A drain that waits is given up; one that stops engines
// is waited for.
func (p *Pools) Leave(ctx context.Context) error {
	pools := p.shut()
	err := p.drainAll(ctx, pools, len(pools)+1, func(ctx context.Context, pool *pool) error { return pool.leave(ctx) })
	if err != nil {
		return fmt.Errorf("leave the engines: %w", err)
	}
	return p.wait(ctx)
}

// wait returns when no goroutine of this Pools runs, or when ctx ends.
func (p *Pools) wait(ctx context.Context) error {
	p.end.Do(func() { close(p.ending) })
	done := make(chan struct{})
	go func() {
		p.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// halt stops the engines of a pool as a drain does, and leaves on disk what the pool is to be.
func (p *pool) halt(ctx context.Context, deadline time.Duration) error {
	options := DrainOptions{Deadline: deadline, By: "shutdown", keep: true}
	_, err := p.pools.Drain(ctx, p.id, options, func(DrainProgress) error { return nil })
	if reason.Of(err) == reason.PoolNotFound {
		return nil // Its load was undone.
	}
	return err
}

// leave ends the replicas of a pool and leaves their engines.
func (p *pool) leave(ctx context.Context) error {
	for {
		if ended := p.cancelWork(errClosing); ended != nil {
			if err := await(ctx, ended); err != nil {
				return err
			}
			continue
		}
		p.mu.Lock()
		draining := p.draining
		p.mu.Unlock()
		if draining == nil {
			break
		}
		draining.abandon()
		if err := await(ctx, draining.done); err != nil {
			return err
		}
	}
	p.mu.Lock()
	p.leaving = true
	p.mu.Unlock()
	for _, r := range p.members() {
		r.leave()
	}
	return nil
}

func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
