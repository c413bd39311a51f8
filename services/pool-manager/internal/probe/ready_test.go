// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

func loopback() netip.Addr { return netip.MustParseAddr("127.0.0.1") }

// fakeEngine is an engine whose sockets the test tells, by look.
type fakeEngine struct {
	done  chan struct{}
	exit  process.ExitStatus
	looks atomic.Int64
	see   func(look int64) (process.Sockets, error)
}

func (f *fakeEngine) Done() <-chan struct{}    { return f.done }
func (f *fakeEngine) Exit() process.ExitStatus { return f.exit }
func (f *fakeEngine) Sockets(uint16) (process.Sockets, error) {
	return f.see(f.looks.Add(1))
}

// engineAt is an engine that listens at these addresses.
func engineAt(ours ...netip.AddrPort) *fakeEngine {
	return engineBeside(nil, ours...)
}

// engineBeside is one beside foreign listeners.
func engineBeside(foreign []netip.AddrPort, ours ...netip.AddrPort) *fakeEngine {
	var s process.Sockets
	for i, addr := range ours {
		s.Ours = append(s.Ours, process.Listener{Addr: addr, Inode: uint64(100 + i), PID: 42})
	}
	for i, addr := range foreign {
		s.Foreign = append(s.Foreign, process.Listener{Addr: addr, Inode: uint64(200 + i)})
	}
	return &fakeEngine{done: make(chan struct{}), see: func(int64) (process.Sockets, error) { return s, nil }}
}

// holder holds every port.
type holder struct{ pid int }

func (h holder) Holder(uint16) (int, string, error) { return h.pid, "thief", nil }

func wait(e Engine) Wait {
	return Wait{Engine: e, Holders: holder{77}, Host: loopback(), Path: "/health"}
}

func answering(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

// after answers 503 n times and then 200.
func after(n int64) http.HandlerFunc {
	var asked atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" || asked.Add(1) <= n {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
}

func TestReadyFindsTheRightSocket(t *testing.T) {
	t.Parallel()
	good, loading, other := serve(t, answering(200)), serve(t, after(3)), serve(t, answering(404))
	elsewhere := netip.AddrPortFrom(netip.MustParseAddr("10.9.9.9"), good.Port())
	anywhere := netip.AddrPortFrom(netip.IPv6Unspecified(), good.Port())
	for _, tt := range []struct {
		name   string
		engine *fakeEngine
		change func(*Wait)
		want   netip.AddrPort
	}{
		{"the only one", engineAt(good), nil, good},
		{"still loading", engineAt(loading), nil, loading},
		{"beside one for something else", engineAt(other, good), nil, good},
		{"bound to every address", engineAt(anywhere), nil, good},
		{"not where another address is", engineAt(netip.AddrPortFrom(elsewhere.Addr(), other.Port()), good), nil, good},
		{"the port that it was told", engineAt(other, good), func(w *Wait) { w.Port = good.Port() }, good},
		{"another status", engineAt(good, other), func(w *Wait) { w.Status = 404 }, other},
		{"a stranger on another address", engineBeside([]netip.AddrPort{elsewhere}, good), func(w *Wait) { w.Port = good.Port() }, good},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := wait(tt.engine)
			if tt.change != nil {
				tt.change(&w)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			got, err := newProber(t, Config{}).Ready(ctx, w)
			if err != nil || got.Endpoint != tt.want || got.Took <= 0 || got.Asked < 1 {
				t.Errorf("Ready: got %+v, %v, want %v", got, err, tt.want)
			}
		})
	}
}

// TestReadyNeverBelievesAStranger has a thief that answers 200 on the port that the engine was told.
func TestReadyNeverBelievesAStranger(t *testing.T) {
	t.Parallel()
	thief := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("the stranger was asked") })
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), thief.Port())
	for _, tt := range []struct {
		name   string
		engine *fakeEngine
	}{
		{"instead of us", engineBeside([]netip.AddrPort{thief})},
		{"on every address", engineBeside([]netip.AddrPort{any4})},
		{"before us, who have every address", engineBeside([]netip.AddrPort{thief}, any4)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := wait(tt.engine)
			w.Port = thief.Port()
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := newProber(t, Config{}).Ready(ctx, w)
			e, ok := reason.As(err)
			if !ok || e.Reason != reason.PortInUse || e.Metadata["holder_pid"] != "77" || !strings.Contains(err.Error(), "pid 77 (thief)") {
				t.Errorf("Ready: got %v, want PortInUse by 77", err)
			}
		})
	}
}

// TestReadyForgivesASocketThatChangesHands sees our own socket as foreign for one look, as may happen while it is opened.
func TestReadyForgivesASocketThatChangesHands(t *testing.T) {
	t.Parallel()
	good := serve(t, answering(200))
	ours, theirs := engineAt(good), engineBeside([]netip.AddrPort{good})
	e := &fakeEngine{done: make(chan struct{}), see: func(look int64) (process.Sockets, error) {
		switch look {
		case 1:
			return theirs.see(look)
		case 2:
			return process.Sockets{}, errors.New("cannot look just now")
		default:
			return ours.see(look)
		}
	}}
	w := wait(e)
	w.Port = good.Port()
	if got, err := newProber(t, Config{}).Ready(t.Context(), w); err != nil || got.Endpoint != good {
		t.Errorf("Ready: got %+v, %v", got, err)
	}
}

