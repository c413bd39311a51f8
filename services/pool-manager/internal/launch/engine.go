// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// undoLimit is how long the undoing of a failed launch may take, on top of the engine's own stop protocol.
const undoLimit = time.Minute

// Ending says why an engine is ended, for the record of its start.
type Ending struct {
	// By says for what, for people: "drain", "reload", "hung" and the like.
	By string
	// RequestsCut is how many requests it had when it was told to end.
	RequestsCut int
	// Hung is true if it is ended because it makes no progress.
	Hung bool
	// Cause says more, for people; it may be empty.
	Cause string
}

// Stopped is how an engine was stopped.
type Stopped struct {
	Exit registry.Exit
	// Killed is true if some process had to be killed because it did not end when told to.
	Killed bool
}

// Engine is one running engine.
type Engine struct {
	launcher *Launcher
	request  Request
	process  Process
	record   state.Record
	how      plan
	endpoint netip.AddrPort
	info     Info
	// recorded is true once its record names the process, so that the next manager can take it over.
	recorded bool
	// inherited is true if an earlier manager had started it, and held is since when we hold it; zero if we never did.
	inherited bool
	held      time.Time
	// stuck is true once it was found that nothing of it moves while it was to prove itself.
	stuck bool

	// asked is true once it was told to end while it ran, and killed once something of it had to be killed.
	asked, killed bool
	ending        Ending
	failure       string
	// gone says how it ended, once it is proven gone.
	gone  *registry.Exit
	noted bool

	// hinting is the goroutine that follows the log while the engine gets ready, saving the one that records that it is.
	hinting, saving sync.WaitGroup
	// trimming ends the goroutine that keeps the log small, and waits for it.
	trimming func()
}

func newEngine(l *Launcher, request Request, running Process, record state.Record, how plan) *Engine {
	return &Engine{
		launcher: l, request: request, process: running, record: record, how: how, trimming: func() {},
		info: Info{PID: record.Identity.PID, Started: record.StartedAt, LogPath: record.LogPath},
	}
}

// keepLog keeps the log small from now on, and from being removed.
func (e *Engine) keepLog(ctx context.Context) {
	e.launcher.holdLog(e.info.LogPath)
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // The log outlives the launch.
	var keeping sync.WaitGroup
	keeping.Go(func() {
		if err := e.launcher.config.Logs.Keep(ctx, e.info.LogPath); err != nil {
			e.launcher.config.Logger.Warn("log is not kept small any more", zap.String("replica_id", string(e.request.Replica)), zap.Error(err))
		}
	})
	e.trimming = func() {
		cancel()
		keeping.Wait()
	}
}

func (e *Engine) stage(phase registry.Phase) Stage {
	s := Stage{Phase: phase, PID: e.info.PID, Started: e.info.Started, LogPath: e.info.LogPath}
	if phase == registry.PhaseLoading {
		progress := e.progress(time.Since(e.info.Started), 0)
		s.Loading = &progress
	}
	return s
}

// Info says what is known of the engine. It never changes.
func (e *Engine) Info() Info { return e.info }

// Done is closed when the engine's main process has exited.
func (e *Engine) Done() <-chan struct{} { return e.process.Done() }

// exited tells whether the engine's main process has exited.
func (e *Engine) exited() bool {
	select {
	case <-e.process.Done():
		return true
	default:
		return false
	}
}

// saveReady has it recorded in the background that the engine is ready. The record of its start is durable already, and
// what is lost can be asked again; nobody is to wait for a disk before the engine may be used.
func (e *Engine) saveReady() {
	record := e.record
	e.saving.Go(func() {
		e.launcher.saving <- struct{}{}
		defer func() { <-e.launcher.saving }()
		record.Identity = e.process.Identity() // A launcher that has executed the engine runs another program now.
		if err := e.launcher.config.Records.Save(record); err != nil {
			e.launcher.config.Logger.Warn("it is not on record that the engine is ready",
				zap.String("replica_id", string(e.request.Replica)), zap.Error(err))
		}
		failpoint.Hit(failpoint.StartReady)
	})
}

// Stop ends the whole tree as the contract says and returns when it is proven gone, the end of its start is on record and
// its own record removed. Its class is STOPPED, KILLED if some process had to be killed, or HUNG; an engine that had ended
// by itself before keeps the class of that. With an error some of it may be left, and the record is; call it again.
func (e *Engine) Stop(ctx context.Context, ending Ending) (Stopped, error) {
	if e.gone == nil {
		e.ending = ending
		if ending.Cause != "" {
			e.failure = ending.Cause
		}
	}
	stopped, err := e.end(ctx)
	if err != nil {
		return Stopped{}, err
	}
	return stopped, e.clear()
}

