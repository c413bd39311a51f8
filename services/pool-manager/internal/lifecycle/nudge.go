// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// nudge has replicas that wait start at once, and hires new ones in place of those that were given up. It returns the pool when it
// is READY, or why one has failed again.
func (p *pool) nudge(ctx context.Context) (*registry.Pool, error) {
	p.mu.Lock()
	if p.gone || !p.wanted || p.draining != nil {
		p.mu.Unlock()
		return nil, p.busy("has changed meanwhile", "call again", 0)
	}
	before := make([]uint64, len(p.views))
	for index := range p.views {
		before[index] = p.generations[index]
	}
	p.startWaitingLocked("preload")
	p.mu.Unlock()

	watcher := p.pools.config.Registry.Watch("", []registry.PoolID{p.id})
	for {
		events, err := watcher.Next(ctx)
		if err != nil {
			return nil, err
		}
		for _, event := range events {
			switch {
			case event.Kind == registry.EventDelete:
				return nil, notFound(p.id)
			case event.Kind != registry.EventUpsert:
			case event.Pool.State == registry.StateReady:
				return event.Pool, nil
			case event.Pool.State == registry.StateDraining || !event.Pool.Wanted:
				return nil, p.beingDrained()
			default:
				if err := p.failedAgain(event.Pool, before); err != nil {
					return nil, err
				}
			}
		}
	}
}

// failedAgain returns why a replica has failed since its generation was as before; nil if none has.
func (p *pool) failedAgain(now *registry.Pool, before []uint64) error {
	for _, view := range now.Replicas {
		if view.State != registry.ReplicaBackoff && view.State != registry.ReplicaFailed {
			continue
		}
		if view.Index >= len(before) || view.Generation <= before[view.Index] {
			continue
		}
		message := fmt.Sprintf("replica %s has failed again", view.ID)
		if now.Failure != nil {
			message += ": " + now.Failure.Message
		}
		return reason.New(reason.WorkerStartFailed, message, reason.Meta("replica_id", string(view.ID)),
			reason.Remedy("read the pool's logs and its starts; it will be tried again as its restart policy says, unless it is FAILED"))
	}
	return nil
}

// startWaitingLocked has replicas that wait start at once, hires new ones for those that were given up, and returns how many
// it did this for.
func (p *pool) startWaitingLocked(by string) int {
	started := 0
	if p.leaving {
		return started
	}
	for index, view := range p.views {
		r, hired := p.crew[index]
		switch {
		case !hired:
			r = p.newReplica(index, p.made, by)
			r.supervised = true
			p.hireLocked(r)
			started++
		case view.State == registry.ReplicaBackoff:
			r.poke()
			started++
		}
	}
	if started > 0 {
		p.publishLocked()
	}
	return started
}

// ResetBreaker forgets that engines of a pool have failed: those that wait, or were given up, start at once. It says how many.
func (p *Pools) ResetBreaker(id registry.PoolID) (int, error) {
	pool := p.pool(id)
	if pool == nil {
		return 0, notFound(id)
	}
	pool.mu.Lock()
	defer pool.mu.Unlock()
	switch {
	case pool.gone:
		return 0, notFound(id)
	case pool.draining != nil:
		return 0, pool.beingDrained()
	case pool.loading != nil || pool.reloading != nil:
		return 0, pool.busy("is being loaded", "wait for it, or cancel it", 0)
	case !pool.wanted:
		return 0, reason.New(reason.PoolUnready, fmt.Sprintf("pool %s is %s and not to serve", id, pool.state),
			reason.Meta("pool_id", string(id)), reason.Remedy("preload it"))
	}
	for index := range pool.views {
		track := pool.tracks[index].Reset()
		pool.setTrackLocked(index, track)
	}
	started := pool.startWaitingLocked("reset")
	pool.saveLocked()
	pool.publishLocked()
	p.log.Info("breakers were reset", zap.String("pool_id", string(id)), zap.Int("replicas_started", started))
	return started, nil
}

// setTrackLocked replaces what supervision remembers of a replica, which may have none that runs.
func (p *pool) setTrackLocked(index int, track supervision.Track) {
	if r, ok := p.crew[index]; ok {
		r.trackLocked(track)
		return
	}
	p.tracks[index] = track
	p.views[index].Supervision = track.Status()
}

// Starts tells how the starts of a pool's engines ended, newest first.
func (p *Pools) Starts(id registry.PoolID) ([]state.StartRecord, error) {
	if p.pool(id) == nil {
		return nil, notFound(id)
	}
	return p.config.Records.Starts(string(id))
}
