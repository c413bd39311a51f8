// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// adoptLimit is how long Restore waits for engines that it takes over: an engine that serves proves itself in milliseconds.
// Those that take longer, because they still load, go on afterwards.
const adoptLimit = 5 * time.Second

// Restore makes the pools be what they were under an earlier manager: those that are to serve take over their engines, which
// never stop to serve, and start those that are missing, in the order of priority, a few at a time. Engines that belong to no
// pool are ended. It is to be called once, before anything else, and returns when the engines that serve are taken over, or
// after 5 s; the rest goes on. Records that could not be read make their pools FAILED, and nothing else.
func (p *Pools) Restore(ctx context.Context) error {
	loaded, err := p.config.Records.LoadPools()
	if err != nil {
		return err
	}
	found, err := p.config.Machine.Leftovers(ctx)
	if err != nil {
		return err
	}
	failpoint.Hit(failpoint.RestoreLoaded)
	for _, record := range loaded.Pools {
		p.remember(record)
	}
	for _, bad := range loaded.Quarantined {
		p.log.Error("record of a pool was put aside", zap.String("file", bad.Name), zap.String("moved_to", bad.Path), zap.String("reason", bad.Reason))
		if bad.PoolID != "" {
			p.unreadable(registry.PoolID(bad.PoolID), fmt.Sprintf("its record was put aside as %s: %s", bad.Path, bad.Reason))
		}
	}
	for _, id := range found.Unreadable {
		p.noteUnreadable(id)
	}
	restoring := p.sort(found)
	p.config.Machine.KeepOnly(p.known())
	adopting := p.resume(restoring)
	p.settleAdoption(ctx, adopting)
	failpoint.Hit(failpoint.RestoreAdopted)
	return nil
}

// remember makes a pool of its record. It does not run yet.
func (p *Pools) remember(record state.PoolRecord) {
	id := registry.PoolID(record.PoolID)
	pool := newPool(id, p)
	if err := pool.decodeRecord(record); err != nil {
		p.log.Error("record of a pool cannot be used", zap.String("pool_id", record.PoolID), zap.Error(err))
		p.unreadable(id, fmt.Sprintf("its record cannot be used: %v", err))
		return
	}
	if err := errors.Join(pool.recallGenerations(), p.recallExits(pool)); err != nil {
		p.log.Warn("how earlier engines have ended is not known", zap.String("pool_id", record.PoolID), zap.Error(err))
	}
	p.mu.Lock()
	p.pools[id] = pool
	p.mu.Unlock()
}

// recallExits tells how the engines have ended of replicas that were given up.
func (p *Pools) recallExits(pool *pool) error {
	given := false
	for _, track := range pool.tracks {
		given = given || track.GaveUp
	}
	if !given {
		return nil
	}
	starts, err := p.config.Records.Starts(string(pool.id))
	for _, start := range slices.Backward(starts) { // The newest comes last.
		if start.Replica >= len(pool.views) || start.Edition != pool.edition || !pool.tracks[start.Replica].GaveUp {
			continue
		}
		if exit := exitOf(start); supervision.Permanent(exit.Class) { // Others are of before, or of a reload that has failed.
			pool.views[start.Replica].Exit = exit
		}
	}
	return err
}

func exitOf(start state.StartRecord) *registry.Exit {
	return &registry.Exit{
		Class: enginev1.ExitClass(enginev1.ExitClass_value["EXIT_CLASS_"+start.Class]), Code: start.Code, Signal: start.Signal,
		Uptime: start.Uptime, Ended: start.EndedAt, LastLines: start.LastLines, RequestsCut: start.RequestsCut,
	}
}

// unreadable makes a FAILED pool of which nothing is known but its id.
func (p *Pools) unreadable(id registry.PoolID, why string) {
	pool := newPool(id, p)
	pool.spec = registry.Spec{ID: id, Replicas: 1}
	pool.why = "unreadable"
	pool.failure = &registry.Failure{
		Reason: reason.RecordUnreadable, Message: fmt.Sprintf("pool %s: %s; preload it again", id, why), At: p.config.Now(),
	}
	p.mu.Lock()
	p.pools[id] = pool
	p.mu.Unlock()
}

// noteUnreadable says of a pool that a record of one of its engines could not be read. The engine is ended as one without a record,
// and started again if the pool is to serve.
func (p *Pools) noteUnreadable(id registry.PoolID) {
	if pool := p.pool(id); pool != nil && pool.wanted {
		pool.failure = &registry.Failure{
			Reason: reason.RecordUnreadable, Message: fmt.Sprintf("pool %s: the record of an engine was put aside", id), At: p.config.Now(),
		}
	}
}

