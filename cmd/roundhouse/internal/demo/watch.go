// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"sync"
	"time"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// watchTimeout is how much later than everybody else a watcher may learn of a state.
const watchTimeout = 5 * time.Second

// watch is a watcher of the pool, in the background.
type watch struct {
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex // guards what follows
	state   poolv1.PoolState
	changed chan struct{} // closed and replaced at each change
	count   int
}

// beginWatch follows the pool and hands every change to tell, in words, until end is called or ctx ends.
func beginWatch(ctx context.Context, pools poolv1.PoolManagerServiceClient, tell func(string)) *watch {
	ctx, stop := context.WithCancel(ctx)
	w := &watch{stop: stop, done: make(chan struct{}), changed: make(chan struct{})}
	go func() { // ended by end
		defer close(w.done)
		last := ""
		_ = client.Watch(ctx, pools, []string{poolID}, func(event client.Event) error { // a run that needs it waits for a state
			if event.Kind != client.KindUpsert {
				return nil
			}
			if text := render.PoolLine(event.Pool); text != last {
				last = text
				tell(text)
			}
			w.see(event.Pool.GetState())
			return nil
		})
	}()
	return w
}

func (w *watch) see(state poolv1.PoolState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.state = state
	w.count++
	close(w.changed)
	w.changed = make(chan struct{})
}

// wait returns when the watcher has learned that the pool is in a state that others know of already.
func (w *watch) wait(ctx context.Context, state poolv1.PoolState) error {
	timer := time.NewTimer(watchTimeout)
	defer timer.Stop()
	for {
		w.mu.Lock()
		reached, changed := w.state == state, w.changed
		w.mu.Unlock()
		if reached {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return reason.New(reason.Internal, "the watcher was not told that the pool is "+render.State(state),
				reason.Remedy("this is a defect of Roundhouse: please report it"))
		}
	}
}

// changes is how many snapshots came.
func (w *watch) changes() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// end stops the watcher and returns when it has stopped.
func (w *watch) end() {
	w.stop()
	<-w.done
}
