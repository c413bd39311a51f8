// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// patient watches one engine: each look is one sample, 5 s after the one before unless said otherwise.
type patient struct {
	t        *testing.T
	health   Health
	now      time.Time
	cpu      time.Duration
	counters float64
	live     Liveness
}

func newPatient(t *testing.T) *patient {
	t.Helper()
	p := &patient{t: t, now: noon(), cpu: time.Minute, counters: 1000}
	p.look(0, p.answered(0), Fine)
	return p
}

// answered is a sample with so many requests in flight.
func (p *patient) answered(inFlight int) Sample {
	return Sample{Answered: true, Known: true, InFlight: inFlight, HasCounters: true, Counters: p.counters}
}

func (p *patient) look(after time.Duration, s Sample, want Pulse) Finding {
	p.t.Helper()
	p.now = p.now.Add(after)
	s.At, s.CPU = p.now, p.cpu
	var got Finding
	p.live, got = p.live.Observe(p.health, s)
	p.check(got, want)
	return got
}

func (p *patient) check(got Finding, want Pulse) {
	p.t.Helper()
	if got.Pulse != want || (got.Cause != "") != (want == Hung) {
		p.t.Fatalf("at %s: %s %q, want %s", p.now.Sub(noon()), got.Pulse, got.Cause, want)
	}
}

// keep looks every 5 s for a while, at what next says, and wants it to be fine.
func (p *patient) keep(during time.Duration, next func() Sample) {
	p.t.Helper()
	for end := p.now.Add(during); p.now.Before(end); {
		s := next()
		p.look(min(5*time.Second, end.Sub(p.now)), s, Fine)
	}
}

func (p *patient) canaryDone(after time.Duration, s Sample, failed error, want Pulse) Finding {
	p.t.Helper()
	p.now = p.now.Add(after)
	s.At, s.CPU = p.now, p.cpu
	var got Finding
	p.live, got = p.live.CanaryDone(p.health, s, failed)
	p.check(got, want)
	return got
}

// idleUntilAsked leaves it idle until a canary is wanted.
func (p *patient) idleUntilAsked() {
	p.t.Helper()
	p.keep(5*time.Minute-5*time.Second, func() Sample { return p.answered(0) })
	p.look(5*time.Second, p.answered(0), AskCanary)
}

func (p *patient) wantActive(ago time.Duration) {
	p.t.Helper()
	if got := p.now.Sub(p.live.LastActive()); got != ago {
		p.t.Errorf("last active %s ago, want %s", got, ago)
	}
}

func TestHungWithStillCounters(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.counters++
	p.look(5*time.Second, p.answered(3), Fine)
	p.keep(55*time.Second, func() Sample { return p.answered(3) })
	got := p.look(5*time.Second, p.answered(3), Hung)
	if want := "3 requests in flight and no counter has moved for 1m0s"; got.Cause != want {
		t.Errorf("cause %q, want %q", got.Cause, want)
	}
	p.look(5*time.Second, p.answered(3), Hung)
	p.counters++ // Late, but it moves.
	p.look(5*time.Second, p.answered(3), Fine)
}

// Processor time while it answers proves little, for an engine that spins uses it too: it counts for a while.
func TestSpinningWithStillCountersIsHungLater(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.counters++
	p.look(5*time.Second, p.answered(3), Fine)
	spinning := func() Sample {
		p.cpu += 5 * time.Second
		return p.answered(3)
	}
	p.keep(10*time.Minute-5*time.Second, spinning)
	p.look(5*time.Second, spinning(), Hung)
	p.counters++
	p.look(5*time.Second, spinning(), Fine)
	p.keep(5*time.Minute, spinning)
	p.keep(55*time.Second, func() Sample { return p.answered(3) }) // It does not spin any more either.
	p.look(5*time.Second, p.answered(3), Hung)
}

func TestStallBeginsWithTheFirstRequest(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.keep(10*time.Second, func() Sample { return p.answered(0) })
	p.keep(55*time.Second, func() Sample { return p.answered(1) })
	p.look(5*time.Second, p.answered(1), Hung)
}

