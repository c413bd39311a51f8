// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"sync"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Traffic is a number of clients who ask the engines of a pool one request after the other, where Watch says that they are,
// and try nothing twice. While Watch names no engine that is READY they wait.
type Traffic struct {
	end     context.CancelFunc
	clients sync.WaitGroup

	mu       sync.Mutex // guards what follows
	changed  chan struct{}
	ready    []string
	next     int
	asked    int
	answered chan struct{} // has a value after an answer
	failures []error
}

// Traffic begins to ask. It ends with the test if Stop is not called.
func (n *Node) Traffic(tb testing.TB, pool string, chat Chat, clients int) *Traffic {
	tb.Helper()
	ctx, cancel := context.WithCancel(tb.Context())
	t := &Traffic{end: cancel, changed: make(chan struct{}), answered: make(chan struct{}, 1)}
	t.clients.Go(func() {
		_ = client.Watch(ctx, n.Pools, []string{pool}, func(event client.Event) error { // it ends with the traffic
			switch event.Kind {
			case client.KindUpsert:
				t.see(event.Pool)
			case client.KindDeleted:
				t.see(nil)
			default:
			}
			return nil
		})
	})
	for range clients {
		t.clients.Go(func() {
			for {
				endpoint := t.choose(ctx)
				if ctx.Err() != nil {
					return
				}
				_, err := chat.Ask(context.WithoutCancel(ctx), endpoint)
				t.count(err)
			}
		})
	}
	tb.Cleanup(func() { t.Stop() })
	return t
}

func (t *Traffic) see(pool *poolv1.Pool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ready = nil
	for _, replica := range pool.GetReplicas() {
		if replica.GetState() == poolv1.ReplicaState_REPLICA_STATE_READY {
			t.ready = append(t.ready, replica.GetEndpoint())
		}
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// choose returns the next endpoint in turn.
func (t *Traffic) choose(ctx context.Context) string {
	for {
		t.mu.Lock()
		ready, changed := t.ready, t.changed
		t.next++
		turn := t.next
		t.mu.Unlock()
		if len(ready) > 0 {
			return ready[turn%len(ready)]
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ""
		}
	}
}

func (t *Traffic) count(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked++
	if err != nil {
		t.failures = append(t.failures, err)
	}
	select {
	case t.answered <- struct{}{}:
	default:
	}
}

// Await waits until so many more requests have ended.
func (t *Traffic) Await(tb testing.TB, more int) {
	tb.Helper()
	t.mu.Lock()
	goal := t.asked + more
	t.mu.Unlock()
	for {
		t.mu.Lock()
		asked := t.asked
		t.mu.Unlock()
		if asked >= goal {
			return
		}
		Await(tb, "more requests have ended", t.answered)
	}
}

// Stop asks nothing more, and returns how many requests have ended, and how those that have failed did.
func (t *Traffic) Stop() (asked int, failures []error) {
	t.end()
	t.clients.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked, t.failures
}
