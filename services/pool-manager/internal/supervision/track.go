// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"fmt"
	"strings"
	"time"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Track is what is remembered of one replica: how it was started and failed, what it waits for and where its breakers stand.
// The zero value is a replica that was never started. In JSON it keeps all of that; see Saving and Resume.
//
// Failures that a GPU caused and all others are counted apart and have a breaker each, so that neither opens the other's.
// The order of calls is Starting, then Ready if it gets there, then Failed if it ends and nobody had asked for that. A
// start that was made although a breaker is open is its trial.
type Track struct {
	// Restarts counts starts after the first one, or since Reset.
	Restarts uint64 `json:"restarts,omitempty"`
	// Started is true once a start has begun.
	Started bool `json:"started,omitempty"`
	// GaveUp is true if the last start failed in a way that the next one would repeat. It must not be started by itself.
	GaveUp bool `json:"gave_up,omitempty"`
	// NextAttempt is when to start it; zero unless it waits.
	NextAttempt time.Time `json:"next_attempt,omitzero"`
	// ReadySince is when it got READY; zero unless it is.
	ReadySince time.Time `json:"ready_since,omitzero"`
	// Backoff is the delay that grows; Waited the one that it was last told to wait, without jitter. Both are 0 before the
	// first delay and after a stable run.
	Backoff time.Duration `json:"backoff,omitempty"`
	Waited  time.Duration `json:"waited,omitempty"`
	// SavedAt is when all of this was true.
	SavedAt time.Time `json:"saved_at,omitzero"`

	General circuit `json:"general,omitzero"`
	GPU     circuit `json:"gpu,omitzero"`
}

// Failure is an end that nobody had asked for, or a start that did not get as far as having a process.
type Failure struct {
	// Class says why; unspecified if there was no process.
	Class enginev1.ExitClass
	// WasReady is whether it had got READY, and ReadyFor for how long; 0 otherwise.
	WasReady bool
	ReadyFor time.Duration
}

// Verdict says what to do about a Failure.
type Verdict int

// The verdicts.
const (
	// RestartNow starts it again at once.
	RestartNow Verdict = iota + 1
	// RestartLater starts it again after a delay.
	RestartLater
	// BreakerOpened starts it again after a long delay, as the trial of a breaker.
	BreakerOpened
	// GiveUp does not start it again.
	GiveUp
)

func (v Verdict) String() string {
	switch v {
	case RestartNow:
		return "RESTART_NOW"
	case RestartLater:
		return "RESTART_LATER"
	case BreakerOpened:
		return "BREAKER_OPENED"
	case GiveUp:
		return "GIVE_UP"
	default:
		return "UNSPECIFIED"
	}
}

// Decision is what follows from a Failure.
type Decision struct {
	Verdict Verdict
	// Delay is how long to wait, and At until when; 0 and now for RestartNow, 0 and zero for GiveUp.
	Delay time.Duration
	At    time.Time
	// Cause says why, for people.
	Cause string
}

// Status is what others see of a replica's supervision, as roundhouse.pool.v1.Supervision describes it.
type Status struct {
	Restarts     uint64
	FailedStarts int
	// NextAttempt is zero unless the replica waits to be started again.
	NextAttempt time.Time
	// Breaker is that of the two that holds back more.
	Breaker Breaker
	// BreakerCause is empty while the breaker is closed.
	BreakerCause string
}

// Starting remembers that a start begins. It is the one trial of each breaker that is open.
func (t Track) Starting(now time.Time) Track {
	if t.Started {
		t.Restarts++
	}
	t.Started, t.GaveUp = true, false
	t.NextAttempt, t.ReadySince, t.SavedAt = time.Time{}, time.Time{}, now
	t.General, t.GPU = t.General.trial(), t.GPU.trial()
	return t
}

// Ready remembers that the start got READY. Its breakers stay half open until it was READY for a while: see Stable.
func (t Track) Ready(now time.Time) Track {
	t.GaveUp, t.NextAttempt, t.ReadySince, t.SavedAt = false, time.Time{}, now, now
	t.General, t.GPU = t.General.trial(), t.GPU.trial()
	t.General.FailedStarts, t.GPU.FailedStarts = 0, 0
	return t
}

