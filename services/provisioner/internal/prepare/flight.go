// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/progress"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// errAbandoned is the cause of work that ended because nobody waited for it.
var errAbandoned = reason.New(reason.Cancelled, "everybody who asked for the work has left", reason.Remedy("ask again: what was finished is kept"))

// errWithdrawn is the cause of a wait that ended because of CancelPrepare.
var errWithdrawn = reason.New(reason.Cancelled, "the request was cancelled by its consumer", reason.Remedy("ask again: what was finished is kept"))

// flights runs work once for all who ask for the same key at the same time.
type flights[T any] struct {
	start func(func(context.Context)) error
	grace time.Duration
	limit int // of flights at once; 0 means none

	// mu guards flying and, of each flight, guests, queue, last, abandoned, grace and cancel. Nothing waits while holding it.
	mu     sync.Mutex
	flying map[string]*flight[T]
}

// flight is one piece of work and those who wait for it.
type flight[T any] struct {
	key   string
	track *track
	ended chan struct{} // closed when value and err are set

	value T
	err   error

	guests map[*guest]bool
	// queue are those who wait for the end of an abandoned flight, to begin again.
	queue map[*guest]bool
	// last is the name of the guest who left, or was dismissed, last.
	last      string
	abandoned bool
	grace     *time.Timer
	cancel    context.CancelCauseFunc
}

// guest is one who waits for a flight. It joins one flight at most, once.
type guest struct {
	// name is for withdraw; empty means that it cannot be withdrawn.
	name string
	// dismiss ends the context that it waits with. Needed only with a name.
	dismiss context.CancelCauseFunc
}

func newFlights[T any](start func(func(context.Context)) error, grace time.Duration, limit int) *flights[T] {
	return &flights[T]{start: start, grace: grace, limit: limit, flying: make(map[string]*flight[T])}
}

// join returns the flight of key, and begins one with work if there is none; every join needs one leave. It waits for the
// end of a flight that was abandoned, because the work of a key never runs twice at once.
func (f *flights[T]) join(ctx context.Context, key string, who *guest, work func(context.Context, *track) (T, error)) (*flight[T], error) {
	for {
		joined, created, err := f.take(key, who)
		switch {
		case err != nil:
			return nil, err
		case joined == nil: // abandoned
			select {
			case <-created.ended:
				continue
			case <-ctx.Done():
				f.leave(created, who)
				return nil, fmt.Errorf("wait for cancelled work to end: %w", context.Cause(ctx))
			}
		case created == nil:
			return joined, nil
		}
		if err := f.start(func(ctx context.Context) { f.fly(ctx, created, work) }); err != nil {
			f.end(created, *new(T), err)
			return nil, err
		}
		return joined, nil
	}
}

// take returns the flight of key with one more guest. created is that flight if it is new; if joined is nil, created is
// an abandoned flight that has not ended yet.
func (f *flights[T]) take(key string, who *guest) (joined, created *flight[T], err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if found, ok := f.flying[key]; ok {
		if found.abandoned {
			found.queue[who] = true
			return nil, found, nil
		}
		found.guests[who] = true
		if found.grace != nil {
			found.grace.Stop()
			found.grace = nil
		}
		return found, nil, nil
	}
	if f.limit > 0 && len(f.flying) >= f.limit {
		return nil, nil, reason.New(reason.LimitExceeded, fmt.Sprintf("%d specs are being prepared already", f.limit),
			reason.RetryAfter(f.grace), reason.Remedy("wait until one is done"))
	}
	created = &flight[T]{
		key: key, track: newTrack(), ended: make(chan struct{}), guests: map[*guest]bool{who: true}, queue: map[*guest]bool{},
	}
	f.flying[key] = created
	return created, created, nil
}

// fly does the work and hands its result to all who wait.
func (f *flights[T]) fly(ctx context.Context, flight *flight[T], work func(context.Context, *track) (T, error)) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.mu.Lock()
	flight.cancel = cancel
	if flight.abandoned {
		cancel(errAbandoned)
	}
	f.mu.Unlock()
	value, err := work(ctx, flight.track)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("work was cut off: %w", context.Cause(ctx))
	}
	f.end(flight, value, err)
}

