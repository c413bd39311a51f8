// SPDX-License-Identifier: Apache-2.0

// Package registry holds the newest snapshot of every pool and tells watchers of each change.
//
// Every change has a revision, one higher than the one before, over all pools. A watcher asks for what has changed
// since a revision and gets the newest snapshot of each pool that changed and every delete, in the order of their
// revisions: a slow watcher gets fewer steps, never a wrong end. Deletes are remembered for a bounded number and time;
// a watcher that asks from before that is told to begin anew.
//
// Writers never wait for watchers. Nothing is stored: a Registry begins empty, in an epoch of its own, and a token of
// another epoch is worthless. A Registry may be used by many goroutines at once; lifecycle alone writes.
package registry

import (
	"container/list"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
)

// How many deletes are remembered and for how long, unless a Config says otherwise. A watcher that was away for less
// resumes without a reset.
const (
	defaultTombstones   = 4096
	defaultTombstoneAge = 10 * time.Minute
)

// Config of a Registry.
type Config struct {
	// Tombstones is how many deletes are remembered; 0 means 4096.
	Tombstones int
	// TombstoneAge is how long a delete is remembered; 0 means 10 minutes.
	TombstoneAge time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Registry is the set of all pools. Make one with New.
type Registry struct {
	epoch         string
	maxTombstones int
	maxAge        time.Duration
	now           func() time.Time

	// mu guards all below. Nothing waits or does I/O while holding it.
	mu       sync.RWMutex
	revision uint64
	// live has a *Pool an element, oldest revision first; pools finds the element of an id.
	live  *list.List
	pools map[PoolID]*list.Element
	// tombstones has a tombstone an element, oldest revision first.
	tombstones *list.List
	// forgotten is the revision of the newest delete that is not remembered any more.
	forgotten uint64
	// changed is closed, and replaced, at each change.
	changed chan struct{}
}

type tombstone struct {
	id       PoolID
	revision uint64
	at       time.Time
}

// New returns an empty Registry in a new epoch.
func New(config Config) (*Registry, error) {
	if config.Tombstones < 0 || config.TombstoneAge < 0 {
		return nil, fmt.Errorf("registry: negative history: %d deletes, %s", config.Tombstones, config.TombstoneAge)
	}
	r := &Registry{
		epoch:         strings.ReplaceAll(uuid.NewString(), "-", "")[:16],
		maxTombstones: config.Tombstones,
		maxAge:        config.TombstoneAge,
		now:           config.Now,
		live:          list.New(),
		pools:         make(map[PoolID]*list.Element),
		tombstones:    list.New(),
		changed:       make(chan struct{}),
	}
	if r.maxTombstones == 0 {
		r.maxTombstones = defaultTombstones
	}
	if r.maxAge == 0 {
		r.maxAge = defaultTombstoneAge
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r, nil
}

// Put makes p the newest snapshot of its pool, gives it the next revision, and returns it as it is now known.
func (r *Registry) Put(p Pool) *Pool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revision++
	p.Revision = r.revision
	p.Updated = r.now()
	if old, ok := r.pools[p.Spec.ID]; ok {
		r.live.Remove(old)
	}
	r.pools[p.Spec.ID] = r.live.PushBack(&p)
	r.announceLocked()
	return &p
}

// Delete removes a pool. It says whether there was one.
func (r *Registry) Delete(id PoolID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, ok := r.pools[id]
	if !ok {
		return false
	}
	r.live.Remove(old)
	delete(r.pools, id)
	r.revision++
	r.tombstones.PushBack(tombstone{id: id, revision: r.revision, at: r.now()})
	r.forgetLocked()
	r.announceLocked()
	return true
}

// Get returns the newest snapshot of a pool.
func (r *Registry) Get(id PoolID) (*Pool, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	element, ok := r.pools[id]
	if !ok {
		return nil, false
	}
	return poolOf(element), true
}

// List returns the newest snapshot of every pool, by id.
func (r *Registry) List() []*Pool {
	r.mu.RLock()
	elements := slices.Collect(maps.Values(r.pools))
	pools := make([]*Pool, len(elements))
	for i, element := range elements {
		pools[i] = poolOf(element)
	}
	r.mu.RUnlock()
	slices.SortFunc(pools, func(a, b *Pool) int { return strings.Compare(string(a.Spec.ID), string(b.Spec.ID)) })
	return pools
}

func (r *Registry) announceLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *Registry) forgetLocked() {
	oldest := r.now().Add(-r.maxAge)
	for front := r.tombstones.Front(); front != nil; front = r.tombstones.Front() {
		stone := tombstoneOf(front)
		if r.tombstones.Len() <= r.maxTombstones && stone.at.After(oldest) {
			return
		}
		r.forgotten = stone.revision
		r.tombstones.Remove(front)
	}
}

// The lists hold one type each; only Put and Delete fill them.
func poolOf(element *list.Element) *Pool {
	pool, _ := element.Value.(*Pool)
	return pool
}

func tombstoneOf(element *list.Element) tombstone {
	stone, _ := element.Value.(tombstone)
	return stone
}
