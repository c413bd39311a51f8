// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

const (
	// shortestPause between two questions, in the beginning and after a hint.
	shortestPause = 2 * time.Millisecond
	// longestPause between two questions.
	longestPause = 50 * time.Millisecond
	// pauseShare of the time waited so far is the pause between: an engine is found ready at most a fiftieth of its
	// load time late without any hint, and asking takes little of the machine while it loads.
	pauseShare = 50
	// foreignLooks is how often in a row a foreign listener must be seen on our port before it counts: a socket that
	// just changed hands can look foreign once.
	foreignLooks = 2
)

// Engine is the process that is waited for.
type Engine interface {
	// Done is closed when its root has exited, and Exit then tells how.
	Done() <-chan struct{}
	Exit() process.ExitStatus
	// Sockets tells where its processes listen, and who else listens on the port.
	Sockets(port uint16) (process.Sockets, error)
}

// Holders tells who listens on a port.
type Holders interface {
	Holder(port uint16) (pid int, comm string, err error)
}

// Wait is what to wait for.
type Wait struct {
	Engine  Engine
	Holders Holders
	Host    netip.Addr      // the address that the engine was told to listen on.
	Port    uint16          // the port that it was told; 0: it picks one, which is found among its sockets.
	Path    string          // page that answers when ready, with query.
	Status  int             // how it answers then; zero is 200.
	Hint    <-chan struct{} // a value: the engine may be ready now; buffer one. nil or closed: none comes.
}

// Result is an engine that is ready.
type Result struct {
	Endpoint netip.AddrPort
	Took     time.Duration // from the call of Ready.
	Asked    int           // how many questions it took.
}

// ExitedError says that the engine ended while it was waited for.
type ExitedError struct {
	Exit process.ExitStatus
}

// Error tells how it ended.
func (e *ExitedError) Error() string { return "it ended before it was ready: " + e.Exit.String() }

// Ready blocks until the engine is ready. It returns at once when the engine exits (a *ExitedError with the reason
// WorkerStartFailed), when another process holds the port (reason PortInUse, naming the holder; it wraps an
// *ExitedError if the engine has ended of it) and when ctx ends: with the reason WorkerStartTimeout and the last answer
// seen if its deadline passed, with its cause if it was cancelled. It leaves the engine as it is.
func (p *Prober) Ready(ctx context.Context, w Wait) (Result, error) {
	if w.Status == 0 {
		w.Status = 200
	}
	begun := time.Now()
	s := search{prober: p, wait: w, last: "nothing was asked yet"}
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // Ends with the call: an engine that died must not keep a question waiting.
		select {
		case <-w.Engine.Done():
			cancel()
		case <-asking.Done():
		}
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	hintedAt := begun
	for {
		select {
		case <-w.Engine.Done():
			return Result{}, s.ended()
		case <-ctx.Done():
			return Result{}, s.outOfTime(ctx, time.Since(begun))
		case _, open := <-w.Hint:
			hintedAt = time.Now()
			if !open {
				w.Hint = nil
			}
		case <-timer.C:
		}
		at, err := s.look(asking)
		if err != nil {
			return Result{}, err
		}
		if at.IsValid() {
			return Result{Endpoint: at, Took: time.Since(begun), Asked: s.asked}, nil
		}
		timer.Reset(min(longestPause, max(shortestPause, time.Since(hintedAt)/pauseShare)))
	}
}

// search is one wait under way.
type search struct {
	prober  *Prober
	wait    Wait
	asked   int
	last    string // the last answer, for people.
	foreign uint64 // inode of the foreign listener seen last.
	seen    int    // how often in a row.
}