func (f *flights[T]) end(flight *flight[T], value T, err error) {
	flight.value, flight.err = value, err
	f.mu.Lock()
	delete(f.flying, flight.key)
	if flight.grace != nil {
		flight.grace.Stop()
	}
	f.mu.Unlock()
	close(flight.ended)
	// What failed has said so itself; what still runs was cut off because of it.
	flight.track.hub.Close(progress.Outcome{State: enginev1.StepState_STEP_STATE_CANCELLED})
}

// leave takes a guest away; one who has left already, or was dismissed, changes nothing. When it was the last, the work is
// cancelled once the grace is over.
func (f *flights[T]) leave(flight *flight[T], who *guest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(flight.queue, who)
	if !flight.guests[who] {
		return
	}
	delete(flight.guests, who)
	flight.last = who.name
	select {
	case <-flight.ended:
		return
	default:
	}
	switch {
	case len(flight.guests) > 0:
	case f.grace == 0:
		flight.abandonLocked()
	default:
		flight.grace = time.AfterFunc(f.grace, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			if len(flight.guests) == 0 {
				flight.abandonLocked()
			}
		})
	}
}

// withdraw dismisses every guest of that name and cancels the work that nobody else waits for, without a grace, also where
// the name's guest was the last and has left. found tells whether there was any of it; once all channels of ended are
// closed, nothing runs any more that this name alone had asked for.
func (f *flights[T]) withdraw(name string) (found bool, ended []<-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, flight := range f.flying {
		mine := len(flight.guests) == 0 && flight.last == name
		for _, waiting := range []map[*guest]bool{flight.guests, flight.queue} {
			for who := range waiting {
				if who.name == name {
					delete(waiting, who)
					who.dismiss(errWithdrawn)
					flight.last, mine = name, true
				}
			}
		}
		if !mine {
			continue
		}
		found = true
		if len(flight.guests) == 0 {
			flight.abandonLocked()
			ended = append(ended, flight.ended)
		}
	}
	return found, ended
}

// landed waits for the end of a flight that was abandoned, so that who was its last guest ends after it.
func (f *flights[T]) landed(flight *flight[T]) {
	f.mu.Lock()
	abandoned := flight.abandoned
	f.mu.Unlock()
	if abandoned {
		<-flight.ended
	}
}

func (f *flight[T]) abandonLocked() {
	f.abandoned = true
	if f.cancel != nil {
		f.cancel(errAbandoned)
	}
}

// result waits for the end of the flight.
func (f *flight[T]) result(ctx context.Context) (T, error) {
	select {
	case <-f.ended:
		return f.value, f.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("wait for the work: %w", context.Cause(ctx))
	}
}

// outcomeOf is how a step ends whose work ended with err.
func outcomeOf(err error) progress.Outcome {
	switch {
	case err == nil:
		return progress.Outcome{}
	case reason.Of(err) == reason.Cancelled, reason.Of(err) == reason.ShuttingDown:
		return progress.Outcome{State: enginev1.StepState_STEP_STATE_CANCELLED}
	default:
		return progress.Outcome{State: enginev1.StepState_STEP_STATE_FAILED, Error: reason.Redact(err.Error())}
	}
}

// both runs two functions at once and waits for both. The first error cancels the other and is returned.
func both(ctx context.Context, a, b func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	errs := make(chan error, 1)
	go func() {
		err := b(ctx)
		if err != nil {
			cancel(errSibling{err})
		}
		errs <- err
	}()
	err := a(ctx)
	if err != nil {
		cancel(errSibling{err})
	}
	err = errors.Join(err, <-errs)
	if first, ok := errors.AsType[errSibling](context.Cause(ctx)); ok {
		return first.error
	}
	return err
}

// errSibling is the cause of work that ended because another part of its job failed.
type errSibling struct{ error }

func (e errSibling) Unwrap() error { return e.error }
