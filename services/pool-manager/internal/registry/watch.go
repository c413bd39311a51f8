// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// EventKind is what an Event tells.
type EventKind int

// The kinds of event, as roundhouse.pool.v1.WatchResponse describes them.
const (
	EventUpsert EventKind = iota + 1
	EventDelete
	EventSynced
	EventReset
)

// Event is one message to a watcher.
type Event struct {
	Kind EventKind
	// Pool is the snapshot of an upsert.
	Pool *Pool
	// ID is the pool of an upsert or a delete.
	ID PoolID
	// Token resumes after this event.
	Token string

	revision uint64
}

// Watcher reads changes. It belongs to one goroutine, holds nothing that must be given back and may be dropped.
type Watcher struct {
	registry *Registry
	filter   map[PoolID]struct{}
	cursor   uint64
	begun    bool
	reset    bool
	fresh    bool
}

// Watch returns a Watcher for the pools in filter, all if it is empty, from where token says. A token that is empty
// begins anew; one that is worthless does too, after a reset.
func (r *Registry) Watch(token string, filter []PoolID) *Watcher {
	w := &Watcher{registry: r}
	if len(filter) > 0 {
		w.filter = make(map[PoolID]struct{}, len(filter))
		for _, id := range filter {
			w.filter[id] = struct{}{}
		}
	}
	if token == "" {
		w.fresh = true
		return w
	}
	cursor, ok := r.parseToken(token)
	w.cursor = cursor
	w.reset = !ok
	return w
}

// Next returns what has changed since the last call, at least one event, in order. The first call returns at once and
// ends with synced; later ones wait for a change until ctx is done, whose cause they return.
func (w *Watcher) Next(ctx context.Context) ([]Event, error) {
	for {
		events, changed := w.collect()
		if len(events) > 0 {
			return events, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Token resumes after everything that Next has returned.
func (w *Watcher) Token() string {
	return w.registry.token(w.cursor)
}

func (w *Watcher) collect() ([]Event, <-chan struct{}) {
	r := w.registry
	r.mu.RLock()
	defer r.mu.RUnlock()
	var events []Event
	if w.reset || (!w.fresh && w.cursor < r.forgotten) {
		events = append(events, Event{Kind: EventReset, Token: r.token(0)})
		w.fresh, w.begun = true, false
	}
	if w.fresh {
		w.cursor = 0
	}
	changes := r.sinceLocked(w.cursor, w.filter)
	if w.fresh {
		changes = slices.DeleteFunc(changes, func(e Event) bool { return e.Kind == EventDelete })
	}
	w.cursor = r.revision
	w.fresh, w.reset = false, false
	events = append(events, changes...)
	if !w.begun {
		w.begun = true
		events = append(events, Event{Kind: EventSynced, Token: r.token(w.cursor)})
	}
	return events, r.changed
}

// sinceLocked returns the newest snapshot of each pool that changed after cursor, and each delete, by revision.
func (r *Registry) sinceLocked(cursor uint64, filter map[PoolID]struct{}) []Event {
	wanted := func(id PoolID) bool {
		_, ok := filter[id]
		return ok || filter == nil
	}
	var events []Event
	for element := r.live.Back(); element != nil && poolOf(element).Revision > cursor; element = element.Prev() {
		if pool := poolOf(element); wanted(pool.Spec.ID) {
			events = append(events, Event{Kind: EventUpsert, Pool: pool, ID: pool.Spec.ID, revision: pool.Revision})
		}
	}
	for element := r.tombstones.Back(); element != nil && tombstoneOf(element).revision > cursor; element = element.Prev() {
		if stone := tombstoneOf(element); wanted(stone.id) {
			events = append(events, Event{Kind: EventDelete, ID: stone.id, revision: stone.revision})
		}
	}
	slices.SortFunc(events, func(a, b Event) int {
		if a.revision < b.revision {
			return -1
		}
		return 1
	})
	for i := range events {
		events[i].Token = r.token(events[i].revision)
	}
	return events
}

// A token is the epoch and a revision. Clients must not read it, so it is not made to be read.
func (r *Registry) token(revision uint64) string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%s.%d", r.epoch, revision))
}

func (r *Registry) parseToken(token string) (uint64, bool) {
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return 0, false
	}
	epoch, number, ok := strings.Cut(string(text), ".")
	if !ok || epoch != r.epoch {
		return 0, false
	}
	revision, err := strconv.ParseUint(number, 10, 64)
	if err != nil {
		return 0, false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return revision, revision <= r.revision
}
