// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

// fakeWorld is everything around a Launcher, for tests of time. It blocks on channels, timers and contexts only.
type fakeWorld struct {
	// vitals are what the engine has done, at times since its start; nil does nothing.
	vitals func(since time.Duration) process.Vitals
	// readyAfter is how long it loads, and exit how it ends then instead; nil is ready.
	readyAfter time.Duration
	exit       *process.ExitStatus
	// dying is how long after its connections broke, when it was asked what it is, it is seen to have ended; 0 does not end.
	dying time.Duration
	// kills has a stop kill its whole group with one call, of which no process is told by itself.
	kills bool

	mu      sync.Mutex // mu guards what follows.
	records map[state.Key]state.Record
	starts  []state.StartRecord
	saves   chan struct{} // nil: a save takes no time; else it waits for a value.
	running *fakeProcess
	// requests are how many the engine has, at times since its start; less than 0 is no answer, nil is none.
	requests func(since time.Duration) int
}

func (w *fakeWorld) launcher(t *testing.T) *Launcher {
	t.Helper()
	w.records = map[state.Key]state.Record{}
	l, err := New(Config{
		Host: fakeHost{w}, Records: w, Handoff: fakeHandoff{}, Trust: fakeTrust{}, Prober: fakeProber{w}, Logs: fakeLogs{},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (w *fakeWorld) ManagerID() string { return "m" }

func (w *fakeWorld) Save(r state.Record) error {
	if r.Phase == state.Ready && w.saves != nil {
		<-w.saves
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records[r.Key()] = r
	return nil
}

func (w *fakeWorld) Remove(k state.Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.records, k)
	return nil
}

func (w *fakeWorld) Load() (state.Loaded, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var loaded state.Loaded
	for _, r := range w.records {
		loaded.Records = append(loaded.Records, r)
	}
	return loaded, nil
}

func (w *fakeWorld) SaveStart(s state.StartRecord) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts = append(w.starts, s)
	return nil
}

func (w *fakeWorld) Starts(string) ([]state.StartRecord, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.starts, nil
}

type fakeHost struct{ *fakeWorld }

func (fakeHost) BootID() string { return "boot" }

func (h fakeHost) Spawn(c process.Command) (Process, error) {
	h.running = &fakeProcess{
		world: h.fakeWorld, started: time.Now(), done: make(chan struct{}),
		id: process.Identity{BootID: "boot", PID: 17, Executable: c.Executable, Nonce: c.Nonce},
	}
	return h.running, nil
}

func (h fakeHost) Attach(process.Identity) (Process, error) { return h.running, nil }

func (fakeHost) Sweep(context.Context, string, process.Policy) (process.StopReport, error) {
	return process.StopReport{}, nil
}

func (fakeHost) Holder(uint16) (int, string, error) { return 0, "", nil }

func (fakeHost) Strays(string, []string) ([]process.Stray, error) { return nil, nil }

type fakeProcess struct {
	world   *fakeWorld
	id      process.Identity
	started time.Time
	once    sync.Once
	done    chan struct{}
	status  process.ExitStatus
}

func (p *fakeProcess) end(status process.ExitStatus) {
	p.once.Do(func() {
		status.At, status.Uptime = time.Now(), time.Since(p.started)
		p.status = status
		close(p.done)
	})
}

func (p *fakeProcess) Identity() process.Identity { return p.id }
func (p *fakeProcess) Done() <-chan struct{}      { return p.done }
func (p *fakeProcess) Release()                   {}

func (p *fakeProcess) Exit() process.ExitStatus {
	<-p.done
	return p.status
}

func (p *fakeProcess) Sockets(uint16) (process.Sockets, error) { return process.Sockets{}, nil }

func (p *fakeProcess) Vitals() (process.Vitals, error) {
	var v process.Vitals
	if p.world.vitals != nil {
		v = p.world.vitals(time.Since(p.started))
	}
	v.At = time.Now()
	return v, nil
}

func (p *fakeProcess) Stop(context.Context, process.Policy) (process.StopReport, error) {
	select {
	case <-p.done:
		return process.StopReport{}, nil
	default:
	}
	if p.world.kills {
		p.end(process.ExitStatus{Code: process.CodeUnknown, Signal: syscall.SIGKILL})
		return process.StopReport{Signals: []process.Sent{{Signal: syscall.SIGKILL}}, KilledAt: time.Now()}, nil
	}
	p.end(process.ExitStatus{Code: process.CodeUnknown, Signal: syscall.SIGTERM})
	return process.StopReport{Signals: []process.Sent{{Signal: syscall.SIGTERM, PIDs: []int{p.id.PID}}}}, nil
}

type fakeProber struct{ *fakeWorld }

func (p fakeProber) Ready(ctx context.Context, w probe.Wait) (probe.Result, error) {
	select {
	case <-time.After(p.readyAfter):
	case <-ctx.Done():
		return probe.Result{}, context.Cause(ctx)
	}
	if p.exit != nil {
		p.running.end(*p.exit)
		return probe.Result{}, exitedError(p.running)
	}
	return probe.Result{Endpoint: netip.AddrPortFrom(w.Host, 8080), Asked: 1}, nil
}

func (p fakeProber) Identify(context.Context, netip.AddrPort, probe.Field, string) error {
	if p.dying == 0 {
		return nil
	}
	time.AfterFunc(p.dying, func() {
		p.running.end(process.ExitStatus{Code: process.CodeUnknown, Signal: syscall.SIGKILL})
	})
	return fmt.Errorf("ask: %w", syscall.ECONNRESET)
}

func (fakeProber) Count(context.Context, netip.AddrPort, probe.Field) (int, error) { return 1, nil }

func (p fakeProber) Activity(context.Context, netip.AddrPort, probe.Activity) (probe.Load, error) {
	if p.requests == nil {
		return probe.Load{}, nil
	}
	requests := p.requests(time.Since(p.running.started))
	if requests < 0 {
		return probe.Load{}, errors.New("connection refused")
	}
	return probe.Load{InFlight: requests}, nil
}

func (fakeProber) Complete(context.Context, netip.AddrPort, probe.Completion, string, int) (probe.Answer, error) {
	return probe.Answer{}, nil
}

type fakeTrust struct{}

func (fakeTrust) Check(context.Context, trust.File) error { return nil }

type fakeHandoff struct{}

func (fakeHandoff) Publish(handoff.Entry) (string, error) { return "", nil }
func (fakeHandoff) Withdraw(string) error                 { return nil }
func (fakeHandoff) Keep(func(handoff.Entry) bool) error   { return nil }

type fakeLogs struct{}

func (fakeLogs) Begin(registry.PoolID, int, uint64) (string, error) { return "/log", nil }
func (fakeLogs) Remove(string) error                                { return nil }
func (fakeLogs) Settle(string, int, func(string) bool) error        { return nil }
func (fakeLogs) Pools() ([]registry.PoolID, error)                  { return nil, nil }
func (fakeLogs) RemovePool(registry.PoolID) error                   { return nil }
func (fakeLogs) Tail(string, int) ([]string, error) {
	return []string{"CUDA error: out of memory"}, nil
}
func (fakeLogs) Size(string) (int64, error)                                 { return 0, nil }
func (fakeLogs) Follow(ctx context.Context, _ string, _ func(string)) error { return wait(ctx) }
func (fakeLogs) Keep(ctx context.Context, _ string) error                   { return wait(ctx) }

func wait(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
