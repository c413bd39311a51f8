// SPDX-License-Identifier: Apache-2.0

package supervision

import "time"

// What a field of Health means that is 0.
const (
	defaultInterval       = 5 * time.Second
	defaultStallLimit     = time.Minute
	defaultLoadStallLimit = 2 * time.Minute
	defaultCanaryInterval = 5 * time.Minute
	defaultCanaryTimeout  = time.Minute
)

// What Health may ask for.
const (
	leastHealth  = 100 * time.Millisecond
	longestProbe = time.Hour
)

// readLimit is more than one reading of an engine takes, whether it answers or not.
const readLimit = 2 * time.Second

// Health says how it is told whether engines work, as roundhouse.pool.v1.HealthPolicy describes it.
type Health struct {
	Interval       time.Duration `json:"interval,omitempty"`
	StallLimit     time.Duration `json:"stall_limit,omitempty"`
	LoadStallLimit time.Duration `json:"load_stall_limit,omitempty"`
	CanaryInterval time.Duration `json:"canary_interval,omitempty"`
	CanaryTimeout  time.Duration `json:"canary_timeout,omitempty"`
	NoCanary       bool          `json:"no_canary,omitempty"`
}

// WithDefaults fills in what is 0 or less.
func (h Health) WithDefaults() Health {
	h.Interval = filled(h.Interval, defaultInterval)
	h.StallLimit = filled(h.StallLimit, defaultStallLimit)
	h.LoadStallLimit = filled(h.LoadStallLimit, defaultLoadStallLimit)
	h.CanaryInterval = filled(h.CanaryInterval, defaultCanaryInterval)
	h.CanaryTimeout = filled(h.CanaryTimeout, defaultCanaryTimeout)
	return h
}

// Check is nil if every field makes sense, else a *reason.Error that names each field at fault as a request with a spec
// has it, such as spec.health.interval. A field that is 0 is not at fault.
func (h Health) Check() error {
	var c checker
	c.between("spec.health.interval", h.Interval, leastHealth, longestProbe)
	c.between("spec.health.stall_limit", h.StallLimit, leastHealth, maxDuration)
	c.between("spec.health.load_stall_limit", h.LoadStallLimit, leastHealth, maxDuration)
	c.between("spec.health.canary_interval", h.CanaryInterval, leastHealth, maxDuration)
	c.between("spec.health.canary_timeout", h.CanaryTimeout, leastHealth, longestProbe)
	return c.err()
}

// interrupted is whether more time lies between two samples than sampling explains: then it was the sampler that stood
// still, and nothing follows for the engine. Time that runs backwards is no time to judge by either.
func (h Health) interrupted(last, now time.Time) bool {
	gap := now.Sub(last)
	return gap < 0 || gap > h.slack()
}

// slack is how late a sample may be on a machine that is busy.
func (h Health) slack() time.Duration { return 3 * (h.Interval + readLimit) }

// clock tells for how long nothing has moved. A limit counts only with two samples in a row that saw nothing move, so that
// one sample after a pause of any kind decides nothing.
type clock struct {
	moved time.Time
	still int
}

// stood counts a sample that saw nothing move.
func (c clock) stood() clock {
	c.still = min(c.still+1, 2)
	return c
}

// stopped is whether nothing has moved for limit.
func (c clock) stopped(at time.Time, limit time.Duration) bool {
	return c.still >= 2 && at.Sub(c.moved) >= limit
}

// meter tells whether processor time is used by more than a trickle: 1 % of a window, which is a tenth of the limit that it
// is needed for. A single tick of a clock says nothing.
type meter struct {
	at  time.Time
	cpu time.Duration
}

// observe is true at the end of a window in which processor time was used. What is not known, or has shrunk, does not
// prove that none was.
func (m meter) observe(at time.Time, cpu, limit time.Duration) (meter, bool) {
	if m.cpu <= 0 || cpu < m.cpu {
		return meter{at: at, cpu: cpu}, true
	}
	if at.Sub(m.at) < limit/10 {
		return m, false
	}
	return meter{at: at, cpu: cpu}, worked(cpu-m.cpu, at.Sub(m.at))
}

// worked is whether so much processor time in a time is more than a trickle.
func worked(cpu, passed time.Duration) bool { return cpu > 0 && cpu >= passed/100 }
