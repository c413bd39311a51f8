// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// adoptLimit is the least time that an engine is given to prove itself to a manager that takes it over, and how long one
// that was ready before may neither answer nor move (G5).
const adoptLimit = 5 * time.Second

// Adopt takes over a start of an earlier manager: it returns the engine when it is proven to be the recorded process (G2)
// and has proven all that Launch asks for, but for its files, for it runs already. One that still loads goes on under the
// limits of a launch, which count from its start. It tells stage of the same phases as Launch, and nothing of the load of
// an engine that was ready before.
//
// If the engine is gone, what it left is ended, its end is put on record, its own record is removed, and the *Error says
// how it ended, as far as anybody knows: the reason is EngineExited if it had been ready, else WorkerStartFailed. A process
// that has taken its pid is never touched. An engine that does not prove itself within its limits is ended, as in Launch.
// ErrLeave, and the end of ctx for another cause, do what they do in Launch. A handoff file that cannot be written ends no
// engine that serves.
func (l *Launcher) Adopt(ctx context.Context, leftover Leftover, request Request, stage func(Stage)) (*Engine, error) {
	how, misfit := understand(l.config.Env, request)
	if misfit != nil {
		how.stop = process.Graceful(leftoverGrace, leftoverGrace)
	}
	e, lost := l.take(leftover, request, how)
	err := misfit
	if err == nil && lost != nil {
		err = e.lost(lost)
	}
	if err == nil {
		failpoint.Hit(failpoint.AdoptAttached)
		e.keepLog(ctx)
		if !e.wasReady() {
			stage(e.stage(registry.PhaseLoading))
		}
		err = e.prove(ctx, e.adoptLimits(), stage)
	}
	if err != nil {
		return e.fail(ctx, err)
	}
	failpoint.Hit(failpoint.AdoptProven)
	if !request.Quiet {
		if err := e.Offer(); err != nil {
			l.config.Logger.Warn("handoff file was not written", zap.String("replica_id", string(request.Replica)), zap.Error(err))
		}
	}
	e.saveReady()
	return e, nil
}

// adoptLimits are the limits of an engine that is taken over. One that was ready may be busy, and then moves.
func (e *Engine) adoptLimits() limits {
	if e.wasReady() {
		return limits{ready: max(adoptLimit, e.request.timeout()), still: adoptLimit, again: adoptLimit}
	}
	loaded := max(0, time.Since(e.info.Started))
	return limits{ready: max(adoptLimit, e.request.timeout()-loaded), still: e.request.stallLimit(), again: adoptLimit}
}

// lost says why nobody holds the process.
func (e *Engine) lost(err error) error {
	if !errors.Is(err, process.ErrGone) && !errors.Is(err, process.ErrNotOurs) {
		return reason.New(reason.Internal, fmt.Sprintf("process %d of replica %s cannot be held", e.info.PID, e.request.Replica),
			reason.Cause(err), reason.Remedy("see why the kernel refuses it"))
	}
	why := reason.WorkerStartFailed
	if e.wasReady() {
		why = reason.EngineExited
	}
	return reason.New(why, fmt.Sprintf("the engine of replica %s is gone", e.request.Replica), reason.Cause(err),
		reason.Remedy("read the pool's logs"))
}
