// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

const (
	// killRound is how long the killed may take to vanish before the tree is looked at and killed again; it is also
	// the most that Stop may outlast its ctx.
	killRound = 100 * time.Millisecond
	// killReserve is the most that is kept of a deadline for KILL and its proof; a quarter, if that is less.
	killReserve = 2 * time.Second
)

// Audience says who gets the signal of a step.
type Audience int

// The zero value is the whole tree.
const (
	ToTree Audience = iota
	ToRoot          // the root alone; once it is gone, whatever is left.
)

// Step is one signal and how long to wait for the tree to be gone before the next.
type Step struct {
	Signal syscall.Signal
	Wait   time.Duration
	To     Audience
}

// Policy is what to try before KILL, which always comes last. The zero value is KILL at once.
type Policy struct {
	Steps []Step
}

// Graceful is TERM, grace, TERM again, second grace. A second TERM makes engines hurry that wait for their clients.
func Graceful(grace, second time.Duration) Policy {
	return Policy{Steps: []Step{{Signal: unix.SIGTERM, Wait: grace}, {Signal: unix.SIGTERM, Wait: second}}}
}

// Sent is one signal that was sent to these pids.
type Sent struct {
	Signal syscall.Signal
	At     time.Time
	PIDs   []int
}

// StopReport is what a stop did.
type StopReport struct {
	Signals   []Sent    // in order.
	KilledAt  time.Time // zero if KILL was not needed.
	Survivors []Member  // empty when the stop is proven.
	Duration  time.Duration
}

// SurvivorsError lists the processes that outlived KILL until the time was up, with their state.
type SurvivorsError struct {
	Members []Member
}

// Error names each with its pid, name and state.
func (e *SurvivorsError) Error() string {
	words := make([]string, len(e.Members))
	for i, m := range e.Members {
		words[i] = m.String()
	}
	return "still alive: " + strings.Join(words, ", ")
}

func (e *SurvivorsError) pids() string {
	words := make([]string, len(e.Members))
	for i, m := range e.Members {
		words[i] = strconv.Itoa(m.PID)
	}
	return strings.Join(words, ",")
}

// Stop ends the whole tree of p and proves it (G9): the steps of the policy, then KILL until nothing is left. Steps are
// cut short so that KILL and proof fit into the deadline of ctx, and KILL is sent even if ctx has already ended. When
// the proof does not succeed in time, the error has the reason StopFailed and wraps a *SurvivorsError, and the report
// names the survivors. The report is valid with an error too. Stopping what is gone returns an empty report.
func (p *Process) Stop(ctx context.Context, policy Policy) (StopReport, error) {
	report, err := stop(ctx, p, policy)
	select {
	case <-p.done:
		if err == nil {
			p.fd.close() // Nothing is left to be signalled, and the watcher has what it waited for.
		}
	default:
	}
	return report, err
}

// Sweep stops every process that Find finds, as Stop does. It is for starts whose root is not known or is gone.
func (h *Host) Sweep(ctx context.Context, nonce string, policy Policy) (StopReport, error) {
	return stop(ctx, &strays{host: h, nonce: nonce}, policy)
}

// quarry is a set of processes to be stopped.
type quarry interface {
	Tree() ([]Member, error)
	// rootPID is 0 when there is no root.
	rootPID() int
	// killAll reaches by one call what it can; what is left is killed one by one.
	killAll()
	// settle has the dead collected, of whom these were seen. It is called when none is alive.
	settle(seen []int)
}

func (p *Process) rootPID() int { return p.id.PID }

func (p *Process) killAll() { _ = p.fd.signal(unix.SIGKILL, signalGroup) } // EINVAL before Linux 6.9.

func (p *Process) settle(seen []int) {
	<-p.watched // The root is dead, so this is near; Exit then tells how it ended.
	p.host.reap(seen)
}

type strays struct {
	host  *Host
	nonce string
}

func (s *strays) Tree() ([]Member, error) { return s.host.Find(s.nonce) }
func (s *strays) rootPID() int            { return 0 }
func (s *strays) killAll()                {}
func (s *strays) settle(seen []int)       { s.host.reap(seen) }

