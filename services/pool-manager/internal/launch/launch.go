// SPDX-License-Identifier: Apache-2.0

// Package launch turns a prepared engine into a running one that has proven what it is, takes over one that an earlier
// manager had started, and takes either down again.
//
// A launch checks the files, records the intent durably, makes the process, waits until it answers on a socket of its
// own and names our model, and then offers it to others. In this order: a crash at any point leaves a record by which
// Leftovers, at the next start, finds what is left, to be taken over with Adopt or ended with End (G1, G4, G6). A launch
// that fails leaves no process and no record. An Engine is proven gone before its record is removed (G9), and between the
// two it is put on record how its start has ended (G7), once.
//
// Nothing here decides to start or to stop, but for a load that does not move any more. A Launcher may be used by many
// goroutines. Of an Engine, Stop, Bury and Release may be called by one at a time, and nothing after Release; the other
// methods by many.
package launch

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

const (
	// defaultStartupTimeout is for contracts that name none: a large model on a slow disk takes minutes.
	defaultStartupTimeout = 10 * time.Minute
	// defaultStallLimit is for requests that name none: a disk of a network may be gone for a minute and come back.
	defaultStallLimit = 120 * time.Second
	// parallelSaves is how many records are saved at once in the background: of a hundred engines that are taken over
	// together, none is worth keeping a start waiting that saves its own.
	parallelSaves = 4
)

// ErrLeave is the cause of a context's end that leaves a start as it is, for the next manager to take over.
var ErrLeave = errors.New("the pool manager ends and leaves its engines running")

// Config of a Launcher. Every field without a default is required.
type Config struct {
	Host    Host
	Records Records
	Handoff Handoff
	Trust   Trust
	Prober  Prober
	Logs    Logs
	// Env is what every engine gets besides what its contract says, as NAME=value.
	Env []string
	// Logger; nil means none.
	Logger *zap.Logger
}

// Launcher launches engines on this machine.
type Launcher struct {
	config Config
	offers offers
	// saving holds one value for each save in the background that is under way.
	saving chan struct{}

	mu   sync.Mutex      // mu guards what follows.
	logs map[string]bool // paths of logs whose engines may run.
}

// New returns a Launcher. It starts nothing.
func New(config Config) (*Launcher, error) {
	if config.Host == nil || config.Records == nil || config.Handoff == nil || config.Trust == nil || config.Prober == nil || config.Logs == nil {
		return nil, errors.New("launch: host, records, handoff, trust, prober and logs are required")
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	return &Launcher{
		config: config,
		offers: offers{of: map[registry.ReplicaID]*offer{}},
		saving: make(chan struct{}, parallelSaves),
		logs:   map[string]bool{},
	}, nil
}

// loopback is where engines listen.
func loopback() netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 1}) }

// Request asks for one engine.
type Request struct {
	Pool       registry.PoolID
	Replica    registry.ReplicaID
	Index      int
	Generation uint64
	// Edition of the pool that the engine belongs to.
	Edition  uint64
	Prepared *enginev1.PreparedEngine
	// StartedBy says why, for people: "preload", "restart" and the like.
	StartedBy string
	// Port to serve on; 0 lets the engine pick one.
	Port uint16
	// Quiet does not Offer the engine when it is ready.
	Quiet bool
	// MustOffer makes a handoff file that cannot be written a failure. Otherwise it is logged: an engine that serves matters more.
	MustOffer bool
	// StartupTimeout; 0 means what the contract says, or 10 minutes if it says nothing.
	StartupTimeout time.Duration
	// LoadStallLimit ends a load of which nothing has moved for so long; 0 means 120 s.
	LoadStallLimit time.Duration
	// ExpectedLoad is how long the last load of the same prepared engine took; 0 if there was none.
	ExpectedLoad time.Duration
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

func (r Request) stallLimit() time.Duration {
	if r.LoadStallLimit > 0 {
		return r.LoadStallLimit
	}
	return defaultStallLimit
}

// Stage tells that a launch has come to a phase, or how far the phase of loading has come.
type Stage struct {
	Phase   registry.Phase
	PID     int
	Started time.Time
	LogPath string
	// Loading is nil unless Phase is PhaseLoading. Nobody changes it.
	Loading *registry.LoadProgress
}

// Info is what is known of an engine that is ready.
type Info struct {
	Endpoint string
	PID      int
	Slots    int
	Started  time.Time
	Ready    time.Time
	LogPath  string
	// Adopted is true if an earlier manager had started it.
	Adopted bool
	// LoadTime is how long it took to get ready; 0 if nobody has seen that.
	LoadTime time.Duration
}

// Error says why a launch failed after the process was made, and stage was told of it, or why a start of an earlier
// manager could not be taken over. It wraps an error with a reason.
type Error struct {
	// Exit is how the process ended; nil if it could not be ended.
	Exit *registry.Exit
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// Launch returns an engine that is ready, or an error when nothing of it is left: an *Error if a process had been made and
// stage was told of it, and another if not. It tells stage when the process exists, how its load comes on (which may be
// told from another goroutine, never two at once), and when it is asked to prove itself.
//
// If ctx ends the launch is undone and the cause is returned. If that cause is ErrLeave nothing is undone: the process, its
// record and its log stay, nothing here holds them any more, and the error wraps ErrLeave. Processes that cannot be ended,
// which takes a kernel that does not answer, are the one thing that may be left otherwise: then the *Error has no Exit, its
// reason is StopFailed, and the engine is returned with it, to be stopped again.
//
// The log of a start takes the place of those before it when the start is ready or has failed by itself, but for those of
// engines that still run. One that the end of ctx has undone leaves them, up to 8, and its own beside them; one that made
// no process leaves them and none of its own.
func (l *Launcher) Launch(ctx context.Context, request Request, stage func(Stage)) (*Engine, error) {
	e, err := l.start(ctx, request)
	if err != nil {
		return nil, err
	}
	limits := limits{ready: request.timeout(), still: request.stallLimit()}
	stage(e.stage(registry.PhaseLoading))
	if err = l.config.Records.Save(e.record); err == nil { // Which process was made.
		e.recorded = true
		failpoint.Hit(failpoint.StartRecorded)
		err = e.prove(ctx, limits, stage)
	}
	if err == nil && !request.Quiet {
		failpoint.Hit(failpoint.StartProven)
		if err = e.Offer(); err != nil && !request.MustOffer {
			l.config.Logger.Warn("handoff was not written", zap.String("replica_id", string(request.Replica)), zap.Error(err))
			err = nil
		}
		failpoint.Hit(failpoint.StartOffered)
	}
	if err != nil {
		return e.fail(ctx, err)
	}
	e.settleLogs(0)
	e.saveReady()
	return e, nil
}
