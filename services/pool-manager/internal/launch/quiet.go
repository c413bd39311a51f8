// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
)

const (
	// leftoverPatience is how long the requests are waited for of an engine that served and belongs to nobody any more: a
	// crash in the middle of a reload or a drain must not cut what these would not have cut.
	leftoverPatience = 30 * time.Second
	// quietPause is between two looks at them. Two without a request, so far apart, are enough.
	quietPause = 100 * time.Millisecond
	// silentLooks is how often in a row it may not answer.
	silentLooks = 3
)

// awaitQuiet waits for the requests of an engine that an earlier manager had made ready, as far as its record says how to count
// them, and returns how many are left.
func (e *Engine) awaitQuiet(ctx context.Context) int {
	source := e.record.Activity
	at, err := netip.ParseAddrPort(strings.TrimPrefix(e.record.Endpoint, "http://"))
	if source == nil || err != nil {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, leftoverPatience)
	defer cancel()
	left, zeros, silent := 0, 0, 0
	for {
		load, err := e.launcher.config.Prober.Activity(ctx, at, probe.Activity{Path: source.Path, Gauges: source.Gauges})
		switch {
		case err != nil:
			silent++
		case load.InFlight > 0:
			left, zeros, silent = load.InFlight, 0, 0
		default:
			left, silent = 0, 0
			zeros++
		}
		if zeros >= 2 || silent >= silentLooks {
			return left
		}
		select {
		case <-time.After(quietPause):
		case <-e.Done():
			return 0
		case <-ctx.Done():
			return left
		}
	}
}