// stopping is one stop under way.
type stopping struct {
	quarry
	seen   map[int]bool // pids of all members that were ever looked at.
	report StopReport
}

func stop(ctx context.Context, q quarry, policy Policy) (StopReport, error) {
	started := time.Now()
	s := stopping{quarry: q, seen: map[int]bool{}}
	err := s.ask(ctx, policy.Steps)
	if err == nil {
		err = s.kill(ctx)
	}
	s.report.Duration = time.Since(started)
	return s.report, err
}

// look returns who of the tree is alive now.
func (s *stopping) look() ([]Member, error) {
	left, err := s.Tree()
	if err != nil {
		return nil, fmt.Errorf("stop engine: %w", err)
	}
	for _, m := range left {
		s.seen[m.PID] = true
	}
	s.report.Survivors = left
	return left, nil
}

// ask takes the steps until the tree is gone or time is short.
func (s *stopping) ask(ctx context.Context, steps []Step) error {
	patience, cancel := withReserve(ctx)
	defer cancel()
	for _, step := range steps {
		left, err := s.look()
		if err != nil {
			return err
		}
		if len(left) == 0 || patience.Err() != nil {
			return nil
		}
		s.report.Signals = append(s.report.Signals, send(step.Signal, audience(left, s.rootPID(), step.To)))
		if err := s.awaitGone(patience, step.Wait, left); err != nil {
			return err
		}
	}
	return nil
}

// awaitGone blocks until the tree is empty, members that appear meanwhile included, or the wait is over.
func (s *stopping) awaitGone(ctx context.Context, wait time.Duration, left []Member) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var err error
	for len(left) > 0 && err == nil && awaitExits(ctx, left) {
		left, err = s.look()
	}
	return err
}

// kill kills until nothing is left, or until ctx has ended and killing did not help.
func (s *stopping) kill(ctx context.Context) error {
	for {
		left, err := s.look()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			s.settle(slices.Collect(maps.Keys(s.seen)))
			return nil
		}
		if ctx.Err() != nil && !s.report.KilledAt.IsZero() {
			survivors := &SurvivorsError{Members: left}
			return reason.New(reason.StopFailed, "stop engine", reason.Cause(survivors), reason.Meta("pids", survivors.pids()),
				reason.Remedy("a process in state D waits for a device or disk; it ends when that answers"))
		}
		s.killAll()
		sent := send(unix.SIGKILL, left)
		if s.report.KilledAt.IsZero() {
			s.report.KilledAt = sent.At
			s.report.Signals = append(s.report.Signals, sent)
		}
		round, cancel := context.WithTimeout(context.WithoutCancel(ctx), killRound)
		awaitExits(round, left)
		cancel()
	}
}

// withReserve returns a context that ends before ctx does, by what KILL and its proof may need.
func withReserve(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-min(killReserve, time.Until(deadline)/4)))
}

// audience picks who of the living gets a signal.
func audience(left []Member, root int, to Audience) []Member {
	i := slices.IndexFunc(left, func(m Member) bool { return m.PID == root })
	if to == ToRoot && i >= 0 {
		return left[i : i+1]
	}
	return left
}

// send signals each member under a hold of it, so that a pid that has changed hands is left alone.
func send(sig syscall.Signal, members []Member) Sent {
	sent := Sent{Signal: sig, At: time.Now()}
	for _, m := range members {
		fd, err := m.pin()
		if err != nil {
			continue // It has gone; the next look at the tree tells.
		}
		if err := fd.signal(sig, 0); err == nil {
			sent.PIDs = append(sent.PIDs, m.PID)
		}
		fd.close()
	}
	return sent
}

// awaitExits blocks until all of these have exited, or until ctx ends, which is false.
func awaitExits(ctx context.Context, members []Member) bool {
	for _, m := range members {
		fd, err := m.pin()
		if errors.Is(err, ErrGone) {
			continue
		}
		if err != nil {
			return false
		}
		err = fd.wait(ctx)
		fd.close()
		if err != nil {
			return false
		}
	}
	return true
}
