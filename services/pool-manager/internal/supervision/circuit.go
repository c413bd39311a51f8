// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"fmt"
	"slices"
	"time"
)

// Breaker is where a breaker stands. In JSON it is its name.
type Breaker int

// The states, as roundhouse.pool.v1.BreakerState describes them.
const (
	Closed Breaker = iota + 1
	Open
	HalfOpen
)

func (b Breaker) String() string {
	switch b {
	case Closed:
		return "CLOSED"
	case Open:
		return "OPEN"
	case HalfOpen:
		return "HALF_OPEN"
	default:
		return "UNSPECIFIED"
	}
}

// MarshalText returns the name.
func (b Breaker) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText takes a name, and no other text.
func (b *Breaker) UnmarshalText(text []byte) error {
	for known := range HalfOpen + 1 {
		if string(text) == known.String() {
			*b = known
			return nil
		}
	}
	return fmt.Errorf("%q is no state of a breaker", text)
}

// circuit counts failures of one kind and has a breaker of its own. The zero value is closed and has seen none.
type circuit struct {
	// FailedStarts in a row.
	FailedStarts int `json:"failed_starts,omitempty"`
	// Failures of the last window, oldest first; no more than the policy counts.
	Failures []time.Time `json:"failures,omitempty"`
	// Breaker may be unspecified, which is closed.
	Breaker Breaker `json:"breaker,omitzero"`
	// OpenFor is how long the breaker was opened for last.
	OpenFor time.Duration `json:"open_for,omitempty"`
	// Cause is why the breaker opened; empty while it is closed.
	Cause string `json:"cause,omitempty"`
	// FailedTrials since it opened.
	FailedTrials int `json:"failed_trials,omitempty"`
}

// tripped is whether the breaker is open or half open.
func (c circuit) tripped() bool { return c.Breaker == Open || c.Breaker == HalfOpen }

// count adds one failure.
func (c circuit) count(now time.Time, p BreakerPolicy, f Failure) circuit {
	if !f.WasReady {
		c.FailedStarts = min(c.FailedStarts+1, maxCount)
	}
	failures := make([]time.Time, 0, len(c.Failures)+1)
	for _, at := range c.Failures {
		if age := now.Sub(at); age >= 0 && age < p.Window {
			failures = append(failures, at)
		}
	}
	failures = append(failures, now)
	c.Failures = slices.Clip(failures[max(0, len(failures)-p.FailuresInWindow):])
	return c
}

// trip opens a closed breaker whose counts have reached their limits.
func (c circuit) trip(p BreakerPolicy, f Failure) circuit {
	switch {
	case c.FailedStarts >= p.FailedStarts:
		c.Cause = fmt.Sprintf("%s in a row did not get ready; the last %s", counted(c.FailedStarts, "start"), manner(f.Class))
	case len(c.Failures) >= p.FailuresInWindow:
		c.Cause = fmt.Sprintf("%s within %s; the last %s", counted(len(c.Failures), "failure"), p.Window, manner(f.Class))
	default:
		return c
	}
	c.Breaker, c.OpenFor, c.FailedTrials = Open, p.OpenFor, 0
	return c
}

// again opens the breaker for twice as long after its trial has failed.
func (c circuit) again(p BreakerPolicy) circuit {
	c.Breaker, c.OpenFor = Open, max(doubled(c.OpenFor, p.MaxOpenFor), p.OpenFor)
	c.FailedTrials = min(c.FailedTrials+1, maxCount)
	return c
}

// trial makes an open breaker half open.
func (c circuit) trial() circuit {
	if c.Breaker == Open {
		c.Breaker = HalfOpen
	}
	return c
}

// cause says why the breaker is open or half open; it is empty while it is closed.
func (c circuit) cause() string {
	switch {
	case !c.tripped():
		return ""
	case c.FailedTrials > 0:
		return fmt.Sprintf("%s; since then %s failed", c.Cause, counted(c.FailedTrials, "trial"))
	default:
		return c.Cause
	}
}

// counted reads "1 start" or "2 starts".
func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// doubled is twice d, at least 0 and at most limit.
func doubled(d, limit time.Duration) time.Duration {
	if d > limit/2 {
		return limit
	}
	return 2 * max(d, 0)
}
