// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/enginelog"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// prove returns nil when the engine is ready, on a socket of its own, and names our model (G6).
func (e *Engine) prove(ctx context.Context, verifying func()) error {
	ctx, cancel := context.WithTimeout(ctx, e.request.timeout())
	defer cancel()
	contract := e.request.Prepared.GetContract()
	hint, following := e.hint(ctx, contract.GetReadyLogHint())
	defer following()
	found, err := e.launcher.config.Prober.Ready(ctx, probe.Wait{
		Engine:  e.process,
		Holders: e.launcher.config.Host,
		Host:    loopback(),
		Port:    e.request.Port,
		Path:    contract.GetReady().GetPath(),
		Status:  int(contract.GetReady().GetStatus()),
		Hint:    hint,
	})
	if err != nil {
		return err
	}
	verifying()
	if err := e.identify(ctx, found.Endpoint); err != nil {
		return err
	}
	e.endpoint = found.Endpoint
	e.info.Endpoint = "http://" + found.Endpoint.String()
	e.info.Ready = time.Now()
	// The record of the start is durable; that it got ready need not be, for it can be asked again.
	e.record.Phase, e.record.Endpoint = state.Ready, e.info.Endpoint
	return nil
}

// identify asks the engine which model it serves and how many requests at once.
func (e *Engine) identify(ctx context.Context, at netip.AddrPort) error {
	contract, prober := e.request.Prepared.GetContract(), e.launcher.config.Prober
	identity := contract.GetIdentity()
	field := probe.Field{Path: identity.GetField().GetPath(), Name: identity.GetField().GetField()}
	if err := prober.Identify(ctx, at, field, identity.GetExpected()); err != nil {
		return reason.New(reason.WorkerStartFailed, "the engine did not prove which model it serves", reason.Cause(err),
			reason.Remedy("look at the engine's log; it may not be the engine that it was prepared as"))
	}
	slots := contract.GetSlots()
	if slots == nil {
		return nil
	}
	count, err := prober.Count(ctx, at, probe.Field{Path: slots.GetPath(), Name: slots.GetField()})
	if err != nil {
		return reason.New(reason.WorkerStartFailed, "the engine did not say how many slots it has", reason.Cause(err),
			reason.Remedy("look at the engine's log; it may not be the engine that it was prepared as"))
	}
	e.info.Slots = count
	return nil
}

// hint follows the engine's log and signals each line that holds the text. The returned function tells it to end, and does
// not wait: giving up a watch on a file takes the kernel some 15 ms, which would be the larger part of what a start costs.
// clear waits.
func (e *Engine) hint(ctx context.Context, text string) (<-chan struct{}, func()) {
	if text == "" {
		return nil, func() {}
	}
	hint := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	e.hinting.Go(func() {
		// A log that cannot be followed costs some milliseconds, not the start.
		_ = enginelog.Follow(ctx, e.info.LogPath, 0, func(line enginelog.Line) error {
			if strings.Contains(line.Text, text) {
				select {
				case hint <- struct{}{}:
				default:
				}
			}
			return nil
		})
	})
	return hint, cancel
}

// InFlight asks the engine how many requests it has. An error means that it does not say.
func (e *Engine) InFlight(ctx context.Context) (int, error) {
	activity := e.request.Prepared.GetContract().GetActivity()
	if activity == nil {
		return 0, fmt.Errorf("replica %s: its engine has no count of requests", e.request.Replica)
	}
	return e.launcher.config.Prober.InFlight(ctx, e.endpoint, probe.Activity{Path: activity.GetPath(), Gauges: activity.GetGauges()})
}
