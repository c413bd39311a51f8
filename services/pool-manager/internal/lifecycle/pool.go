// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// made is what a pool is to be, and what has become of it.
type made struct {
	spec     registry.Spec
	prepared *enginev1.PreparedEngine
	edition  uint64
	// wanted is whether it is to serve; why says why not.
	wanted bool
	why    string
	// failure is the newest reason why it does not serve as it should; it counts only while it does not.
	failure *registry.Failure
	// views are what is known of each replica, by index, those that are gone included.
	views []registry.Replica
}

// pool is one pool and the operation that works on it.
type pool struct {
	id    registry.PoolID
	pools *Pools

	// mu guards all below. Nothing waits while holding it; the registry's lock is taken inside it.
	mu sync.Mutex
	made
	created time.Time
	// rebooted is whether the machine was started anew since the record of the pool was written.
	rebooted bool
	state    registry.State // as published last; 0 before that.
	// loading, draining and reloading are the operation under way; at most one is not nil.
	loading   *preload
	draining  *drain
	reloading *reload
	// crew are the replicas that make up the pool and are not proven gone, by index. retiring are those of before a reload.
	crew     map[int]*replica
	retiring []*replica
	// generations counts the starts of each replica, tracks is what their supervision remembers, loadTimes how long the last
	// load of the prepared engine took.
	generations map[int]uint64
	tracks      map[int]supervision.Track
	loadTimes   map[int]time.Duration
	// leaving is true once its engines are left to the next manager: no replica is hired any more.
	leaving bool
	// gone is true once the pool is forgotten; whoever finds it so looks it up anew.
	gone bool

	keeper keeper
}

func newPool(id registry.PoolID, pools *Pools) *pool {
	return &pool{
		id: id, pools: pools, crew: make(map[int]*replica), generations: make(map[int]uint64),
		tracks: make(map[int]supervision.Track), loadTimes: make(map[int]time.Duration),
	}
}

// update changes the pool and tells everybody.
func (p *pool) update(change func()) *registry.Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	return p.publishLocked()
}

// publishLocked tells everybody what the pool is now. It returns the new snapshot.
func (p *pool) publishLocked() *registry.Pool {
	if p.created.IsZero() {
		p.created = p.pools.config.Now()
	}
	from := p.state
	p.state = p.stateLocked()
	next := registry.Pool{
		Spec: p.spec, State: p.state, Prepared: p.prepared, Replicas: slices.Clone(p.views), Created: p.created,
		Wanted: p.wanted, Edition: p.edition,
	}
	switch p.state {
	case registry.StateFailed, registry.StateDegraded, registry.StateRecovering:
		next.Failure = p.failure
	case registry.StateReady, registry.StateStopped:
		p.failure = nil
	case registry.StateLoading, registry.StateDraining:
	}
	if p.loading != nil {
		next.Phase = p.loading.phase()
	}
	for _, r := range p.retiring {
		next.Retiring = append(next.Retiring, r.view)
	}
	if p.reloading != nil {
		next.Reload = p.reloading.statusLocked()
	}
	put := p.pools.config.Registry.Put(next)
	if from != p.state {
		fields := []zap.Field{zap.String("pool_id", string(p.id)), zap.Stringer("from", from), zap.Stringer("to", p.state)}
		if failure := next.Failure; failure != nil {
			fields = append(fields, zap.Stringer("reason", failure.Reason), zap.String("message", failure.Message))
		}
		p.pools.log.Info("pool state changed", fields...)
	}
	return put
}

// stateLocked says where the pool stands.
func (p *pool) stateLocked() registry.State {
	switch {
	case p.draining != nil:
		return registry.StateDraining
	case p.loading != nil:
		return registry.StateLoading
	case p.reloading != nil && p.reloading.phase == registry.ReloadStoppingOld:
		return registry.StateDraining
	case !p.wanted && p.failure != nil:
		return registry.StateFailed
	case !p.wanted:
		return registry.StateStopped
	}
	ready, coming := 0, 0
	for _, view := range p.views {
		switch view.State {
		case registry.ReplicaReady:
			ready++
		case registry.ReplicaStarting, registry.ReplicaBackoff, registry.ReplicaStopping:
			coming++
		case registry.ReplicaDraining, registry.ReplicaStopped, registry.ReplicaFailed:
		}
	}
	switch {
	case ready == len(p.views) && ready > 0:
		return registry.StateReady
	case ready > 0:
		return registry.StateDegraded
	case p.reloading != nil, coming > 0 && p.failure == nil:
		return registry.StateLoading
	case coming > 0:
		return registry.StateRecovering
	default:
		return registry.StateFailed
	}
}

// members returns the replicas that are not proven gone: the crew by index, then those that retire.
func (p *pool) members() []*replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append(p.crewLocked(), p.retiring...)
}

func (p *pool) crewLocked() []*replica {
	replicas := make([]*replica, 0, len(p.crew))
	for _, r := range p.crew {
		replicas = append(replicas, r)
	}
	slices.SortFunc(replicas, func(a, b *replica) int { return a.index - b.index })
	return replicas
}

// aliveLocked is whether any process of the pool may be left.
func (p *pool) aliveLocked() bool {
	return len(p.crew) > 0 || len(p.retiring) > 0 || p.reloading != nil
}

// snapshotLocked returns the pool as the registry knows it.
func (p *pool) snapshotLocked() *registry.Pool {
	put, _ := p.pools.config.Registry.Get(p.id)
	return put
}

// cancelWork cancels the load or the reload under way, if there is one, and returns what is closed when it has ended.
func (p *pool) cancelWork(cause error) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.loading != nil:
		p.loading.cancel(cause)
		return p.loading.done
	case p.reloading != nil:
		p.reloading.cancel(cause)
		return p.reloading.undone
	}
	return nil
}
