// SPDX-License-Identifier: Apache-2.0

package supervision

import "time"

// minDelay is the shortest wait before a start that is not made at once: shorter ones would make a busy loop of a bad flag.
const minDelay = 500 * time.Millisecond

// What a field of a policy means that is 0.
const (
	defaultFirstDelay       = time.Second
	defaultMaxDelay         = time.Minute
	defaultImmediateAfter   = time.Minute
	defaultResetAfter       = time.Minute
	defaultFailedStarts     = 5
	defaultFailuresInWindow = 10
	defaultWindow           = 10 * time.Minute
	defaultOpenFor          = 5 * time.Minute
	defaultMaxOpenFor       = time.Hour
	defaultCloseAfter       = time.Minute
)

// What a policy may ask for at most, as its proto says.
const (
	maxDuration = 24 * time.Hour
	maxOpen     = 7 * 24 * time.Hour
	maxCount    = 1000
)

// Policy says how engines of a pool are started again, as roundhouse.pool.v1.RestartPolicy describes it.
type Policy struct {
	FirstDelay     time.Duration `json:"first_delay,omitempty"`
	MaxDelay       time.Duration `json:"max_delay,omitempty"`
	ImmediateAfter time.Duration `json:"immediate_after,omitempty"`
	ResetAfter     time.Duration `json:"reset_after,omitempty"`
	Breaker        BreakerPolicy `json:"breaker,omitzero"`
}

// BreakerPolicy says when a breaker opens and closes, as roundhouse.pool.v1.BreakerPolicy describes it.
type BreakerPolicy struct {
	FailedStarts     int           `json:"failed_starts,omitempty"`
	FailuresInWindow int           `json:"failures_in_window,omitempty"`
	Window           time.Duration `json:"window,omitempty"`
	OpenFor          time.Duration `json:"open_for,omitempty"`
	MaxOpenFor       time.Duration `json:"max_open_for,omitempty"`
	CloseAfter       time.Duration `json:"close_after,omitempty"`
}

// WithDefaults fills in what is 0. The result can be used whatever the policy was: limits hold, and the most is never less
// than the first. A first that is not given gives way to a most that is.
func (p Policy) WithDefaults() Policy {
	p.FirstDelay, p.MaxDelay = growth(p.FirstDelay, p.MaxDelay, defaultFirstDelay, defaultMaxDelay, maxDuration)
	p.ImmediateAfter = filled(p.ImmediateAfter, defaultImmediateAfter)
	p.ResetAfter = filled(p.ResetAfter, defaultResetAfter)
	p.Breaker = p.Breaker.withDefaults()
	return p
}

func (p BreakerPolicy) withDefaults() BreakerPolicy {
	p.FailedStarts = filledCount(p.FailedStarts, defaultFailedStarts)
	p.FailuresInWindow = filledCount(p.FailuresInWindow, defaultFailuresInWindow)
	p.Window = filled(p.Window, defaultWindow)
	p.OpenFor, p.MaxOpenFor = growth(p.OpenFor, p.MaxOpenFor, defaultOpenFor, defaultMaxOpenFor, maxOpen)
	p.CloseAfter = filled(p.CloseAfter, defaultCloseAfter)
	return p
}

// growth fills in a first wait and the longest that it grows to.
func growth(first, most, defaultFirst, defaultMost, limit time.Duration) (filledFirst, filledMost time.Duration) {
	if most <= 0 {
		most = defaultMost
	}
	if first <= 0 {
		first = min(defaultFirst, most)
	}
	first = min(max(first, minDelay), limit)
	return first, min(max(most, first), limit)
}

func filled(d, otherwise time.Duration) time.Duration {
	if d <= 0 {
		return otherwise
	}
	return min(d, maxDuration)
}

func filledCount(n, otherwise int) int {
	if n <= 0 {
		return otherwise
	}
	return min(n, maxCount)
}

// Check is nil if the policy makes sense, else a *reason.Error that names each field at fault as a request with a spec has
// it, such as spec.restart.max_delay. A field that is 0 is not at fault.
func (p Policy) Check() error {
	var c checker
	c.between("spec.restart.first_delay", p.FirstDelay, minDelay, maxDuration)
	c.between("spec.restart.max_delay", p.MaxDelay, minDelay, maxDuration)
	c.between("spec.restart.immediate_after", p.ImmediateAfter, 0, maxDuration)
	c.between("spec.restart.reset_after", p.ResetAfter, 0, maxDuration)
	c.atLeast("spec.restart.max_delay", p.MaxDelay, "first_delay", p.FirstDelay)
	b := p.Breaker
	c.count("spec.restart.breaker.failed_starts", b.FailedStarts)
	c.count("spec.restart.breaker.failures_in_window", b.FailuresInWindow)
	c.between("spec.restart.breaker.window", b.Window, 0, maxDuration)
	c.between("spec.restart.breaker.open_for", b.OpenFor, 0, maxDuration)
	c.between("spec.restart.breaker.max_open_for", b.MaxOpenFor, 0, maxOpen)
	c.atLeast("spec.restart.breaker.max_open_for", b.MaxOpenFor, "open_for", b.OpenFor)
	c.between("spec.restart.breaker.close_after", b.CloseAfter, 0, maxDuration)
	return c.err()
}
