// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// owner runs tasks as Service.Run does.
type owner struct {
	ctx    context.Context //nolint:containedctx // the life of the tasks
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup
}

func newOwner(t *testing.T) *owner {
	t.Helper()
	o := &owner{}
	o.ctx, o.cancel = context.WithCancelCause(t.Context())
	return o
}

func (o *owner) start(task func(context.Context)) error {
	o.wg.Go(func() { task(o.ctx) })
	return nil
}

// work counts how often it runs, and runs until it is released or cut off.
type work struct {
	runs    int
	release chan struct{}
	cause   error
}

func (w *work) do(ctx context.Context, t *track) (int, error) {
	w.runs++
	t.hub.Begin("step", "a step")
	select {
	case <-w.release:
		return w.runs, nil
	case <-ctx.Done():
		w.cause = context.Cause(ctx)
		return 0, ctx.Err()
	}
}

// pass lets time pass in a bubble.
func pass(d time.Duration) { <-time.After(d) }

func TestFlightIsShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(t), &work{release: make(chan struct{})}
		f := newFlights[int](o.start, time.Second, 0)
		first, err := f.join(t.Context(), "k", w.do)
		if err != nil {
			t.Fatal(err)
		}
		second, err := f.join(t.Context(), "k", w.do)
		if err != nil || second != first {
			t.Fatalf("the second joined %p, %v, want %p", second, err, first)
		}
		f.leave(first)
		pass(time.Minute)
		synctest.Wait()
		close(w.release)
		if got, err := second.result(t.Context()); got != 1 || err != nil {
			t.Errorf("result %d, %v, want 1", got, err)
		}
		f.leave(second)
		third, err := f.join(t.Context(), "k", w.do)
		if err != nil || third == first {
			t.Fatalf("a flight that has ended was joined: %v", err)
		}
		if got, err := third.result(t.Context()); got != 2 || err != nil {
			t.Errorf("result %d, %v, want 2", got, err)
		}
		f.leave(third)
		o.wg.Wait()
	})
}

func TestLastLeaverCancelsAfterTheGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(t), &work{release: make(chan struct{})}
		f := newFlights[int](o.start, 10*time.Second, 0)
		first, err := f.join(t.Context(), "k", w.do)
		if err != nil {
			t.Fatal(err)
		}
		f.leave(first)
		pass(9 * time.Second)
		synctest.Wait()
		if w.cause != nil {
			t.Fatalf("cut off within the grace: %v", w.cause)
		}
		again, err := f.join(t.Context(), "k", w.do)
		if err != nil || again != first {
			t.Fatalf("the flight was not joined within the grace: %v", err)
		}
		pass(time.Hour)
		synctest.Wait()
		if w.cause != nil {
			t.Fatalf("cut off while somebody waits: %v", w.cause)
		}
		f.leave(again)
		pass(10 * time.Second)
		o.wg.Wait()
		if !errors.Is(w.cause, errAbandoned) {
			t.Errorf("cause %v, want %v", w.cause, errAbandoned)
		}
		if _, err := again.result(t.Context()); reason.Of(err) != reason.Cancelled {
			t.Errorf("result %v, want CANCELLED", err)
		}
	})
}

func TestAbandonedWorkEndsBeforeItBeginsAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t)
		f := newFlights[int](o.start, 0, 0)
		slow := make(chan struct{})
		ended := false
		first, err := f.join(t.Context(), "k", func(ctx context.Context, _ *track) (int, error) {
			<-ctx.Done()
			<-slow
			ended = true
			return 0, ctx.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		f.leave(first)
		joined := make(chan int)
		go func() {
			second, err := f.join(t.Context(), "k", func(context.Context, *track) (int, error) {
				if !ended {
					t.Error("the work runs twice at once")
				}
				return 2, nil
			})
			if err != nil {
				t.Error(err)
			}
			got, _ := second.result(t.Context())
			f.leave(second)
			joined <- got
		}()
		synctest.Wait()
		close(slow)
		if got := <-joined; got != 2 {
			t.Errorf("result %d, want that of the second run", got)
		}
		o.wg.Wait()
	})
}

func TestWaitForAbandonedWorkEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOwner(t)
		f := newFlights[int](o.start, 0, 0)
		slow := make(chan struct{})
		first, err := f.join(t.Context(), "k", func(context.Context, *track) (int, error) {
			<-slow
			return 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		f.leave(first)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.join(ctx, "k", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("join: %v, want the end of its context", err)
		}
		close(slow)
		o.wg.Wait()
	})
}

func TestFlightLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(t), &work{release: make(chan struct{})}
		f := newFlights[int](o.start, time.Second, 1)
		first, err := f.join(t.Context(), "a", w.do)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.join(t.Context(), "b", w.do); reason.Of(err) != reason.LimitExceeded {
			t.Errorf("one more than the limit: %v, want LIMIT_EXCEEDED", err)
		}
		same, err := f.join(t.Context(), "a", w.do)
		if err != nil {
			t.Errorf("joining at the limit: %v", err)
		}
		f.leave(same)
		close(w.release)
		if _, err := first.result(t.Context()); err != nil {
			t.Error(err)
		}
		f.leave(first)
		o.wg.Wait()
		if len(f.flying) != 0 {
			t.Errorf("%d flights are left", len(f.flying))
		}
	})
}

func TestBoth(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	wait := func(ctx context.Context) error {
		<-ctx.Done()
		return ctx.Err()
	}
	fail := func(context.Context) error { return failed }
	well := func(context.Context) error { return nil }
	for _, tt := range []struct {
		name string
		a, b func(context.Context) error
		want error
	}{
		{name: "both well", a: well, b: well},
		{name: "the first fails", a: fail, b: wait, want: failed},
		{name: "the second fails", a: wait, b: fail, want: failed},
		{name: "one fails and the other ends well", a: well, b: fail, want: failed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := both(t.Context(), tt.a, tt.b); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("both: %v, want %v", err, tt.want)
			}
		})
	}
	gone := errors.New("gone")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if err := both(ctx, wait, wait); !errors.Is(err, context.Canceled) {
		t.Errorf("both with a dead context: %v", err)
	}
}