func TestLongHonestWorkIsFine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		next func(*patient) Sample
	}{
		{"a counter moves now and then", func(p *patient) Sample {
			if p.now.Sub(noon())%(50*time.Second) == 0 {
				p.counters++
			}
			return p.answered(1)
		}},
		{"counters fall, as those of another process would", func(p *patient) Sample { p.counters--; return p.answered(1) }},
		{"no answer, but it computes", func(p *patient) Sample { p.cpu += 60 * time.Millisecond; return Sample{} }},
		{"no answer, and processor time is not known", func(p *patient) Sample { p.cpu = 0; return Sample{} }},
		{"no answer, and processor time shrinks: a process ended", func(p *patient) Sample { p.cpu -= time.Millisecond; return Sample{} }},
		{"no counters", func(*patient) Sample { return Sample{Answered: true, Known: true, InFlight: 2} }},
		{"counters that are no number", func(*patient) Sample {
			return Sample{Answered: true, Known: true, InFlight: 2, HasCounters: true, Counters: math.NaN()}
		}},
		{"counters without end", func(*patient) Sample {
			return Sample{Answered: true, Known: true, InFlight: 2, HasCounters: true, Counters: math.Inf(1)}
		}},
		{"requests are not known", func(p *patient) Sample { s := p.answered(2); s.Known = false; return s }},
		{"a number of requests that cannot be", func(p *patient) Sample { return p.answered(-1) }},
		{"idle", func(p *patient) Sample { return p.answered(0) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.health.NoCanary = true
			p.keep(6*time.Hour, func() Sample { return tt.next(p) })
		})
	}
}

func TestHungWithoutAnswer(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		// every is how often samples come, and used how much processor time there is in the one with this number.
		every time.Duration
		used  func(sample int) time.Duration
	}{
		{"stopped", 5 * time.Second, func(int) time.Duration { return 0 }},
		{"a trickle is no work", 5 * time.Second, func(int) time.Duration { return 40 * time.Millisecond }},
		{"a tick now and then is no work", time.Second, func(n int) time.Duration {
			if n%4 == 0 {
				return 10 * time.Millisecond
			}
			return 0
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.keep(time.Minute, func() Sample { p.cpu += 5 * time.Second; return Sample{} })
			stopped := p.now
			var got Finding
			for n := 1; got.Pulse != Hung; n++ {
				p.now, p.cpu = p.now.Add(tt.every), p.cpu+tt.used(n)
				p.live, got = p.live.Observe(p.health, Sample{At: p.now, CPU: p.cpu})
				if after := p.now.Sub(stopped); (got.Pulse == Hung) != (after >= time.Minute) {
					t.Fatalf("%s after it stopped: %+v, want it to be hung from 1m on", after, got)
				}
			}
			if !strings.Contains(got.Cause, "not answered") {
				t.Errorf("cause %q does not say that it has not answered", got.Cause)
			}
		})
	}
}

// A clock that was set back is none to measure processor time by.
func TestWorkAfterTimeRanBackwards(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	working := func() Sample { p.cpu += 5 * time.Second; return Sample{} }
	p.keep(time.Minute, working)
	p.look(-time.Hour, working(), Fine)
	p.keep(10*time.Minute, working)
}

// Counters that could not be read before have not stood still meanwhile, nor has an engine that answered our canary.
func TestClockBeginsAnew(t *testing.T) {
	t.Parallel()
	t.Run("first counters", func(t *testing.T) {
		t.Parallel()
		p := &patient{t: t, now: noon(), cpu: time.Minute, counters: 1000}
		p.look(0, Sample{}, Fine)
		p.keep(50*time.Second, func() Sample { return Sample{} })
		p.keep(time.Minute, func() Sample { return p.answered(1) })
		p.look(5*time.Second, p.answered(1), Hung)
	})
	t.Run("canary", func(t *testing.T) {
		t.Parallel()
		p := newPatient(t)
		p.idleUntilAsked()
		p.keep(50*time.Second, func() Sample { return p.answered(2) })
		p.canaryDone(0, p.answered(1), nil, Fine)
		p.keep(55*time.Second, func() Sample { return p.answered(1) })
		p.look(5*time.Second, p.answered(1), Hung)
	})
}

// The clock goes on when a busy engine whose counters stand still stops answering, and ends when it answers and is idle.
func TestOneClockForAllSigns(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.keep(40*time.Second, func() Sample { return p.answered(1) })
	p.keep(15*time.Second, func() Sample { return Sample{} })
	hung := *p
	hung.look(10*time.Second, Sample{}, Hung)
	p.look(5*time.Second, p.answered(0), Fine)
	p.keep(55*time.Second, func() Sample { return p.answered(1) })
}

func TestGapBeginsAnew(t *testing.T) {
	t.Parallel()
	slack := 3 * (5*time.Second + readLimit)
	busy := func(p *patient) Sample { return p.answered(1) }
	silent := func(*patient) Sample { return Sample{} }
	tests := []struct {
		name  string
		gap   time.Duration
		next  func(*patient) Sample
		after Pulse
	}{
		{"counters stand still, late sample", slack, busy, Hung},
		{"counters stand still, samples missing", slack + 1, busy, Fine},
		{"counters stand still, hours missing", 5 * time.Hour, busy, Fine},
		{"counters stand still, time runs backwards", -time.Hour, busy, Fine},
		{"no answer, late sample", slack, silent, Hung},
		{"no answer, samples missing", slack + 1, silent, Fine},
		{"no answer, time runs backwards", -time.Hour, silent, Fine},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.keep(50*time.Second, func() Sample { return tt.next(p) })
			p.look(tt.gap, tt.next(p), tt.after)
			if tt.after == Fine {
				p.keep(55*time.Second, func() Sample { return tt.next(p) })
				p.look(5*time.Second, tt.next(p), Hung)
			}
		})
	}
}

