// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Watcher follows the pools of a node until the test ends.
type Watcher struct {
	changed chan struct{} // has a value when events has grown.

	// mu guards events.
	mu     sync.Mutex
	events []client.Event
}

// Watch begins to follow the pools with these ids, or all if there are none. It returns when the view is complete.
func (n *Node) Watch(tb testing.TB, ids ...string) *Watcher {
	tb.Helper()
	w := &Watcher{changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(tb.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = client.Watch(ctx, n.Pools, ids, func(event client.Event) error { // it ends with the test
			w.mu.Lock()
			w.events = append(w.events, event)
			w.mu.Unlock()
			select {
			case w.changed <- struct{}{}:
			default:
			}
			return nil
		})
	}()
	tb.Cleanup(func() {
		cancel()
		<-ended
	})
	w.await(tb, "the view is complete", func(e client.Event) bool { return e.Kind == client.KindSynced })
	return w
}

// Events are all events so far.
func (w *Watcher) Events() []client.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]client.Event(nil), w.events...)
}

// Until waits for a snapshot for which condition is true, from the first event on, and returns it.
func (w *Watcher) Until(tb testing.TB, what string, condition func(*poolv1.Pool) bool) *poolv1.Pool {
	tb.Helper()
	return w.await(tb, what, func(e client.Event) bool { return e.Kind == client.KindUpsert && condition(e.Pool) }).Pool
}

// UntilDeleted waits until a pool is told to be gone.
func (w *Watcher) UntilDeleted(tb testing.TB, id string) {
	tb.Helper()
	w.await(tb, "pool "+id+" is gone", func(e client.Event) bool { return e.Kind == client.KindDeleted && e.PoolID == id })
}

func (w *Watcher) await(tb testing.TB, what string, condition func(client.Event) bool) client.Event {
	tb.Helper()
	timer := time.NewTimer(2 * Patience)
	defer timer.Stop()
	for seen := 0; ; {
		events := w.Events()
		for _, event := range events[seen:] {
			if condition(event) {
				return event
			}
		}
		seen = len(events)
		select {
		case <-w.changed:
		case <-timer.C:
			tb.Fatalf("no event that says: %s; there were:\n%s", what, describe(events))
		}
	}
}

func describe(events []client.Event) string {
	text := ""
	for _, e := range events {
		text += fmt.Sprintf("%d %s %s %s %v\n", e.Kind, e.PoolID, e.Pool.GetState(), e.Pool.GetPhase(), e.Pool.GetReplicas())
	}
	return text
}

// InState is a condition for Until.
func InState(state poolv1.PoolState) func(*poolv1.Pool) bool {
	return func(pool *poolv1.Pool) bool { return pool.GetState() == state }
}

// InPhase is a condition for Until.
func InPhase(phase poolv1.LoadPhase) func(*poolv1.Pool) bool {
	return func(pool *poolv1.Pool) bool { return pool.GetPhase() == phase }
}
