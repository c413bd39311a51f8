// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"net/netip"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

// Whatever a Launcher does to the world goes through the interfaces here. The real ones promise what they are documented
// to; one of a simulation has to keep the same promises and may block on channels, timers and contexts only.

// Host is the process table of this machine. Package process has the real one; see HostOf.
type Host interface {
	BootID() string
	Spawn(command process.Command) (Process, error)
	Attach(id process.Identity) (Process, error)
	Sweep(ctx context.Context, nonce string, policy process.Policy) (process.StopReport, error)
	Holder(port uint16) (pid int, comm string, err error)
	Strays(manager string, known []string) ([]process.Stray, error)
}

// Process is one start of an engine with all of its processes.
type Process interface {
	Identity() process.Identity
	Done() <-chan struct{}
	Exit() process.ExitStatus
	Sockets(port uint16) (process.Sockets, error)
	Vitals() (process.Vitals, error)
	Stop(ctx context.Context, policy process.Policy) (process.StopReport, error)
	Release()
}

// Prober asks engines. Package probe has the real one.
type Prober interface {
	Ready(ctx context.Context, wait probe.Wait) (probe.Result, error)
	Identify(ctx context.Context, at netip.AddrPort, field probe.Field, want string) error
	Count(ctx context.Context, at netip.AddrPort, field probe.Field) (int, error)
	Activity(ctx context.Context, at netip.AddrPort, activity probe.Activity) (probe.Load, error)
	Complete(ctx context.Context, at netip.AddrPort, how probe.Completion, prompt string, maxTokens int) (probe.Answer, error)
}

// Records keep what must survive the manager. Package state has the real ones.
type Records interface {
	ManagerID() string
	Save(record state.Record) error
	Remove(key state.Key) error
	Load() (state.Loaded, error)
	SaveStart(start state.StartRecord) error
	Starts(pool string) ([]state.StartRecord, error)
}

// Trust decides whether a file may be executed. Package trust has the real one.
type Trust interface {
	Check(ctx context.Context, file trust.File) error
}

// Handoff tells programs without gRPC about replicas. Package handoff has the real one.
type Handoff interface {
	Publish(entry handoff.Entry) (path string, err error)
	Withdraw(replica string) error
	Keep(wanted func(handoff.Entry) bool) error
}

// Logs are what engines have written, one log for each start. FileLogs are the real ones.
type Logs interface {
	// Begin returns where the log of a start goes, where nothing is yet. The logs of other starts stay.
	Begin(pool registry.PoolID, index int, generation uint64) (path string, err error)
	// Remove removes a log, with what was trimmed from it.
	Remove(path string) error
	// Settle removes the logs of other starts of the replica whose log is at path, but the newest others and those in use.
	Settle(path string, others int, inUse func(path string) bool) error
	// Pools tells which pools have logs, and RemovePool removes all of one; if it has none that is no error.
	Pools() ([]registry.PoolID, error)
	RemovePool(pool registry.PoolID) error
	// Tail returns the last n lines of a log, and Size how long it is in bytes.
	Tail(path string, n int) ([]string, error)
	Size(path string) (int64, error)
	// Follow calls line with each line of a log, those that are there first, until ctx ends.
	Follow(ctx context.Context, path string, line func(text string)) error
	// Keep keeps a log small until ctx ends, which is nil.
	Keep(ctx context.Context, path string) error
}

// HostOf makes the real process table a Host.
func HostOf(host *process.Host) Host { return realHost{host} }

type realHost struct{ *process.Host }

func (h realHost) Spawn(command process.Command) (Process, error) {
	return processOf(h.Host.Spawn(command))
}

func (h realHost) Attach(id process.Identity) (Process, error) {
	return processOf(h.Host.Attach(id))
}

// processOf keeps a nil *process.Process from becoming a Process that is not nil.
func processOf(p *process.Process, err error) (Process, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}
