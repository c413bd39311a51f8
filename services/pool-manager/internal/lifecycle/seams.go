// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// Preparer gets engines and models ready to run.
type Preparer interface {
	// Prepare prepares what spec says and reports the work on the way. It returns when ctx ends.
	Prepare(ctx context.Context, spec *enginev1.PrepareSpec, pool registry.PoolID, report func(*enginev1.Progress)) (*enginev1.PreparedEngine, error)
	// Prepared returns what was prepared before.
	Prepared(ctx context.Context, preparedID string) (*enginev1.PreparedEngine, error)
}

// Machine starts engines and takes over those of an earlier manager. Package launch is the real one.
type Machine interface {
	// Launch returns an engine that is proven ready, or an error, which may be a *launch.Error, when nothing of it is left.
	// With both an engine and an error, what is left of it could not be stopped. It tells of stages on the way. If ctx ends
	// with launch.ErrLeave as its cause, nothing is undone: the start is left for the next manager.
	Launch(ctx context.Context, request launch.Request, stage func(launch.Stage)) (Engine, error)
	// Adopt is Launch for a start that is under way or ready.
	Adopt(ctx context.Context, leftover launch.Leftover, request launch.Request, stage func(launch.Stage)) (Engine, error)
	// Leftovers tells what an earlier manager has left.
	Leftovers(ctx context.Context) (launch.Found, error)
	// End ends a start of an earlier manager and returns when it is proven gone; EndStray one that nobody has a record of.
	End(ctx context.Context, leftover launch.Leftover, by string) error
	EndStray(ctx context.Context, stray launch.Stray) error
	// DeleteLogs removes the logs of a pool that is forgotten; KeepOnly those of all other pools.
	DeleteLogs(pool registry.PoolID) error
	KeepOnly(pools map[registry.PoolID]bool)
}

// Engine is one running engine. It belongs to one replica.
type Engine interface {
	// Info says what is known of it; it never changes.
	Info() launch.Info
	// Done is closed when its main process has exited.
	Done() <-chan struct{}
	// Activity asks the engine what it has to do.
	Activity(ctx context.Context) (launch.Activity, error)
	// CPU is the processor time that its processes have used; 0 if it is not known.
	CPU() time.Duration
	// HasCanary is whether Canary can be asked. Canary returns nil when the engine has computed a token.
	HasCanary() bool
	Canary(ctx context.Context) error
	// Prove returns nil when the engine has passed a proof.
	Prove(ctx context.Context, proof launch.Proof) error
	// Withdraw tells those who read files that no new requests should come; Offer takes that back.
	Withdraw() error
	Offer() error
	// Stop ends the whole tree and returns when it is proven gone. With an error some of it may be left; call it again.
	Stop(ctx context.Context, ending launch.Ending) (launch.Stopped, error)
	// Bury clears away what an engine that is Done has left. With an error some of it may be left; call Stop.
	Bury(ctx context.Context) (registry.Exit, error)
	// Release leaves it running for the next manager.
	Release()
}

// Records keep what must survive the manager. Package state is the real one.
type Records interface {
	SavePool(record state.PoolRecord) error
	RemovePool(id string) error
	LoadPools() (state.LoadedPools, error)
	Starts(pool string) ([]state.StartRecord, error)
	Generations(pool string) (map[int]uint64, error)
	RemoveStarts(pool string) error
}

// Observer is told what happened. It never blocks, and may be called by many goroutines at once.
type Observer interface {
	// PreloadEnded has reason.Unspecified for one that succeeded.
	PreloadEnded(why reason.Reason, took time.Duration)
	// DrainEnded has the outcome drained, forced, gave_up or failed.
	DrainEnded(outcome string, requestsCut int, took time.Duration)
	// ReloadEnded has the action none, live, make_before_break or break_before_make.
	ReloadEnded(why reason.Reason, action string, took time.Duration)
	// EngineReady tells why the start was made: preload, restart, reload, restore, rollback or reset.
	EngineReady(startedBy string, took time.Duration)
	EngineEnded(class enginev1.ExitClass, uptime time.Duration)
	// Restart tells how long a start will be waited for.
	Restart(delay time.Duration)
	BreakerOpened()
	Adopted(ok bool, took time.Duration)
	// HealthCheck has the result fine, unanswered, canary_ok, canary_failed or hung.
	HealthCheck(result string)
}

// ignore is the Observer that nobody reads.
type ignore struct{}

func (ignore) PreloadEnded(reason.Reason, time.Duration)        {}
func (ignore) DrainEnded(string, int, time.Duration)            {}
func (ignore) ReloadEnded(reason.Reason, string, time.Duration) {}
func (ignore) EngineReady(string, time.Duration)                {}
func (ignore) EngineEnded(enginev1.ExitClass, time.Duration)    {}
func (ignore) Restart(time.Duration)                            {}
func (ignore) BreakerOpened()                                   {}
func (ignore) Adopted(bool, time.Duration)                      {}
func (ignore) HealthCheck(string)                               {}