// Failed remembers a failure and decides what follows. Unless it is GiveUp there is always a next attempt. random, from 0
// up to 1, spreads the delay by 10 % to both sides. G8.
func (t Track) Failed(now time.Time, p Policy, f Failure, random float64) (Track, Decision) {
	p = p.WithDefaults()
	if f.WasReady {
		t = t.ran(p, f.ReadyFor)
	}
	t.NextAttempt, t.ReadySince, t.SavedAt = time.Time{}, time.Time{}, now
	if f.Class == enginev1.ExitClass_EXIT_CLASS_GPU_FAULT {
		t.GPU = t.GPU.count(now, p.Breaker, f)
	} else {
		t.General = t.General.count(now, p.Breaker, f)
	}
	if Permanent(f.Class) {
		return t.giveUp(f)
	}
	if wait := t.judge(p.Breaker, f); wait > 0 {
		t.NextAttempt = now.Add(wait)
		return t, Decision{Verdict: BreakerOpened, Delay: wait, At: t.NextAttempt, Cause: t.Status().BreakerCause}
	}
	if f.WasReady && f.ReadyFor >= p.ImmediateAfter {
		return t, Decision{Verdict: RestartNow, At: now, Cause: outcome(f)}
	}
	t.Backoff = max(doubled(t.Backoff, p.MaxDelay), p.FirstDelay)
	t.Waited = t.Backoff
	if f.Class == enginev1.ExitClass_EXIT_CLASS_GPU_FAULT {
		t.Waited = doubled(t.Backoff, p.MaxDelay)
	}
	delay := spread(t.Waited, random)
	t.NextAttempt = now.Add(delay)
	return t, Decision{Verdict: RestartLater, Delay: delay, At: t.NextAttempt, Cause: outcome(f)}
}

// ran takes into account that it had been READY for so long before it failed.
func (t Track) ran(p Policy, readyFor time.Duration) Track {
	t.General.FailedStarts, t.GPU.FailedStarts = 0, 0
	if readyFor >= p.Breaker.CloseAfter {
		t, _ = t.closed()
	}
	if readyFor >= max(p.ResetAfter, doubled(t.Waited, maxDuration)) {
		t.Backoff, t.Waited = 0, 0
	}
	return t
}

// judge opens the breakers that have to be, and returns how long they hold back the next start; 0 if none does. A breaker
// that was not closed had its trial.
func (t *Track) judge(p BreakerPolicy, f Failure) time.Duration {
	var wait time.Duration
	for _, c := range []*circuit{&t.General, &t.GPU} {
		if c.tripped() {
			*c = c.again(p)
		} else {
			*c = c.trip(p, f)
		}
		if c.tripped() {
			wait = max(wait, c.OpenFor)
		}
	}
	return wait
}

// giveUp leaves nothing to wait for. The breakers close: there is no trial that they could allow.
func (t Track) giveUp(f Failure) (Track, Decision) {
	t, _ = t.closed()
	t.GaveUp = true
	return t, Decision{Verdict: GiveUp, Cause: "it " + manner(f.Class) + ": the same start would end the same way"}
}

// closed closes the breakers that are not, which forgets what they have counted, and tells whether there was one. Starts
// in a row that failed are still that.
func (t Track) closed() (Track, bool) {
	changed := false
	for _, c := range []*circuit{&t.General, &t.GPU} {
		if c.tripped() {
			*c, changed = circuit{FailedStarts: c.FailedStarts}, true
		}
	}
	return t, changed
}

// NextCheck returns when Stable will change something, if the replica goes on being READY; zero if it will not.
func (t Track) NextCheck(p Policy) time.Time {
	if t.ReadySince.IsZero() || !t.General.tripped() && !t.GPU.tripped() {
		return time.Time{}
	}
	return t.ReadySince.Add(p.WithDefaults().Breaker.CloseAfter)
}

// Stable closes the breakers of a replica that was READY for long enough, and tells whether that changed anything.
func (t Track) Stable(now time.Time, p Policy) (Track, bool) {
	at := t.NextCheck(p)
	if at.IsZero() || now.Before(at) {
		return t, false
	}
	t.SavedAt = now
	return t.closed()
}

// Reset forgets every failure: breakers close, nothing is waited for, nothing is given up, and Restarts begins anew. A
// replica that is READY stays so.
func (t Track) Reset() Track {
	return Track{Started: t.Started, ReadySince: t.ReadySince, SavedAt: t.SavedAt}
}

// Status returns what others see.
func (t Track) Status() Status {
	s := Status{
		Restarts:     t.Restarts,
		FailedStarts: t.General.FailedStarts + t.GPU.FailedStarts,
		NextAttempt:  t.NextAttempt,
		Breaker:      Closed,
	}
	var causes []string
	for _, c := range []circuit{t.General, t.GPU} {
		if c.tripped() {
			causes = append(causes, c.cause())
		}
		if c.Breaker == Open || c.Breaker == HalfOpen && s.Breaker != Open {
			s.Breaker = c.Breaker
		}
	}
	s.BreakerCause = strings.Join(causes, "; ")
	return s
}

// spread makes a delay up to 10 % longer or shorter.
func spread(d time.Duration, random float64) time.Duration {
	if !(random >= 0 && random < 1) { // Not a number is neither.
		random = 0.5
	}
	return max(time.Duration(float64(d)*(0.9+0.2*random)), minDelay)
}

// outcome says how a start ended and how far it had come.
func outcome(f Failure) string {
	if !f.WasReady {
		return "it " + manner(f.Class) + " before it was ready"
	}
	return fmt.Sprintf("it %s after it had been ready for %s", manner(f.Class), f.ReadyFor.Round(time.Millisecond))
}
