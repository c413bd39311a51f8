// SPDX-License-Identifier: Apache-2.0

// Package launch turns a prepared engine into a running one that has proven what it is, and takes it down again.
//
// A launch checks the files, records the intent durably, makes the process, waits until it answers on a socket of its
// own and names our model, and then offers it to others. In this order: a crash at any point leaves a record from which
// Reclaim, at the next start, finds and ends what is left (G1, G6). A launch that fails leaves no process and no record.
// An Engine is proven gone before its record is removed (G9).
//
// Nothing here decides to start or to stop. A Launcher may be used by many goroutines, an Engine by one at a time but for
// InFlight, Withdraw and Offer.
package launch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

// defaultStartupTimeout is for contracts that name none: a large model on a slow disk takes minutes.
const defaultStartupTimeout = 10 * time.Minute

// Config of a Launcher. Every field without a default is required.
type Config struct {
	Host    *process.Host
	Records *state.Store
	Handoff *handoff.Dir
	Trust   *trust.Verifier
	Prober  *probe.Prober
	// LogDir is the absolute folder under which each pool's logs lie in a folder of their own.
	LogDir string
	// Env is what every engine gets besides what its contract says, as NAME=value.
	Env []string
	// Logger; nil means none.
	Logger *zap.Logger
}

// Launcher launches engines on this machine.
type Launcher struct {
	config Config
}

// New returns a Launcher. It starts nothing.
func New(config Config) (*Launcher, error) {
	if config.Host == nil || config.Records == nil || config.Handoff == nil || config.Trust == nil || config.Prober == nil {
		return nil, errors.New("launch: host, records, handoff, trust and prober are required")
	}
	if !filepath.IsAbs(config.LogDir) {
		return nil, fmt.Errorf("launch: log folder %q is not an absolute path", config.LogDir)
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	return &Launcher{config: config}, nil
}

// loopback is where engines listen.
func loopback() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }

// Request asks for one engine.
type Request struct {
	Pool       registry.PoolID
	Replica    registry.ReplicaID
	Index      int
	Generation uint64
	Prepared   *enginev1.PreparedEngine
	// Port to serve on; 0 lets the engine pick one.
	Port uint16
	// StartupTimeout; 0 means what the contract says, or 10 minutes if it says nothing.
	StartupTimeout time.Duration
}

func (r Request) timeout() time.Duration {
	if r.StartupTimeout > 0 {
		return r.StartupTimeout
	}
	if timeout := r.Prepared.GetContract().GetStartupTimeout(); timeout.AsDuration() > 0 {
		return timeout.AsDuration()
	}
	return defaultStartupTimeout
}

// Stage tells that a launch has come to a phase.
type Stage struct {
	Phase   registry.Phase
	PID     int
	Started time.Time
	LogPath string
}

// Info is what is known of an engine that is ready.
type Info struct {
	Endpoint string
	PID      int
	Slots    int
	Started  time.Time
	Ready    time.Time
	LogPath  string
}

// Stopped is how an engine was stopped.
type Stopped struct {
	Exit registry.Exit
	// Killed is true if some process had to be killed because it did not end when told to.
	Killed bool
}

// Error says why a launch failed after the process was made, and stage was told of it. It wraps an error with a reason.
type Error struct {
	// Exit is how the process ended; nil if it could not be ended.
	Exit *registry.Exit
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Launch returns an engine that is ready, or an error when nothing of it is left: an *Error if a process had been made and
// stage was told of it, and another if not. It tells stage when the process exists and when it is asked to prove itself.
// If ctx ends the launch is undone and the cause is returned. Processes that cannot be ended, which takes a kernel that
// does not answer, are the one thing that may be left: then the *Error has no Exit, its reason is StopFailed, and the
// engine is returned with it, to be stopped again.
//
// The log of a start takes the place of those before it when the start is ready or has failed by itself. One that the end
// of ctx has undone leaves them, up to 8, and its own beside them; one that made no process leaves them and none of its own.
func (l *Launcher) Launch(ctx context.Context, request Request, stage func(Stage)) (*Engine, error) {
	how, err := understand(l.config.Env, request)
	if err != nil {
		return nil, err
	}
	if err := l.check(ctx, request); err != nil {
		return nil, err
	}
	e, err := l.spawn(ctx, request, how)
	if err != nil {
		return nil, err
	}
	stage(Stage{Phase: registry.PhaseLoading, PID: e.info.PID, Started: e.info.Started, LogPath: e.info.LogPath})
	err = l.record(e)
	if err == nil {
		err = e.prove(ctx, func() {
			stage(Stage{Phase: registry.PhaseVerifying, PID: e.info.PID, Started: e.info.Started, LogPath: e.info.LogPath})
		})
	}
	if err == nil {
		err = e.Offer()
	}
	if err != nil {
		err = e.undo(ctx, err)
		if failed := (*Error)(nil); errors.As(err, &failed) && failed.Exit == nil {
			return e, err
		}
		return nil, err
	}
	e.settleLogs(0)
	return e, nil
}