// end ends the whole tree and returns when it is proven gone.
func (e *Engine) end(ctx context.Context) (Stopped, error) {
	ran := !e.exited()
	report, err := e.process.Stop(ctx, e.how.stop)
	killed := !report.KilledAt.IsZero()
	asked := ran && killed // A KILL to its group may have ended it before it got one of its own.
	for _, sent := range report.Signals {
		asked = asked || slices.Contains(sent.PIDs, e.info.PID)
	}
	e.asked, e.killed = e.asked || asked && e.ending.By != byNobody, e.killed || killed
	if err != nil {
		return Stopped{}, err
	}
	return Stopped{Exit: e.exit(), Killed: e.killed}, nil
}

// Bury ends what an engine that is Done has left, and returns how it ended. With an error some of it may be left.
func (e *Engine) Bury(ctx context.Context) (registry.Exit, error) {
	if _, err := e.process.Stop(ctx, process.Policy{}); err != nil {
		return e.exitNow(), err
	}
	return e.exit(), e.clear()
}

// Release gives up the hold on the engine, and whatever goes on here for it. Its processes, its record, its handoff file
// and its log stay for the next manager. Repeating it does nothing.
func (e *Engine) Release() {
	e.settleDown()
	e.process.Release()
}

// settleDown returns when nothing goes on here for the engine any more.
func (e *Engine) settleDown() {
	e.trimming()
	e.hinting.Wait()
	e.saving.Wait()
	e.launcher.dropLog(e.info.LogPath)
}

// clear removes what stands for an engine that is proven gone.
func (e *Engine) clear() error {
	e.settleDown()
	withdrawn := e.Withdraw()
	failpoint.Hit(failpoint.StopEnded)
	e.note(e.exit()) // G7: before the record, which is what makes a later manager look for it.
	failpoint.Hit(failpoint.StopNoted)
	removed := e.launcher.config.Records.Remove(e.record.Key())
	failpoint.Hit(failpoint.StopCleared)
	return errors.Join(withdrawn, removed)
}

// fail is what Launch and Adopt return for an engine that has failed with err.
func (e *Engine) fail(ctx context.Context, err error) (*Engine, error) {
	if leaving(ctx) && e.recorded {
		if e.lostBefore() || !e.exited() {
			e.Release()
			return nil, fmt.Errorf("replica %s, process %d: %w", e.request.Replica, e.info.PID, ErrLeave)
		}
		err = exitedError(e.process)
	}
	err = e.undo(ctx, err)
	if failed := (*Error)(nil); errors.As(err, &failed) && failed.Exit == nil {
		return e, err
	}
	return nil, err
}

// exitedError says that a process has ended, in terms that explain knows.
func exitedError(p Process) error {
	return reason.New(reason.WorkerStartFailed, "wait for engine", reason.Cause(&probe.ExitedError{Exit: p.Exit()}),
		reason.Remedy("read the pool's logs"))
}

// undo takes a launch back that has failed with err.
func (e *Engine) undo(ctx context.Context, err error) error {
	cancelled := ctx.Err() != nil && !leaving(ctx)
	e.failure = err.Error()
	e.ending = Ending{By: e.blame(cancelled, err), Hung: e.stuck && e.wasReady()}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit+patience(e.how.stop))
	defer cancel()
	stopped, stopErr := e.end(ctx)
	if stopErr != nil {
		// That something is left matters more than why it was to go.
		return &Error{Err: errors.Join(stopErr, err)}
	}
	if !cancelled {
		err = e.explain(err, stopped.Exit)
		e.failure = err.Error()
	}
	switch {
	case e.inherited: // It made no log.
	case cancelled:
		e.settleLogs(logsOfUndone)
	default:
		e.settleLogs(0)
	}
	return &Error{Exit: &stopped.Exit, Err: errors.Join(err, e.clear())}
}

// lostBefore tells whether nobody here ever had a hold of its process.
func (e *Engine) lostBefore() bool { return e.inherited && e.held.IsZero() }

// blame says for what a start is ended that has failed with err.
func (e *Engine) blame(cancelled bool, err error) string {
	switch {
	case e.lostBefore():
		return byNobody
	case cancelled:
		return byCancel
	case e.stuck && e.wasReady():
		return byHang
	case e.stuck:
		return byStall
	case reason.Of(err) == reason.WorkerStartTimeout:
		return byTimeout
	default:
		return byMistrust
	}
}

// wasReady tells whether an earlier manager had found it ready.
func (e *Engine) wasReady() bool { return e.inherited && e.record.Phase == state.Ready }
