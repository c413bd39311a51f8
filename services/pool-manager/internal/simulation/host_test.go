// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

// ticksPerSecond is how fine the start of a process is known.
const ticksPerSecond = 100

func bootName(boot int) string { return fmt.Sprintf("boot-%d", boot) }

// host is the process table as one manager sees it.
type host struct{ by *manager }

func (h host) BootID() string { return bootName(h.by.boot) }

func (h host) Spawn(c process.Command) (launch.Process, error) {
	w := h.by.world
	if err := h.by.enter(h.by.life, "spawn %s g%d", c.Replica, c.Generation); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.faults.spawn > 0 {
		w.faults.spawn--
		return nil, reason.New(reason.WorkerStartFailed, "start engine: resource temporarily unavailable")
	}
	w.checkSpawnLocked(c)
	s := w.makeStartLocked(c)
	return h.holdLocked(s, false), nil
}

func (h host) holdLocked(s *start, attached bool) *hold {
	p := &hold{by: h.by, start: s, since: time.Now(), done: make(chan struct{}), attached: attached}
	s.holds = append(s.holds, p)
	h.by.holds = append(h.by.holds, p)
	return p
}

func (h host) Attach(id process.Identity) (launch.Process, error) {
	w := h.by.world
	if err := h.by.enter(h.by.life, "attach %d", id.PID); err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if id.BootID != bootName(w.boot) {
		return nil, process.ErrGone
	}
	if ticks, taken := w.foreign[id.PID]; taken && ticks != id.StartTicks {
		return nil, process.ErrNotOurs
	}
	for _, s := range w.starts {
		if s.pid == id.PID && s.boot == w.boot && s.alive {
			if s.ticks != id.StartTicks || s.command.Executable != id.Executable || s.command.Nonce != id.Nonce {
				return nil, process.ErrNotOurs
			}
			return h.holdLocked(s, true), nil
		}
	}
	return nil, process.ErrGone
}

func (h host) Sweep(ctx context.Context, nonce string, policy process.Policy) (process.StopReport, error) {
	w := h.by.world
	w.mu.Lock()
	i := slices.IndexFunc(w.starts, func(s *start) bool { return s.command.Nonce == nonce && s.boot == w.boot })
	w.mu.Unlock()
	if i < 0 {
		return process.StopReport{}, nil
	}
	report, err := h.by.end(ctx, w.starts[i], policy)
	if h.by.isDead() {
		return process.StopReport{}, nil
	}
	return report, err
}

func (h host) Holder(port uint16) (pid int, comm string, err error) {
	w := h.by.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.thieves[port] {
		return 7, "thief", nil
	}
	if s := w.ports[port]; s != nil {
		return s.pid, "engine", nil
	}
	return 0, "", nil
}

func (h host) Strays(owner string, known []string) ([]process.Stray, error) {
	if err := h.by.enter(h.by.life, "strays"); err != nil {
		return nil, err
	}
	w := h.by.world
	w.mu.Lock()
	defer w.mu.Unlock()
	var strays []process.Stray
	for _, s := range w.starts {
		if s.boot != w.boot || s.command.Manager != owner || slices.Contains(known, s.command.Nonce) || s.goneLocked() {
			continue
		}
		s.stray = true
		strays = append(strays, process.Stray{
			Nonce: s.command.Nonce, Pool: s.command.Pool, Replica: s.command.Replica, Generation: s.command.Generation, Members: s.treeLocked(),
		})
	}
	return strays, nil
}

// hold is a process that a manager holds.
type hold struct {
	by       *manager
	start    *start
	attached bool
	since    time.Time
	done     chan struct{}
	over     bool // done is closed, or never will be. The world's lock guards it.
	exit     process.ExitStatus
}

// endedLocked tells the holder that the root has exited.
func (p *hold) endedLocked() {
	if p.over {
		return
	}
	p.over = true
	p.exit = p.start.exit
	p.exit.Uptime = p.start.exit.At.Sub(p.since)
	if p.attached {
		p.exit.Code, p.exit.Signal = process.CodeUnknown, 0
	}
	close(p.done)
}

func (p *hold) Identity() process.Identity { return p.start.identity() }
func (p *hold) Done() <-chan struct{}      { return p.done }

func (p *hold) Exit() process.ExitStatus {
	p.by.world.mu.Lock()
	defer p.by.world.mu.Unlock()
	return p.exit
}

