// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Delays between attempts to resume a Watch: the first is short for a manager that restarts, the last is what a manager
// that is down may cost.
const (
	firstDelay = 50 * time.Millisecond
	maxDelay   = 5 * time.Second
)

// EventKind is what an Event tells.
type EventKind int

// The kinds of events.
const (
	// KindUpsert is a pool that is new or has changed.
	KindUpsert EventKind = iota + 1
	// KindDeleted is a pool that is gone.
	KindDeleted
	// KindSynced says that the view is complete as of now: at the beginning, and after each interruption.
	KindSynced
	// KindInterrupted says that the connection was lost: the view may be out of date until the next KindSynced.
	KindInterrupted
	// KindReset says that the manager knows the token of ResumeFrom no more: what the caller has from before is void, and
	// all is told as to a new reader.
	KindReset
	// KindHeartbeat says that nothing has changed and the connection lives.
	KindHeartbeat
)

// Event is one change of the view that Watch keeps for its caller.
type Event struct {
	// Kind is what it tells.
	Kind EventKind
	// PoolID is the pool of an upsert or a deletion.
	PoolID string
	// Pool is the newest snapshot for an upsert and the last known one for a deletion. It must not be changed.
	Pool *poolv1.Pool
	// Err is why the connection was lost.
	Err error
	// Token makes ResumeFrom go on after this event without a gap; what came since the last synced event may come again.
	// Empty means that only beginning anew does.
	Token string
}

// WatchOption changes what Watch does.
type WatchOption func(*watch)

// ResumeFrom goes on after the event that had the token, told by an earlier Watch of the same pools: what has changed
// since comes before KindSynced. If the manager knows the token no more, KindReset comes first. An empty token changes
// nothing.
func ResumeFrom(token string) WatchOption {
	return func(w *watch) { w.token, w.partial = token, token != "" }
}

// Watch tells fn of the pools with the given ids, or of all if there are none, and of every change until ctx ends or fn
// fails. It blocks, and calls fn from the same goroutine.
//
// Interruptions heal by themselves: when the manager is away, shuts down or cuts a slow reader off, Watch resumes with its
// last token, as often as it takes. If the manager cannot resume, all pools are told again, and those that have vanished
// meanwhile as deletions, before KindSynced; so the upserts and deletions alone always add up to the manager's state.
// The same snapshot may come twice.
//
// The error is the cause of ctx, or fn's, or a *reason.Error of the manager that repeating does not heal.
func Watch(ctx context.Context, pools poolv1.PoolManagerServiceClient, poolIDs []string, fn func(Event) error, opts ...WatchOption) error {
	w := &watch{pools: pools, poolIDs: poolIDs, fn: fn, known: map[string]*poolv1.Pool{}}
	for _, opt := range opts {
		opt(w)
	}
	delay := firstDelay
	for {
		err := w.follow(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case w.fnErr != nil:
			return w.fnErr
		case !heals(err):
			return reason.FromStatus(err)
		}
		if w.heard {
			delay = firstDelay
		}
		if err := fn(Event{Kind: KindInterrupted, Err: err, Token: w.token}); err != nil {
			return err
		}
		jitter := rand.N(delay / 2) //nolint:gosec // it spreads clients out, nothing depends on it
		if err := sleep(ctx, delay/2+jitter); err != nil {
			return err
		}
		delay = min(2*delay, maxDelay)
	}
}

// heals tells whether a Watch that ended with err may be resumed: the manager is away, or it ended the stream for a cause
// that does not lie in the request.
func heals(err error) bool {
	if errors.Is(err, io.EOF) {
		return true
	}
	code := status.Code(err)
	return code == codes.Unavailable || code == codes.ResourceExhausted
}

// watch is the view of one Watch.
type watch struct {
	pools   poolv1.PoolManagerServiceClient
	poolIDs []string
	fn      func(Event) error

	token string                  // of the last message after a synced; before it a resume could leave a gap
	known map[string]*poolv1.Pool // what fn was told
	stale map[string]bool         // pools of known that a beginning anew has not told yet; nil while nothing is in doubt
	heard bool                    // the attempt under way got a message
	// partial means that known may lack pools, since the caller resumed from a token and has the rest.
	partial bool
	fnErr   error
}

// follow runs one stream until it ends. It never returns nil.
func (w *watch) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.heard = false
	if w.token == "" {
		w.doubt()
	}
	stream, err := w.pools.Watch(ctx, &poolv1.WatchRequest{ResumeToken: w.token, PoolIds: w.poolIDs})
	if err != nil {
		return err
	}
	synced := false
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		w.heard = true
		if message.GetSynced() != nil {
			synced = true
		}
		if message.GetReset_() != nil {
			synced, w.token = false, ""
		}
		next := w.token
		if synced {
			next = message.GetResumeToken()
		}
		if w.fnErr = w.take(message, next); w.fnErr != nil {
			return w.fnErr
		}
		w.token = next
	}
}

// take tells of one message, after which next is the token.
func (w *watch) take(message *poolv1.WatchResponse, next string) error {
	switch event := message.GetEvent().(type) {
	case *poolv1.WatchResponse_Upsert:
		return w.upsert(event.Upsert, next)
	case *poolv1.WatchResponse_Deleted:
		return w.remove(event.Deleted.GetPoolId(), next)
	case *poolv1.WatchResponse_Reset_:
		return w.reset()
	case *poolv1.WatchResponse_Synced:
		return w.settle(next)
	case *poolv1.WatchResponse_Heartbeat:
		return w.fn(Event{Kind: KindHeartbeat, Token: next})
	}
	return nil // of a newer manager
}

// reset makes all that is known not confirmed. What the caller alone knows of cannot be told to be gone pool by pool.
func (w *watch) reset() error {
	w.doubt()
	if !w.partial {
		return nil
	}
	w.partial = false
	clear(w.known)
	clear(w.stale)
	return w.fn(Event{Kind: KindReset})
}

// doubt marks all that is known as not confirmed.
func (w *watch) doubt() {
	w.stale = map[string]bool{}
	for id := range w.known {
		w.stale[id] = true
	}
}

// settle tells the deletion of all that was not confirmed, and that the view is complete.
func (w *watch) settle(next string) error {
	for _, id := range slices.Sorted(maps.Keys(w.stale)) {
		if err := w.remove(id, w.token); err != nil {
			return err
		}
	}
	w.stale = nil
	return w.fn(Event{Kind: KindSynced, Token: next})
}

func (w *watch) upsert(pool *poolv1.Pool, next string) error {
	id := pool.GetPoolId()
	delete(w.stale, id)
	w.known[id] = pool
	return w.fn(Event{Kind: KindUpsert, PoolID: id, Pool: pool, Token: next})
}

func (w *watch) remove(id, next string) error {
	last := w.known[id]
	delete(w.stale, id)
	delete(w.known, id)
	return w.fn(Event{Kind: KindDeleted, PoolID: id, Pool: last, Token: next})
}

// sleep waits for d, or less if ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