func (p *Pools) known() map[registry.PoolID]bool {
	known := make(map[registry.PoolID]bool)
	for _, pool := range p.all() {
		known[pool.id] = true
	}
	return known
}

// restoring is one pool that is to serve again, and what an earlier manager has left of it.
type restoring struct {
	pool *pool
	// adopt are the starts to take over, before what is to be ended first, by index.
	adopt  map[int]launch.Leftover
	before map[int][]func(context.Context) error
}

// sort finds out what becomes of each start that an earlier manager has left. What belongs to no pool that is to serve is
// ended on the side.
func (p *Pools) sort(found launch.Found) []*restoring {
	byPool := make(map[registry.PoolID]*restoring)
	for _, pool := range p.all() {
		if pool.wanted {
			byPool[pool.id] = &restoring{pool: pool, adopt: map[int]launch.Leftover{}, before: map[int][]func(context.Context) error{}}
		}
	}
	// The newest start of a replica comes first: an older one beside it is one that had not been proven gone.
	slices.SortStableFunc(found.Engines, func(a, b launch.Leftover) int { return cmp.Compare(b.Generation, a.Generation) })
	for _, leftover := range found.Engines {
		end := func(ctx context.Context) error { return p.config.Machine.End(ctx, leftover, "superseded") }
		target := byPool[leftover.Pool]
		if target == nil {
			if pool := p.pool(leftover.Pool); pool != nil {
				pool.generations[leftover.Index] = max(pool.generations[leftover.Index], leftover.Generation)
			}
			p.endAside(leftover.Pool, end)
			continue
		}
		pool := target.pool
		pool.generations[leftover.Index] = max(pool.generations[leftover.Index], leftover.Generation)
		_, taken := target.adopt[leftover.Index]
		if belongs := leftover.Edition == pool.edition && leftover.Index < pool.spec.Replicas && leftover.SameBoot; belongs && !taken {
			target.adopt[leftover.Index] = leftover
			continue
		}
		target.before[leftover.Index%pool.spec.Replicas] = append(target.before[leftover.Index%pool.spec.Replicas], end)
	}
	for _, stray := range found.Strays {
		p.sortStray(stray, byPool[stray.Pool])
	}
	pools := make([]*restoring, 0, len(byPool))
	for _, one := range byPool {
		pools = append(pools, one)
	}
	slices.SortFunc(pools, func(a, b *restoring) int {
		return cmp.Or(cmp.Compare(b.pool.spec.Priority, a.pool.spec.Priority), strings.Compare(string(a.pool.id), string(b.pool.id)))
	})
	return pools
}

// sortStray has an engine that nobody has a record of ended, before anything of its pool is started in its place.
func (p *Pools) sortStray(stray launch.Stray, target *restoring) {
	log := p.log.With(zap.String("pool_id", string(stray.Pool)), zap.String("replica_id", string(stray.Replica)), zap.Ints("pids", stray.PIDs))
	if p.config.KeepStrays {
		log.Warn("an engine without a record is left alone")
		return
	}
	log.Warn("an engine without a record is ended")
	end := func(ctx context.Context) error { return p.config.Machine.EndStray(ctx, stray) }
	if target == nil {
		p.endAside(stray.Pool, end)
		return
	}
	for index := range target.pool.spec.Replicas {
		if stray.Replica == target.pool.id.Replica(index) {
			target.before[index] = append(target.before[index], end)
			return
		}
	}
	p.endAside(stray.Pool, end)
}

// endAside ends what belongs to nobody, and tries again until it has succeeded. A load or a drain of a pool with this id waits for it,
// and the pool is not deleted before.
func (p *Pools) endAside(id registry.PoolID, end func(context.Context) error) {
	ended := make(chan struct{})
	p.addAside(id, ended)
	p.work.Go(func() {
		defer func() {
			p.dropAside(id, ended)
			close(ended)
		}()
		for {
			ctx, cancel := context.WithTimeout(p.base, stopLimit)
			err := end(ctx)
			cancel()
			if err == nil {
				failpoint.Hit(failpoint.LeftoverEnded)
				return
			}
			p.log.Error("an engine of an earlier manager could not be ended", zap.String("pool_id", string(id)), zap.Error(err))
			select {
			case <-time.After(stopAgain):
			case <-p.ending:
				return
			}
		}
	})
}

// setAside has starts of a pool wait, its drain, and its deletion, until a replica is gone that is none of it any more.
func (p *Pools) setAside(r *replica) {
	id := r.pool.id
	p.addAside(id, r.gone)
	p.work.Go(func() {
		<-r.gone
		p.dropAside(id, r.gone)
	})
}