func (p *hold) Sockets(uint16) (process.Sockets, error) {
	p.by.world.mu.Lock()
	defer p.by.world.mu.Unlock()
	var found process.Sockets
	if p.start.port != 0 {
		found.Ours = []process.Listener{{Addr: endpointOf(p.start.port)}}
	}
	return found, nil
}

func (p *hold) Vitals() (process.Vitals, error) {
	p.by.world.mu.Lock()
	defer p.by.world.mu.Unlock()
	return p.start.vitalsLocked(), nil
}

func (p *hold) Stop(ctx context.Context, policy process.Policy) (process.StopReport, error) {
	report, err := p.by.end(ctx, p.start, policy)
	p.by.world.mu.Lock()
	defer p.by.world.mu.Unlock()
	if p.by.dead { // Of a manager that has died nothing happens to the engine; its goroutines are to end.
		p.endedLocked()
		return process.StopReport{}, nil
	}
	return report, err
}

func (p *hold) Release() {
	p.by.world.mu.Lock()
	defer p.by.world.mu.Unlock()
	p.over = true
}

func endpointOf(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
}

// end stops the tree of a start as process.Stop promises to.
func (m *manager) end(ctx context.Context, s *start, policy process.Policy) (process.StopReport, error) {
	w := m.world
	began := time.Now()
	var report process.StopReport
	patience, cancel := ctx, func() {}
	if deadline, ok := ctx.Deadline(); ok {
		patience, cancel = context.WithDeadline(ctx, deadline.Add(-min(2*time.Second, time.Until(deadline)/4)))
	}
	defer cancel()
	for _, step := range policy.Steps {
		if s.isGone() || patience.Err() != nil {
			break
		}
		if err := m.signal(&report, s, step.Signal); err != nil {
			return report, err
		}
		waiting, stop := context.WithTimeout(patience, step.Wait)
		m.awaitGone(waiting, s)
		stop()
	}
	for !s.isGone() {
		if ctx.Err() != nil && !report.KilledAt.IsZero() {
			w.mu.Lock()
			report.Survivors = s.treeLocked()
			w.mu.Unlock()
			return report, reason.New(reason.StopFailed, "stop engine", reason.Cause(&process.SurvivorsError{Members: report.Survivors}))
		}
		if err := m.signal(&report, s, unix.SIGKILL); err != nil {
			return report, err
		}
		if report.KilledAt.IsZero() {
			report.KilledAt = time.Now()
		}
		m.awaitGone(ctx, s)
	}
	report.Duration = time.Since(began)
	return report, nil
}

// signal sends a signal to what lives of the start.
func (m *manager) signal(report *process.StopReport, s *start, signal syscall.Signal) error {
	if err := m.enter(context.WithoutCancel(m.life), "signal %s %s g%d", strings.TrimPrefix(unix.SignalName(signal), "SIG"), s.command.Replica, s.command.Generation); err != nil {
		return err
	}
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	sent := process.Sent{Signal: signal, At: time.Now()}
	for _, member := range s.treeLocked() {
		sent.PIDs = append(sent.PIDs, member.PID)
	}
	if len(sent.PIDs) == 0 {
		return nil
	}
	report.Signals = append(report.Signals, sent)
	if s.signalledBy == nil {
		m.world.checkSignalLocked(m, s)
	}
	s.signalledBy = m
	s.takeLocked(signal)
	return nil
}

// awaitGone waits until nothing of the start lives, ctx has ended, or the manager has died.
func (m *manager) awaitGone(ctx context.Context, s *start) {
	for {
		m.world.mu.Lock()
		gone, changed := s.goneLocked(), s.changed
		m.world.mu.Unlock()
		if gone {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		case <-m.died:
			return
		}
	}
}

// treeLocked are the living processes of a start.
func (s *start) treeLocked() []process.Member {
	var members []process.Member
	if s.alive {
		members = append(members, process.Member{PID: s.pid, StartTicks: s.ticks, State: 'S', Comm: "engine"})
	}
	for i := range s.kids {
		members = append(members, process.Member{PID: s.pid + 1 + i, StartTicks: s.ticks, State: 'S', Comm: "child"})
	}
	slices.SortFunc(members, func(a, b process.Member) int { return cmp.Compare(a.PID, b.PID) })
	return members
}
