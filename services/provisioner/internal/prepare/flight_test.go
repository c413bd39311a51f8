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
		firstGuest, secondGuest, thirdGuest := &guest{}, &guest{}, &guest{}
		first, err := f.join(t.Context(), "k", firstGuest, w.do)
		if err != nil {
			t.Fatal(err)
		}
		second, err := f.join(t.Context(), "k", secondGuest, w.do)
		if err != nil || second != first {
			t.Fatalf("the second joined %p, %v, want %p", second, err, first)
		}
		f.leave(first, firstGuest)
		pass(time.Minute)
		synctest.Wait()
		close(w.release)
		if got, err := second.result(t.Context()); got != 1 || err != nil {
			t.Errorf("result %d, %v, want 1", got, err)
		}
		f.leave(second, secondGuest)
		third, err := f.join(t.Context(), "k", thirdGuest, w.do)
		if err != nil || third == first {
			t.Fatalf("a flight that has ended was joined: %v", err)
		}
		if got, err := third.result(t.Context()); got != 2 || err != nil {
			t.Errorf("result %d, %v, want 2", got, err)
		}
		f.leave(third, thirdGuest)
		o.wg.Wait()
	})
}

func TestLastLeaverCancelsAfterTheGrace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(t), &work{release: make(chan struct{})}
		f := newFlights[int](o.start, 10*time.Second, 0)
		firstGuest, againGuest := &guest{}, &guest{}
		first, err := f.join(t.Context(), "k", firstGuest, w.do)
		if err != nil {
			t.Fatal(err)
		}
		f.leave(first, firstGuest)
		pass(9 * time.Second)
		synctest.Wait()
		if w.cause != nil {
			t.Fatalf("cut off within the grace: %v", w.cause)
		}
		again, err := f.join(t.Context(), "k", againGuest, w.do)
		if err != nil || again != first {
			t.Fatalf("the flight was not joined within the grace: %v", err)
		}
		pass(time.Hour)
		synctest.Wait()
		if w.cause != nil {
			t.Fatalf("cut off while somebody waits: %v", w.cause)
		}
		f.leave(again, againGuest)
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
		firstGuest, secondGuest := &guest{}, &guest{}
		slow := make(chan struct{})
		ended := false
		first, err := f.join(t.Context(), "k", firstGuest, func(ctx context.Context, _ *track) (int, error) {
			<-ctx.Done()
			<-slow
			ended = true
			return 0, ctx.Err()
		})
		if err != nil {
			t.Fatal(err)
		}
		f.leave(first, firstGuest)
		joined := make(chan int)
		go func() {
			second, err := f.join(t.Context(), "k", secondGuest, func(context.Context, *track) (int, error) {
				if !ended {
					t.Error("the work runs twice at once")
				}
				return 2, nil
			})
			if err != nil {
				t.Error(err)
			}
			got, _ := second.result(t.Context())
			f.leave(second, secondGuest)
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
		firstGuest := &guest{}
		slow := make(chan struct{})
		first, err := f.join(t.Context(), "k", firstGuest, func(context.Context, *track) (int, error) {
			<-slow
			return 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		f.leave(first, firstGuest)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := f.join(ctx, "k", &guest{}, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("join: %v, want the end of its context", err)
		}
		close(slow)
		o.wg.Wait()
	})
}

// guestOf returns a guest whose context is ctx.
func guestOf(t *testing.T, name string) (who *guest, ctx context.Context) {
	t.Helper()
	ctx, dismiss := context.WithCancelCause(t.Context())
	return &guest{name: name, dismiss: dismiss}, ctx
}