// A single sample decides nothing even if the limit is shorter than the interval: it may have been us who stood still.
func TestOneSampleDecidesNothing(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.health.StallLimit = time.Second
	p.look(5*time.Second, p.answered(1), Fine)
	p.look(5*time.Second, p.answered(1), Hung)
}

func TestCanaryIsAskedOnceWhileIdle(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.idleUntilAsked()
	p.keep(20*time.Minute, func() Sample { return p.answered(0) }) // Nobody has told what came of it.
	p.canaryDone(0, p.answered(0), nil, Fine)
	p.idleUntilAsked()
}

func TestNoCanary(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		next func(*patient) Sample
	}{
		{"not wanted", func(p *patient) Sample { p.health.NoCanary = true; return p.answered(0) }},
		{"busy", func(p *patient) Sample { p.counters++; return p.answered(1) }},
		{"short requests between samples", func(p *patient) Sample { p.counters++; return p.answered(0) }},
		{"requests are not known", func(p *patient) Sample { s := p.answered(0); s.Known = false; return s }},
		{"no answer", func(p *patient) Sample { p.cpu += time.Second; return Sample{} }},
		{"no answer, with numbers of before", func(p *patient) Sample {
			p.cpu += time.Second
			s := p.answered(0)
			s.Answered = false
			return s
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.keep(20*time.Minute, func() Sample { return tt.next(p) })
		})
	}
}

func TestFailedCanary(t *testing.T) {
	t.Parallel()
	timeout := errors.New("no answer in time")
	tests := []struct {
		name string
		// meanwhile is what samples show while it waits, afterwards what the last one shows.
		meanwhile, afterwards func(*patient) Sample
		wait                  time.Duration
		want                  Pulse
	}{
		{
			"nothing moves", func(p *patient) Sample { return p.answered(0) },
			func(p *patient) Sample { p.cpu += time.Minute; return p.answered(0) }, 50 * time.Second, Hung,
		},
		{
			"refused at once", nil,
			func(p *patient) Sample { return p.answered(0) }, 0, Hung,
		},
		{
			"other requests moved counters", func(p *patient) Sample { p.counters++; return p.answered(4) },
			func(p *patient) Sample { return p.answered(1) }, 50 * time.Second, Fine,
		},
		{
			"counters moved at the end", func(p *patient) Sample { return p.answered(1) },
			func(p *patient) Sample { p.counters++; return p.answered(0) }, 50 * time.Second, Fine,
		},
		{
			"counters moved before it stopped answering", func(p *patient) Sample { p.counters++; return p.answered(1) },
			func(*patient) Sample { return Sample{} }, 50 * time.Second, Fine,
		},
		{
			"no answer, nothing used", func(*patient) Sample { return Sample{} },
			func(*patient) Sample { return Sample{} }, 50 * time.Second, Hung,
		},
		{
			"no answer, but it computes", func(p *patient) Sample { p.cpu += time.Second; return Sample{} },
			func(*patient) Sample { return Sample{} }, 50 * time.Second, Fine,
		},
		{
			"no answer, and processor time is not known", func(p *patient) Sample { return p.answered(0) },
			func(p *patient) Sample { p.cpu = 0; return Sample{} }, 50 * time.Second, Fine,
		},
		{
			"we were asleep", nil,
			func(p *patient) Sample { return p.answered(0) }, time.Hour, Fine,
		},
		{
			"time runs backwards", nil,
			func(p *patient) Sample { return p.answered(0) }, -time.Hour, Fine,
		},
		{
			"its caller took no samples meanwhile", nil,
			func(p *patient) Sample { return p.answered(0) }, time.Minute, Hung,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			p.idleUntilAsked()
			if tt.meanwhile != nil {
				p.keep(tt.wait, func() Sample { return tt.meanwhile(p) })
				tt.wait = 0
			}
			got := p.canaryDone(tt.wait, tt.afterwards(p), timeout, tt.want)
			if tt.want == Hung {
				if !strings.Contains(got.Cause, timeout.Error()) {
					t.Errorf("cause %q does not say what failed", got.Cause)
				}
				return
			}
			p.idleUntilAsked()
		})
	}
}

