// SPDX-License-Identifier: Apache-2.0

// Package lifecycle makes pools be what was asked for: it loads them, drains them and forgets them.
//
// A pool has at most one operation at a time, which runs on its own and outlives the caller who asked for it; callers
// attach to it, and may leave. Each engine belongs to one replica, whose goroutine alone launches, stops and buries it.
// Every change is put into the registry as a new snapshot, and nothing else is kept: a Pools begins empty.
//
// No lock is held while anything is waited for (G14). All exported methods may be called by many goroutines at once.
package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// Preparer gets engines and models ready to run.
type Preparer interface {
	// Prepare prepares what spec says and reports the work on the way. It returns when ctx ends.
	Prepare(ctx context.Context, spec *enginev1.PrepareSpec, pool registry.PoolID, report func(*enginev1.Progress)) (*enginev1.PreparedEngine, error)
	// Prepared returns what was prepared before.
	Prepared(ctx context.Context, preparedID string) (*enginev1.PreparedEngine, error)
}

// Launcher starts one engine. It returns when the engine is proven ready, or with an error, which may be a
// *launch.Error, when nothing of it is left. With both an engine and an error, what is left of it could not be stopped. It
// tells of stages on the way.
type Launcher func(ctx context.Context, request launch.Request, stage func(launch.Stage)) (Engine, error)

// Engine is one running engine. It belongs to one replica.
type Engine interface {
	// Info says what is known of it; it never changes.
	Info() launch.Info
	// Done is closed when its main process has exited.
	Done() <-chan struct{}
	// InFlight asks the engine how many requests it has.
	InFlight(ctx context.Context) (int, error)
	// Withdraw tells those who read files that no new requests should come; Offer takes that back.
	Withdraw() error
	Offer() error
	// Stop ends the whole tree and returns when it is proven gone. With an error some of it may be left; call it again.
	Stop(ctx context.Context) (launch.Stopped, error)
	// Bury clears away what an engine that is Done has left. With an error some of it may be left; call Stop.
	Bury(ctx context.Context) (registry.Exit, error)
}

// Config of a Pools. Every field without a default is required.
type Config struct {
	Registry *registry.Registry
	Preparer Preparer
	Launch   Launcher
	// DeleteLogs removes the logs of a pool that is forgotten.
	DeleteLogs func(registry.PoolID) error
	// Logger; nil means none.
	Logger *zap.Logger
	// Now is the clock of snapshots and durations; nil means time.Now.
	Now func() time.Time
}

// Pools is the set of pools of one node. Make one with New, and Close it.
type Pools struct {
	config Config
	log    *zap.Logger

	// work counts the goroutines of operations and replicas; Close waits for it.
	work sync.WaitGroup

	// mu guards all below, and is taken before a pool's own.
	mu       sync.Mutex
	pools    map[registry.PoolID]*pool
	requests map[string]*preload
	closing  bool
}

// New returns a Pools without pools. It starts nothing.
func New(config Config) (*Pools, error) {
	if config.Registry == nil || config.Preparer == nil || config.Launch == nil || config.DeleteLogs == nil {
		return nil, errors.New("lifecycle: registry, preparer, launch and delete logs are required")
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Pools{
		config:   config,
		log:      config.Logger,
		pools:    make(map[registry.PoolID]*pool),
		requests: make(map[string]*preload),
	}, nil
}

// Why work is cancelled. Callers see the reasons that cancelError makes of them.
var (
	errCancelled = errors.New("the load was cancelled")
	errDrained   = errors.New("the load was cancelled by a drain")
	errClosing   = errors.New("the service is shutting down")
)

// cancelError says what a caller of cancelled work is told.
func cancelError(cause error, id registry.PoolID) error {
	if errors.Is(cause, errClosing) {
		return reason.New(reason.ShuttingDown, "the pool manager is shutting down", reason.Meta("pool_id", string(id)),
			reason.Remedy("call again when it has been started anew"))
	}
	return reason.New(reason.Cancelled, fmt.Sprintf("pool %s: %v", id, cause),
		reason.Meta("pool_id", string(id)), reason.Remedy("preload it again if that was not meant"))
}

// pool returns the pool with this id, or nil.
func (p *Pools) pool(id registry.PoolID) *pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pools[id]
}

func notFound(id registry.PoolID) error {
	return reason.New(reason.PoolNotFound, fmt.Sprintf("no pool %q", id), reason.Field("pool_id"),
		reason.Meta("pool_id", string(id)), reason.Remedy("list the pools to see which there are"))
}

// Delete forgets a pool that is STOPPED or FAILED without a live engine, with its logs.
func (p *Pools) Delete(id registry.PoolID) error {
	pool := p.pool(id)
	if pool == nil {
		return notFound(id)
	}
	pool.mu.Lock()
	if pool.gone {
		pool.mu.Unlock()
		return notFound(id)
	}
	if pool.loading != nil || pool.draining != nil || len(pool.alive) > 0 {
		state := pool.snapshot.State
		pool.mu.Unlock()
		return reason.New(reason.PoolBusy, fmt.Sprintf("pool %s is %s", id, state),
			reason.Meta("pool_id", string(id)), reason.Meta("state", state.String()), reason.Remedy("drain it first"))
	}
	pool.gone = true
	pool.mu.Unlock()
	p.log.Info("pool deleted", zap.String("pool_id", string(id)))
	if err := p.forget(pool); err != nil {
		return reason.New(reason.StorageFailed, fmt.Sprintf("delete the logs of pool %s", id), reason.Cause(err),
			reason.Remedy("the pool is forgotten; remove its folder below logs in the state directory"))
	}
	return nil
}

// forget removes a pool that is marked gone, first its logs, then the pool itself, which goes even if the logs stay.
func (p *Pools) forget(pool *pool) error {
	err := p.config.DeleteLogs(pool.id)
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pools, pool.id)
	p.config.Registry.Delete(pool.id)
	return err
}

// shutdownParallel is how many pools are drained at once when the node goes.
const shutdownParallel = 16

// Close refuses new work, cancels what is loading, drains every pool with this deadline and returns when no engine is
// left and no goroutine of this Pools runs; or, with an error, when ctx ends. Closing again waits again.
func (p *Pools) Close(ctx context.Context, deadline time.Duration) error {
	p.mu.Lock()
	p.closing = true
	pools := make([]*pool, 0, len(p.pools))
	for _, pool := range p.pools {
		pools = append(pools, pool)
	}
	p.mu.Unlock()
	for _, pool := range pools {
		pool.cancelLoad(errClosing)
	}
	failures := make(chan error, len(pools))
	room := make(chan struct{}, shutdownParallel)
	for _, pool := range pools {
		go func() {
			room <- struct{}{}
			defer func() { <-room }()
			_, err := p.Drain(ctx, pool.id, DrainOptions{Deadline: deadline}, func(DrainProgress) error { return nil })
			if reason.Of(err) == reason.PoolNotFound {
				err = nil
			}
			failures <- err
		}()
	}
	var err error
	for range pools {
		err = errors.Join(err, <-failures)
	}
	if err != nil {
		return fmt.Errorf("drain the node: %w", err)
	}
	p.work.Wait()
	return nil
}
