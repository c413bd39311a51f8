// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"slices"
	"sync"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// pool is one pool and the operation that works on it.
type pool struct {
	id    registry.PoolID
	pools *Pools

	// mu guards all below. Nothing waits while holding it; the registry's lock is taken inside it.
	mu sync.Mutex
	// snapshot is what the registry was given last; State is 0 before it was given any.
	snapshot registry.Pool
	// loading and draining are the operation under way; at most one is not nil.
	loading  *preload
	draining *drain
	// alive are the replicas whose engine is not proven gone, by index.
	alive map[int]*replica
	// generations counts the starts of each replica.
	generations map[int]uint64
	// gone is true once the pool is forgotten; whoever finds it so looks it up anew.
	gone bool
}

func newPool(id registry.PoolID, pools *Pools) *pool {
	return &pool{id: id, pools: pools, alive: make(map[int]*replica), generations: make(map[int]uint64)}
}

// update changes the pool's snapshot and tells everybody.
func (p *pool) update(change func(*registry.Pool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.updateLocked(change)
}

// updateLocked is update for a caller who holds the lock. It returns the new snapshot.
func (p *pool) updateLocked(change func(*registry.Pool)) *registry.Pool {
	from := p.snapshot.State
	p.snapshot.Replicas = slices.Clone(p.snapshot.Replicas) // The old slice belongs to the old snapshot.
	change(&p.snapshot)
	if p.snapshot.Created.IsZero() {
		p.snapshot.Created = p.pools.config.Now()
	}
	put := p.pools.config.Registry.Put(p.snapshot)
	if to := p.snapshot.State; from != to {
		fields := []zap.Field{zap.String("pool_id", string(p.id)), zap.Stringer("from", from), zap.Stringer("to", to)}
		if failure := p.snapshot.Failure; failure != nil {
			fields = append(fields, zap.Stringer("reason", failure.Reason), zap.String("message", failure.Message))
		}
		p.pools.log.Info("pool state changed", fields...)
	}
	return put
}

// updateReplica changes what is known of one replica and tells everybody.
func (p *pool) updateReplica(index int, change func(*registry.Replica)) {
	p.update(func(pool *registry.Pool) { change(&pool.Replicas[index]) })
}

// live returns the replicas whose engine is not proven gone, by index.
func (p *pool) live() []*replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	replicas := make([]*replica, 0, len(p.alive))
	for index := range len(p.snapshot.Replicas) {
		if replica, ok := p.alive[index]; ok {
			replicas = append(replicas, replica)
		}
	}
	return replicas
}

// cancelLoad cancels the load under way, if there is one, and returns it.
func (p *pool) cancelLoad(cause error) *preload {
	p.mu.Lock()
	loading := p.loading
	p.mu.Unlock()
	if loading != nil {
		loading.cancel(cause)
	}
	return loading
}