func TestWithdraw(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		// before are the guests in the order in which they come; those in left leave before the withdrawal, in that order.
		before, left []string
		// wantFound and wantCut are what the withdrawal of "a" says and does; wantStay is how many are not dismissed.
		wantFound, wantCut bool
		wantStay           int
	}{
		{name: "the only one", before: []string{"a"}, wantFound: true, wantCut: true},
		{name: "all of the name", before: []string{"a", "a"}, wantFound: true, wantCut: true},
		{name: "somebody else stays", before: []string{"a", "b"}, wantFound: true, wantStay: 1},
		{name: "one without a name stays", before: []string{"a", ""}, wantFound: true, wantStay: 1},
		{name: "the last, who has left", before: []string{"a"}, left: []string{"a"}, wantFound: true, wantCut: true},
		{name: "the last, who has left after another", before: []string{"a", "b"}, left: []string{"b", "a"}, wantFound: true, wantCut: true},
		{name: "not the last who has left", before: []string{"a", "b"}, left: []string{"a", "b"}},
		{name: "one who has left while another stays", before: []string{"a", "b"}, left: []string{"a"}, wantStay: 1},
		{name: "unknown", before: []string{"b", ""}, wantStay: 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o, w := newOwner(t), &work{release: make(chan struct{})}
				f := newFlights[int](o.start, time.Minute, 0)
				var joined *flight[int]
				guests := map[string][]*guest{}
				var contexts []context.Context
				for _, name := range tt.before {
					who, ctx := guestOf(t, name)
					var err error
					if joined, err = f.join(ctx, "k", who, w.do); err != nil {
						t.Fatal(err)
					}
					guests[name], contexts = append(guests[name], who), append(contexts, ctx)
				}
				synctest.Wait()
				for _, name := range tt.left {
					f.leave(joined, guests[name][0])
				}
				found, ended := f.withdraw("a")
				for _, end := range ended {
					<-end
				}
				if found != tt.wantFound || (w.cause != nil) != tt.wantCut || (len(ended) > 0) != tt.wantCut {
					t.Errorf("found %t, cut off %v, %d to wait for; want %t and %t", found, w.cause, len(ended), tt.wantFound, tt.wantCut)
				}
				stay := 0
				for _, ctx := range contexts {
					switch {
					case ctx.Err() == nil:
						stay++
					case !errors.Is(context.Cause(ctx), errWithdrawn):
						t.Errorf("dismissed with %v", context.Cause(ctx))
					}
				}
				if stay -= len(tt.left); stay != tt.wantStay {
					t.Errorf("%d stay, want %d", stay, tt.wantStay)
				}
				close(w.release)
				for _, waiting := range guests {
					for _, who := range waiting {
						f.leave(joined, who) // once more, for some
					}
				}
				<-joined.ended
				if again, ended := f.withdraw("a"); again || len(ended) > 0 {
					t.Error("found again when all is over")
				}
				o.wg.Wait()
			})
		})
	}
}

// A withdrawal that is repeated while the work still ends waits for it too, and one who waits to begin again is let go.
func TestWithdrawAgainWhileTheWorkEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, slow := newOwner(t), make(chan struct{})
		f := newFlights[int](o.start, time.Minute, 0)
		who, ctx := guestOf(t, "a")
		first, err := f.join(ctx, "k", who, func(context.Context, *track) (int, error) {
			<-slow
			return 0, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if found, ended := f.withdraw("a"); !found || len(ended) != 1 {
				t.Errorf("found %t with %d to wait for, want the work that still ends", found, len(ended))
			}
		}
		next, ctx := guestOf(t, "a")
		refused := make(chan error, 1)
		go func() {
			_, err := f.join(ctx, "k", next, nil)
			refused <- err
		}()
		synctest.Wait()
		if found, ended := f.withdraw("a"); !found || len(ended) != 1 {
			t.Errorf("found %t with %d to wait for, want the one who waits to begin again", found, len(ended))
		}
		if err := <-refused; !errors.Is(err, errWithdrawn) {
			t.Errorf("join: %v, want %v", err, errWithdrawn)
		}
		close(slow)
		<-first.ended
		o.wg.Wait()
	})
}

func TestFlightLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o, w := newOwner(t), &work{release: make(chan struct{})}
		f := newFlights[int](o.start, time.Second, 1)
		firstGuest, sameGuest := &guest{}, &guest{}
		first, err := f.join(t.Context(), "a", firstGuest, w.do)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.join(t.Context(), "b", &guest{}, w.do); reason.Of(err) != reason.LimitExceeded {
			t.Errorf("one more than the limit: %v, want LIMIT_EXCEEDED", err)
		}
		same, err := f.join(t.Context(), "a", sameGuest, w.do)
		if err != nil {
			t.Errorf("joining at the limit: %v", err)
		}
		f.leave(same, sameGuest)
		close(w.release)
		if _, err := first.result(t.Context()); err != nil {
			t.Error(err)
		}
		f.leave(first, firstGuest)
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
