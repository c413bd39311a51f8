// SPDX-License-Identifier: Apache-2.0

package daemonkit

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// watched is a daemon under a watchdog that is pinged every 15 s.
type watched struct {
	logs *testkit.LogCapture
	end  func()

	mu    sync.Mutex      // mu guards what follows.
	pings []time.Duration // since the start.
	asked int
	well  error
	stuck chan struct{} // a check waits for it, unless it is nil.
	deaf  error         // what a ping returns.
}

func watchTest(t *testing.T) *watched {
	t.Helper()
	w := &watched{logs: testkit.NewLogCapture(t)}
	ctx, cancel := context.WithCancel(t.Context())
	begin, ended := time.Now(), make(chan struct{})
	alive := func() error {
		w.mu.Lock()
		w.asked++
		stuck, well := w.stuck, w.well
		w.mu.Unlock()
		if stuck != nil {
			<-stuck
		}
		return well
	}
	ping := func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.pings = append(w.pings, time.Since(begin))
		return w.deaf
	}
	go func() {
		defer close(ended)
		watch(ctx, 15*time.Second, alive, ping, w.logs.Logger)
	}()
	w.end = func() {
		cancel()
		<-ended
	}
	synctest.Wait()
	return w
}

// set changes how the daemon is.
func (w *watched) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *watched) counts() (pings, asked int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.pings), w.asked
}

// after lets time pass and returns how many pings and checks there were.
func (w *watched) after(d time.Duration) (pings, asked int) {
	pings, asked = w.counts()
	<-time.After(d)
	synctest.Wait()
	morePings, moreAsked := w.counts()
	return morePings - pings, moreAsked - asked
}

func TestWatchPingsAtOnceAndAtEveryTick(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := watchTest(t)
		defer w.end()
		w.after(61 * time.Second)
		want := []time.Duration{0, 15 * time.Second, 30 * time.Second, 45 * time.Second, time.Minute}
		w.set(func() {
			if diff := cmp.Diff(want, w.pings); diff != "" {
				t.Errorf("pings since the start (-want +got):\n%s", diff)
			}
		})
	})
}

func TestWatchDoesNotPingForADaemonThatIsNotWell(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := watchTest(t)
		defer w.end()
		w.set(func() { w.well = errors.New("the registry is locked") })
		if pings, asked := w.after(time.Minute + time.Second); pings != 0 || asked != 4 {
			t.Errorf("%d pings and %d checks, want 0 and 4", pings, asked)
		}
		if lines := w.logs.Lines(""); len(lines) != 1 {
			t.Errorf("logged %v, want one line", lines)
		}
		w.set(func() { w.well = nil })
		if pings, _ := w.after(15 * time.Second); pings != 1 {
			t.Errorf("%d pings when it is well again, want 1", pings)
		}
	})
}

func TestWatchDoesNotPingForADaemonThatIsStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := watchTest(t)
		defer w.end()
		stuck := make(chan struct{})
		w.set(func() { w.stuck = stuck })
		if pings, asked := w.after(time.Hour + time.Second); pings != 0 || asked != 1 {
			t.Errorf("%d pings and %d checks, want 0 and 1", pings, asked)
		}
		if lines := w.logs.Lines(""); len(lines) != 1 {
			t.Errorf("logged %v, want one line", lines)
		}
		close(stuck)
		w.set(func() { w.stuck = nil })
		if pings, _ := w.after(15 * time.Second); pings != 2 {
			t.Errorf("%d pings when it moves again, want that of the check and the next", pings)
		}
	})
}

func TestWatchEndsInSpiteOfACheckThatIsStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := watchTest(t)
		stuck := make(chan struct{})
		w.set(func() { w.stuck = stuck })
		w.after(16 * time.Second)
		w.end()
		close(stuck) // The bubble fails unless the check's goroutine can end.
	})
}

func TestWatchSaysOnceThatNobodyListens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := watchTest(t)
		defer w.end()
		w.set(func() { w.deaf = errors.New("gone") })
		if pings, _ := w.after(time.Minute + time.Second); pings != 4 {
			t.Errorf("%d pings, want 4", pings)
		}
		if lines := w.logs.Lines(""); len(lines) != 1 {
			t.Errorf("logged %v, want one line", lines)
		}
	})
}