func TestReadyEndsWithTheEngine(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		engine *fakeEngine
		port   uint16
		exit   process.ExitStatus
		want   reason.Reason
		meta   string
		text   string
	}{
		{"code", engineAt(), 0, process.ExitStatus{Code: 3}, reason.WorkerStartFailed, "exit_code", "exit 3"},
		{"signal", engineAt(), 0, process.ExitStatus{Code: -1, Signal: syscall.SIGILL}, reason.WorkerStartFailed, "signal", "illegal instruction"},
		{
			"for its port was taken", engineBeside([]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:9")}), 9,
			process.ExitStatus{Code: 1}, reason.PortInUse, "holder_pid", "pid 77 (thief)",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.engine.exit = tt.exit
			close(tt.engine.done)
			w := wait(tt.engine)
			w.Port = tt.port
			_, err := newProber(t, Config{}).Ready(t.Context(), w)
			var exited *ExitedError
			e, ok := reason.As(err)
			if !ok || e.Reason != tt.want || e.Metadata[tt.meta] == "" || !strings.Contains(err.Error(), tt.text) {
				t.Fatalf("Ready: got %v, want %v with %s and %q", err, tt.want, tt.meta, tt.text)
			}
			if errors.As(err, &exited) && exited.Exit != tt.exit {
				t.Errorf("exit: got %+v, want %+v", exited.Exit, tt.exit)
			}
		})
	}
}

// TestReadyDoesNotWaitForAnAnswerOfTheDead has an engine that exits while a question is open, as one whose child holds
// the socket may.
func TestReadyDoesNotWaitForAnAnswerOfTheDead(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	e := engineAt(serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	}))
	go func() {
		<-asked
		close(e.done)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := newProber(t, Config{Limit: time.Hour}).Ready(ctx, wait(e))
	var exited *ExitedError
	if !errors.As(err, &exited) {
		t.Errorf("Ready: got %v, want an exit", err)
	}
}

func TestReadyOutOfTime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		engine *fakeEngine
		last   string
	}{
		{"never listens", engineAt(), "does not listen yet"},
		{"never ready", engineAt(serve(t, answering(503))), "/health answered 503"},
		{"never to be looked at", &fakeEngine{see: func(int64) (process.Sockets, error) {
			return process.Sockets{}, errors.New("no permission")
		}}, "no permission"},
		{"listens elsewhere", engineAt(netip.MustParseAddrPort("10.9.9.9:80")), "10.9.9.9:80"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			_, err := newProber(t, Config{}).Ready(ctx, wait(tt.engine))
			if e, ok := reason.As(err); !ok || e.Reason != reason.WorkerStartTimeout || !strings.Contains(e.Metadata["last_answer"], tt.last) {
				t.Errorf("Ready: got %v, want WorkerStartTimeout with %q", err, tt.last)
			}
		})
	}
}

func TestReadyIsCancelled(t *testing.T) {
	t.Parallel()
	drained := errors.New("drained")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(drained)
	if _, err := newProber(t, Config{}).Ready(ctx, wait(engineAt())); !errors.Is(err, drained) {
		t.Errorf("Ready: got %v, want the cause", err)
	}
}

// TestReadyLooksAtOnceOnAHint counts the moments of the looks on a clock of its own: pauses grow with the load time, and
// a hint is followed at once, and by short pauses again.
func TestReadyLooksAtOnceOnAHint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var looks []time.Duration
		e := &fakeEngine{done: make(chan struct{}), see: func(int64) (process.Sockets, error) {
			looks = append(looks, time.Since(begun))
			return process.Sockets{}, nil
		}}
		hint := make(chan struct{}, 1)
		w := wait(e)
		w.Hint = hint
		const hintAt = 10*time.Second + 7*time.Millisecond
		time.AfterFunc(hintAt, func() { hint <- struct{}{} })
		ctx, cancel := context.WithTimeout(t.Context(), hintAt+time.Second)
		defer cancel()
		if _, err := newProber(t, Config{}).Ready(ctx, w); reason.Of(err) != reason.WorkerStartTimeout {
			t.Fatalf("Ready: %v", err)
		}
		at := slices.Index(looks, hintAt)
		if at < 0 {
			t.Fatalf("no look at %v: %v", hintAt, looks)
		}
		for _, tt := range []struct {
			name  string
			look  int
			pause time.Duration
		}{
			{"first", 0, shortestPause}, {"late", at - 2, longestPause}, {"after the hint", at, shortestPause},
		} {
			if got := looks[tt.look+1] - looks[tt.look]; got != tt.pause {
				t.Errorf("%s pause: got %v, want %v", tt.name, got, tt.pause)
			}
		}
		if first := slices.IndexFunc(looks, func(d time.Duration) bool { return d >= time.Second }); first > 300 {
			t.Errorf("%d looks in the first second, want at most 300", first)
		}
	})
}

// TestReadyTakesAClosedHintForNone would look without a pause otherwise.
func TestReadyTakesAClosedHintForNone(t *testing.T) {
	t.Parallel()
	e, hint := engineAt(), make(chan struct{})
	close(hint)
	w := wait(e)
	w.Hint = hint
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := newProber(t, Config{}).Ready(ctx, w)
	if most := int64(100/2 + 2); reason.Of(err) != reason.WorkerStartTimeout || e.looks.Load() > most {
		t.Errorf("Ready: %v after %d looks, want a timeout after at most %d", err, e.looks.Load(), most)
	}
}
