// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// askAgain is the pause after an engine that was ready before did not say what it is: it may be busy.
const askAgain = 100 * time.Millisecond

// endsWithin is how long an engine that has broken a connection has to be seen ending: the kernel closes a process's sockets
// a moment before its parent is told.
const endsWithin = time.Second

// limits are how long an engine may take to prove itself.
type limits struct {
	// ready limits it all.
	ready time.Duration
	// still is how long nothing of it may move meanwhile.
	still time.Duration
	// again is how long it is asked again which model it serves when it does not say; 0 asks once.
	again time.Duration
}

// prove returns nil when the engine is ready, on a socket of its own, and names our model (G6). Stage is told how the load
// comes on, and of the phase of verifying.
func (e *Engine) prove(ctx context.Context, limits limits, stage func(Stage)) error {
	ctx, cancel := context.WithTimeout(ctx, limits.ready)
	defer cancel()
	asked, err := e.awaitReady(ctx, limits.still, stage)
	if err != nil {
		return err
	}
	stage(e.stage(registry.PhaseVerifying))
	if err := e.identify(ctx, limits.again); err != nil {
		return err
	}
	e.info.Endpoint = "http://" + e.endpoint.String()
	e.info.Ready = time.Now()
	switch {
	case !e.inherited:
		e.info.LoadTime = e.info.Ready.Sub(e.info.Started)
	case !e.record.ReadyAt.IsZero():
		e.info.Ready = e.record.ReadyAt
		e.info.LoadTime = max(0, e.record.ReadyAt.Sub(e.record.StartedAt))
	case asked > 1: // We have seen it load.
		e.info.LoadTime = max(0, e.info.Ready.Sub(e.info.Started))
	}
	e.record.Phase, e.record.Endpoint, e.record.ReadyAt = state.Ready, e.info.Endpoint, e.info.Ready
	return nil
}

// awaitReady waits until the engine says that it is ready, and returns how often it was asked.
func (e *Engine) awaitReady(ctx context.Context, still time.Duration, stage func(Stage)) (asked int, err error) {
	contract := e.request.Prepared.GetContract()
	moving, watched := e.watchLoad(ctx, still, stage)
	var hint <-chan struct{}
	following := func() {}
	if !e.wasReady() {
		hint, following = e.hint(moving, contract.GetReadyLogHint())
	}
	found, err := e.launcher.config.Prober.Ready(moving, probe.Wait{
		Engine:  e.process,
		Holders: e.launcher.config.Host,
		Host:    loopback(),
		Port:    e.request.Port,
		Path:    contract.GetReady().GetPath(),
		Status:  int(contract.GetReady().GetStatus()),
		Hint:    hint,
	})
	following()
	watched()
	if err != nil && e.stuck {
		return found.Asked, context.Cause(moving)
	}
	e.stuck = false // It was ready all the same.
	e.endpoint = found.Endpoint
	return found.Asked, err
}

// identify asks the engine which model it serves and how many requests at once.
func (e *Engine) identify(ctx context.Context, again time.Duration) error {
	deadline := time.Now().Add(again)
	for {
		what, err := e.ask(ctx)
		if err == nil {
			return nil
		}
		if probe.Broken(err) {
			e.awaitEnd(ctx)
		}
		_, another := errors.AsType[*probe.MismatchError](err)
		if another || ctx.Err() != nil || e.exited() || !time.Now().Before(deadline) {
			return reason.New(reason.WorkerStartFailed, what, reason.Cause(err),
				reason.Remedy("look at the engine's log; it may not be the engine that it was prepared as"))
		}
		pause := time.NewTimer(askAgain)
		select {
		case <-pause.C:
		case <-e.process.Done():
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// awaitEnd gives an engine that may have ended a moment ago the time to be seen so.
func (e *Engine) awaitEnd(ctx context.Context) {
	limit := time.NewTimer(endsWithin)
	defer limit.Stop()
	select {
	case <-e.process.Done():
	case <-limit.C:
	case <-ctx.Done():
	}
}

// ask asks once; on error it returns what the engine did not say.
func (e *Engine) ask(ctx context.Context) (what string, err error) {
	contract, prober := e.request.Prepared.GetContract(), e.launcher.config.Prober
	identity := contract.GetIdentity()
	field := probe.Field{Path: identity.GetField().GetPath(), Name: identity.GetField().GetField()}
	if err := prober.Identify(ctx, e.endpoint, field, identity.GetExpected()); err != nil {
		return "the engine did not prove which model it serves", err
	}
	slots := contract.GetSlots()
	if slots == nil {
		return "", nil
	}
	count, err := prober.Count(ctx, e.endpoint, probe.Field{Path: slots.GetPath(), Name: slots.GetField()})
	if err != nil {
		return "the engine did not say how many slots it has", err
	}
	e.info.Slots = count
	return "", nil
}

// hint follows the engine's log and signals each line that holds the text. The returned function tells it to end, and does
// not wait: giving up a watch on a file takes the kernel some 15 ms, which would be the larger part of what a start costs.
// settleDown waits.
func (e *Engine) hint(ctx context.Context, text string) (<-chan struct{}, func()) {
	if text == "" {
		return nil, func() {}
	}
	hint := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	e.hinting.Go(func() {
		// A log that cannot be followed costs some milliseconds, not the start.
		_ = e.launcher.config.Logs.Follow(ctx, e.info.LogPath, func(line string) {
			if strings.Contains(line, text) {
				select {
				case hint <- struct{}{}:
				default:
				}
			}
		})
	})
	return hint, cancel
}
