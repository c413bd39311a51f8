// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// How often a record that could not be saved is tried again: what made it fail, a full disk most likely, lasts.
const saveAgain = 5 * time.Second

// keeper makes the record of a pool on disk be what it should be. While one save is under way the newest wish alone is
// remembered; a wish that failed is tried again until it is fulfilled or replaced. It is guarded by the pool's lock.
type keeper struct {
	// durable is what the disk should say of the pool; nil if it should say nothing.
	durable *made
	// wish is what is to be written next, with those who wait for it.
	wish    *wish
	writing bool
}

// wanted is whether the disk should say that the pool is to serve.
func (k *keeper) wanted() bool { return k.durable != nil && k.durable.wanted }

type wish struct {
	record  state.PoolRecord
	remove  bool
	waiters []chan<- error
}

// commitLocked makes the pool as it is now what the disk should say, and returns a channel that tells when it does.
func (p *pool) commitLocked() <-chan error {
	durable := p.made
	p.keeper.durable = &durable
	return p.saveLocked()
}

// saveLocked writes what the disk should say, with what supervision remembers now.
func (p *pool) saveLocked() <-chan error {
	told := make(chan error, 1)
	if p.gone && p.keeper.durable != nil { // Forgetting it has won.
		return done(nil)
	}
	next := &wish{waiters: []chan<- error{told}}
	if p.keeper.durable == nil {
		next.remove = true
	} else {
		record, err := p.recordLocked(*p.keeper.durable)
		if err != nil {
			return done(err)
		}
		next.record = record
	}
	if p.keeper.wish != nil {
		next.waiters = append(next.waiters, p.keeper.wish.waiters...)
	}
	p.keeper.wish = next
	if !p.keeper.writing {
		p.keeper.writing = true
		p.pools.work.Go(p.write)
	}
	return told
}

// write fulfils wishes until there is none. When nothing may be waited for any more, a wish that has failed is tried once again.
func (p *pool) write() {
	for last := false; ; {
		p.mu.Lock()
		current := p.keeper.wish
		p.keeper.wish = nil
		if current == nil {
			p.keeper.writing = false
			p.mu.Unlock()
			return
		}
		p.mu.Unlock()
		var err error
		if current.remove {
			err = p.pools.config.Records.RemovePool(string(p.id))
		} else {
			err = p.pools.config.Records.SavePool(current.record)
		}
		for _, waiter := range current.waiters {
			waiter <- err
		}
		if err == nil {
			continue
		}
		p.pools.log.Error("record of a pool was not saved", zap.String("pool_id", string(p.id)), zap.Error(err))
		if last {
			return
		}
		select {
		case <-time.After(saveAgain):
		case <-p.pools.ending:
			last = true
		}
		p.mu.Lock()
		if p.keeper.wish == nil {
			current.waiters = nil
			p.keeper.wish = current
		}
		p.mu.Unlock()
	}
}

// recordLocked is the record of the pool as m says, with what its supervision remembers.
func (p *pool) recordLocked(m made) (state.PoolRecord, error) {
	spec, err := encodeSpec(m.spec)
	if err != nil {
		return state.PoolRecord{}, err
	}
	record := state.PoolRecord{
		PoolID: string(p.id), Wanted: m.wanted, Edition: m.edition, Spec: spec, Reason: m.why,
		CreatedAt: p.created, SavedAt: p.pools.config.Now(), BootID: p.pools.config.BootID,
	}
	if m.prepared != nil {
		if record.Prepared, err = (proto.MarshalOptions{Deterministic: true}).Marshal(m.prepared); err != nil {
			return state.PoolRecord{}, err
		}
	}
	if m.failure != nil && !m.wanted {
		record.Failure = &state.Failure{Reason: m.failure.Reason.String(), Message: m.failure.Message, At: m.failure.At}
	}
	for index := range m.spec.Replicas {
		track, err := encodeTrack(p.tracks[index], record.SavedAt)
		if err != nil {
			return state.PoolRecord{}, err
		}
		record.Replicas = append(record.Replicas, state.ReplicaRecord{
			Index: index, Generation: p.generations[index], Track: track, LoadTime: p.loadTimes[index],
		})
	}
	return record, nil
}