// Without counters processor time tells whether anything else was done.
func TestFailedCanaryWithoutCounters(t *testing.T) {
	t.Parallel()
	const unknown = -1
	tests := []struct {
		wait, used time.Duration
		want       Pulse
	}{
		{time.Minute, 500 * time.Millisecond, Hung},
		{time.Minute, 600 * time.Millisecond, Fine},
		{0, 0, Hung},
		{time.Minute, -time.Second, Fine},      // A process ended.
		{time.Minute, -20 * time.Minute, Fine}, // Not known.
		{time.Minute, unknown, Fine},
	}
	for _, tt := range tests {
		p := &patient{t: t, now: noon(), cpu: time.Minute}
		if tt.used == unknown {
			p.cpu, tt.used = 0, 0
		}
		idle := Sample{Answered: true, Known: true}
		p.look(0, idle, Fine)
		p.keep(5*time.Minute-5*time.Second, func() Sample { return idle })
		p.look(5*time.Second, idle, AskCanary)
		p.cpu += tt.used
		p.canaryDone(tt.wait, idle, errors.New("late"), tt.want)
	}
}

func TestCanaryDoneThatWasNotAsked(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	before := p.live
	p.canaryDone(time.Second, p.answered(0), errors.New("late"), Fine)
	if p.live != before {
		t.Errorf("it has changed %+v to %+v", before, p.live)
	}
}

func TestLastActive(t *testing.T) {
	t.Parallel()
	if got := (Liveness{}).LastActive(); !got.IsZero() {
		t.Errorf("before any sample: %s, want none", got)
	}
	tests := []struct {
		name string
		next func(*patient) Sample
		idle bool
	}{
		{"idle", func(p *patient) Sample { return p.answered(0) }, true},
		{"requests in flight", func(p *patient) Sample { return p.answered(1) }, false},
		{"requests between samples", func(p *patient) Sample { p.counters++; return p.answered(0) }, false},
		{"computes without answer", func(p *patient) Sample { p.cpu += 10 * time.Second; return Sample{} }, false},
		{"stopped", func(*patient) Sample { return Sample{} }, true},
		{"counters that are no number", func(*patient) Sample {
			return Sample{Answered: true, Known: true, HasCounters: true, Counters: math.NaN()}
		}, true},
		{"requests are not known, counters stand still", func(p *patient) Sample { s := p.answered(0); s.Known = false; return s }, true},
		{"requests are not known, counters move", func(p *patient) Sample {
			p.counters++
			s := p.answered(0)
			s.Known = false
			return s
		}, false},
		{"nothing can be seen", func(*patient) Sample { return Sample{Answered: true} }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := newPatient(t)
			for range 4 { // Of 5 s each: less than any limit.
				p.look(5*time.Second, tt.next(p), Fine)
			}
			if tt.idle {
				p.wantActive(20 * time.Second)
			} else if got := p.now.Sub(p.live.LastActive()); got > 5*time.Second {
				t.Errorf("last active %s ago, want the last sample or the one before", got)
			}
		})
	}
}

// Counters that are seen for the first time have not moved.
func TestFirstCountersAreNoActivity(t *testing.T) {
	t.Parallel()
	p := &patient{t: t, now: noon(), cpu: time.Minute, counters: 1000}
	p.look(0, Sample{}, Fine)
	p.look(5*time.Second, p.answered(0), Fine)
	p.wantActive(5 * time.Second)
}

// Our own canary is no use of the engine, also if its counters move after its answer; a request beside it is.
func TestCanaryIsNoActivity(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.idleUntilAsked()
	p.wantActive(5 * time.Minute)
	p.counters++
	p.look(5*time.Second, p.answered(1), Fine)
	p.counters++
	p.canaryDone(time.Second, p.answered(0), nil, Fine)
	p.counters++ // Late.
	p.look(5*time.Second, p.answered(0), Fine)
	p.wantActive(5*time.Minute + 11*time.Second)
	p.counters++
	p.look(5*time.Second, p.answered(0), Fine)
	p.wantActive(0)

	p.idleUntilAsked()
	p.cpu += time.Minute
	p.look(10*time.Second, Sample{}, Fine) // It works on the canary and does not answer.
	p.wantActive(5*time.Minute + 10*time.Second)
	p.canaryDone(time.Second, p.answered(0), nil, Fine)
	p.look(5*time.Second, Sample{}, Fine)
	p.counters++ // Later still: nobody could see it.
	p.look(5*time.Second, p.answered(0), Fine)
	p.wantActive(5*time.Minute + 21*time.Second)

	p.idleUntilAsked()
	p.look(5*time.Second, p.answered(2), Fine)
	p.wantActive(0)
	p.canaryDone(5*time.Second, p.answered(1), nil, Fine)
	p.wantActive(0)
}