func (p *Pools) addAside(id registry.PoolID, gone <-chan struct{}) {
	p.asideMu.Lock()
	defer p.asideMu.Unlock()
	p.aside[id] = append(p.aside[id], gone)
}

func (p *Pools) dropAside(id registry.PoolID, gone <-chan struct{}) {
	p.asideMu.Lock()
	defer p.asideMu.Unlock()
	p.aside[id] = slices.DeleteFunc(slices.Clone(p.aside[id]), func(other <-chan struct{}) bool { return other == gone })
}

func (p *Pools) endAllAside(id registry.PoolID, ends []func(context.Context) error) {
	for _, end := range ends {
		p.endAside(id, end)
	}
}

// awaitAside waits until nothing that an earlier manager has left of a pool is still being ended.
func (p *Pools) awaitAside(ctx context.Context, id registry.PoolID) error {
	for _, ended := range p.asideOf(id) {
		if err := await(ctx, ended); err != nil {
			return err
		}
	}
	return nil
}

// asideOf returns what is closed when what an earlier manager has left of a pool is gone. Nobody changes it.
func (p *Pools) asideOf(id registry.PoolID) []<-chan struct{} {
	p.asideMu.Lock()
	defer p.asideMu.Unlock()
	return p.aside[id]
}

// resume hires the crews of the pools, publishes every pool, and returns the replicas that take engines over.
func (p *Pools) resume(pools []*restoring) []*replica {
	var adopting []*replica
	var waiting [][]*replica
	for _, one := range pools {
		adopted, fresh := one.hire()
		adopting = append(adopting, adopted...)
		if len(fresh) > 0 {
			waiting = append(waiting, fresh)
		}
	}
	for _, pool := range p.all() {
		pool.update(func() {})
	}
	p.work.Go(func() { p.giveTurns(waiting) })
	return adopting
}

// hire makes the crew of a pool: replicas that take over, and others that wait for their turn to start.
func (one *restoring) hire() (adopting, fresh []*replica) {
	p := one.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rebooted && p.spec.Residency == registry.Lazy {
		p.wanted, p.why = false, "lazy"
		failpoint.Hit(failpoint.RestoreUnloaded)
		p.commitLocked()
		for _, ends := range one.before {
			p.pools.endAllAside(p.id, ends)
		}
		return nil, nil
	}
	for index := range p.views {
		if p.tracks[index].GaveUp { // The same start would end the same way: ResetBreaker, Preload or Reload start it.
			p.views[index].State = registry.ReplicaFailed
			p.failure = p.exited(p.views[index])
			if leftover, ok := one.adopt[index]; ok { // Of a reload that was cut short before it counted.
				p.pools.endAside(p.id, func(ctx context.Context) error { return p.pools.config.Machine.End(ctx, leftover, "superseded") })
			}
			p.pools.endAllAside(p.id, one.before[index])
			continue
		}
		r := p.newReplica(index, p.made, "restore")
		r.supervised, r.before = true, one.before[index]
		if leftover, ok := one.adopt[index]; ok {
			r.leftover = &leftover
			p.pools.endAllAside(p.id, r.before) // What runs already need not wait for its place.
			r.before = nil
			adopting = append(adopting, r)
		} else {
			turn := make(chan struct{})
			r.turn, r.giveTurn = turn, func() { close(turn) }
			fresh = append(fresh, r)
		}
		p.hireLocked(r)
	}
	return adopting, fresh
}

// giveTurns lets the replicas of some pools at once start, in order, and goes on to the next pool when all of one have
// started or failed. The end of the Pools ends it: the replicas then end without a turn.
func (p *Pools) giveTurns(pools [][]*replica) {
	room := make(chan struct{}, p.config.ParallelLoads)
	for _, replicas := range pools {
		select {
		case room <- struct{}{}:
		case <-p.ending:
			return
		}
		for _, r := range replicas {
			r.giveTurn()
		}
		p.work.Go(func() {
			defer func() { <-room }()
			for _, r := range replicas {
				<-r.tried
			}
		})
	}
}

var errAdoptLimit = errors.New("some engines have not proven themselves yet")

// settleAdoption waits until engines are taken over or have failed to be.
func (p *Pools) settleAdoption(ctx context.Context, replicas []*replica) {
	ctx, cancel := context.WithTimeoutCause(ctx, adoptLimit, errAdoptLimit)
	defer cancel()
	began := p.config.Now()
	for _, r := range replicas {
		if err := await(ctx, r.tried); err != nil {
			p.log.Warn("engines are not taken over yet", zap.Error(err))
			return
		}
	}
	if len(replicas) > 0 {
		p.log.Info("engines of an earlier manager were taken over", zap.Int("engines", len(replicas)), zap.Duration("duration", p.config.Now().Sub(began)))
	}
}