// look asks once wherever the engine may answer. It returns where it is ready, nothing if it is not yet, and an error if
// it never will be.
func (s *search) look(ctx context.Context) (netip.AddrPort, error) {
	found, err := s.wait.Engine.Sockets(s.wait.Port)
	if err != nil {
		s.last = err.Error()
		return netip.AddrPort{}, nil //nolint:nilerr // It may work the next time; the error is what was seen last.
	}
	if taken, err := s.taken(found.Foreign); taken || err != nil {
		return netip.AddrPort{}, err
	}
	if len(found.Ours) == 0 {
		s.last = "the engine does not listen yet"
	}
	for _, l := range found.Ours {
		if !serves(l.Addr, s.wait.Host, s.wait.Port) {
			s.last = fmt.Sprintf("the engine listens at %s only", l.Addr)
			continue
		}
		at := netip.AddrPortFrom(s.wait.Host, l.Addr.Port())
		s.asked++
		got, err := s.prober.get(ctx, at, s.wait.Path)
		switch {
		case err != nil && ctx.Err() != nil && s.asked > 1: // Cut short by us: the answer before says more.
		case err != nil:
			s.last = err.Error()
		case got.status == s.wait.Status:
			return at, nil
		default:
			s.last = fmt.Sprintf("%s%s answered %d", at, s.wait.Path, got.status)
		}
	}
	return netip.AddrPort{}, nil
}

// taken tells whether somebody else may get what is sent to our address: then nothing is asked. Seen long enough, it is
// an error.
func (s *search) taken(foreign []process.Listener) (bool, error) {
	for _, l := range foreign {
		if !serves(l.Addr, s.wait.Host, s.wait.Port) {
			continue
		}
		if l.Inode != s.foreign {
			s.foreign, s.seen = l.Inode, 0
		}
		if s.seen++; s.seen < foreignLooks {
			return true, nil
		}
		return true, s.portInUse(nil)
	}
	s.seen = 0
	return false, nil
}

// portInUse names who holds the port, and what came of it.
func (s *search) portInUse(cause error) error {
	port := strconv.Itoa(int(s.wait.Port))
	pid, comm, err := s.wait.Holders.Holder(s.wait.Port)
	who := fmt.Sprintf("pid %d (%s)", pid, comm)
	if err != nil || pid == 0 {
		who = "a process that cannot be seen from here"
	}
	return reason.New(reason.PortInUse, fmt.Sprintf("port %s is held by %s", port, who),
		reason.Cause(cause), reason.Field("spec.port"), reason.Meta("port", port), reason.Meta("holder_pid", strconv.Itoa(pid)),
		reason.Remedy("leave the port at 0, so that the engine picks a free one, or stop the holder"))
}

// ended says why the engine ended: an engine that cannot have its port says so in its own words only.
func (s *search) ended() error {
	exited := &ExitedError{Exit: s.wait.Engine.Exit()}
	if s.wait.Port != 0 {
		found, err := s.wait.Engine.Sockets(s.wait.Port)
		if err == nil && slices.ContainsFunc(found.Foreign, func(l process.Listener) bool {
			return serves(l.Addr, s.wait.Host, s.wait.Port)
		}) {
			return s.portInUse(exited)
		}
	}
	how := reason.Meta("exit_code", exited.Exit.Code)
	if exited.Exit.Signal != 0 {
		how = reason.Meta("signal", unix.SignalName(exited.Exit.Signal))
	}
	return reason.New(reason.WorkerStartFailed, "wait for engine", reason.Cause(exited), how, reason.Remedy("read the engine's log"))
}

// serves tells whether a socket bound to addr gets what is sent to host at port, 0 being any.
func serves(addr netip.AddrPort, host netip.Addr, port uint16) bool {
	return (port == 0 || addr.Port() == port) && (addr.Addr() == host || addr.Addr().IsUnspecified())
}

// outOfTime says why a wait ended without a result.
func (s *search) outOfTime(ctx context.Context, waited time.Duration) error {
	cause := context.Cause(ctx)
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("wait for engine: %w", cause)
	}
	return reason.New(reason.WorkerStartTimeout,
		fmt.Sprintf("engine did not get ready within %v; last: %s", waited.Round(time.Millisecond), s.last),
		reason.Field("spec.startup_timeout"), reason.Meta("last_answer", s.last),
		reason.Remedy("read the engine's log; if it only loads slowly, raise the startup timeout"))
}
