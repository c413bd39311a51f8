// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"time"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// phaseClock notes when each phase of a load began.
type phaseClock struct {
	began, ready time.Time
	phases       map[poolv1.LoadPhase]time.Time
}

// enter notes that a phase begins now. Only its first beginning counts.
func (c *phaseClock) enter(phase poolv1.LoadPhase) {
	if _, entered := c.phases[phase]; !entered {
		c.phases[phase] = time.Now()
	}
}

// fill writes how long the parts took. A phase that never came took no time.
func (c *phaseClock) fill(timeline *Timeline) {
	loading := c.at(poolv1.LoadPhase_LOAD_PHASE_LOADING, c.ready)
	starting := c.at(poolv1.LoadPhase_LOAD_PHASE_STARTING, loading)
	timeline.Prepare = starting.Sub(c.began)
	timeline.Start = loading.Sub(starting)
	timeline.Ready = c.ready.Sub(loading)
}

// at is when a phase began; fallback if it never did.
func (c *phaseClock) at(phase poolv1.LoadPhase, fallback time.Time) time.Time {
	if at, entered := c.phases[phase]; entered {
		return at
	}
	return fallback
}
