// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"slices"
	"time"
)

// maxWait is longer than anything that a Track ever waits for: what a record says beyond it cannot be true.
const maxWait = maxOpen + maxOpen/10

// Saving returns the Track as it should be written down at now. Without it a Track that is written long after its last
// change may wait longer than it had left, should the wall clock be set back before it is read.
func (t Track) Saving(now time.Time) Track {
	if !t.NextAttempt.IsZero() {
		t.NextAttempt = now.Add(between(t.NextAttempt.Sub(now), 0, maxWait))
	}
	if !t.ReadySince.IsZero() {
		t.ReadySince = now.Add(-between(now.Sub(t.ReadySince), 0, maxWait))
	}
	for _, c := range []*circuit{&t.General, &t.GPU} {
		failures := slices.Clone(c.Failures)
		for i, at := range failures {
			failures[i] = now.Add(-now.Sub(at))
		}
		c.Failures = failures
	}
	t.SavedAt = now
	return t
}

// Resume makes a Track that was written down one of now, in a later process that has only the wall clock to compare with.
// The time passed since then shortens the wait, and a clock that was set back counts as none passed: the wait is never
// longer than what was left, and ends early at most. Time READY that was not written down has to be served again.
// Failures at times that cannot be are forgotten.
//
// After another boot nothing of it is READY, and a trial that the end of the machine cut short is to be made again.
func (t Track) Resume(now time.Time, sameBoot bool) Track { //nolint:revive // flag-parameter: a caller has the comparison, not a kind of resuming.
	passed := between(now.Sub(t.SavedAt), 0, maxWait)
	if !t.NextAttempt.IsZero() {
		left := between(t.NextAttempt.Sub(t.SavedAt), 0, maxWait)
		t.NextAttempt = now.Add(max(left-passed, 0))
	}
	if !t.ReadySince.IsZero() {
		t.ReadySince = now.Add(-between(t.SavedAt.Sub(t.ReadySince), 0, maxWait))
	}
	t.Backoff, t.Waited = between(t.Backoff, 0, maxDuration), between(t.Waited, 0, maxDuration)
	t.General, t.GPU = t.General.resumed(now, t.SavedAt, passed), t.GPU.resumed(now, t.SavedAt, passed)
	t.SavedAt = now
	if sameBoot {
		return t
	}
	t.ReadySince = time.Time{}
	for _, c := range []*circuit{&t.General, &t.GPU} {
		if c.Breaker == HalfOpen {
			c.Breaker, t.NextAttempt = Open, now
		}
	}
	return t
}

// resumed moves the failures to the present clock, keeping how old they are.
func (c circuit) resumed(now, savedAt time.Time, passed time.Duration) circuit {
	var failures []time.Time
	for _, at := range c.Failures {
		if age := savedAt.Sub(at); age >= 0 && age <= maxDuration-passed {
			failures = append(failures, now.Add(-age-passed))
		}
	}
	c.Failures = failures[max(0, len(failures)-maxCount):]
	c.FailedStarts = between(c.FailedStarts, 0, maxCount)
	c.FailedTrials = between(c.FailedTrials, 0, maxCount)
	c.OpenFor = between(c.OpenFor, 0, maxOpen)
	if !c.tripped() {
		c.Breaker, c.OpenFor, c.Cause, c.FailedTrials = 0, 0, "", 0
	}
	return c
}

// between is v, or the nearer of the limits.
func between[T int | time.Duration](v, least, most T) T { return min(max(v, least), most) }
