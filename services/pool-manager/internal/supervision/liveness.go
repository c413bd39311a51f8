// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"fmt"
	"math"
	"time"
)

// Sample is what was seen of a ready engine at one time.
type Sample struct {
	// At is when the reading was over.
	At time.Time
	// Answered is whether the page of its metrics was had.
	Answered bool
	// InFlight is how many requests it has, if that is Known.
	InFlight int
	Known    bool
	// Counters is the sum of its counters of progress, if it HasCounters.
	Counters    float64
	HasCounters bool
	// CPU is the processor time that its processes have used so far; 0 if that is not known.
	CPU time.Duration
}

// Pulse is what can be said of an engine.
type Pulse int

// What can be said.
const (
	// Fine says that nothing speaks against it.
	Fine Pulse = iota + 1
	// AskCanary wants it to be asked for a token, and CanaryDone to be told.
	AskCanary
	// Hung says that it makes no progress and has to be ended.
	Hung
)

func (p Pulse) String() string {
	switch p {
	case Fine:
		return "FINE"
	case AskCanary:
		return "ASK_CANARY"
	case Hung:
		return "HUNG"
	default:
		return "UNSPECIFIED"
	}
}

// Finding is what a sample says of an engine.
type Finding struct {
	Pulse Pulse
	// Cause says for people why it is hung; empty otherwise.
	Cause string
}

// Liveness judges a ready engine by its progress, from samples in the order of time. The zero value has seen none. How old
// a request is never matters: an engine that moves is left alone. One without counters is never hung for its requests.
type Liveness struct {
	last  Sample
	clock clock
	meter meter
	// worked is when processor time was seen to be used last.
	worked time.Time
	active time.Time
	// idle is since when there was nothing to see but idleness; a canary begins it anew.
	idle time.Time
	// counters were seen last, if counted.
	counters float64
	counted  bool
	canary   canary
}

// signs are what has moved since the sample before.
type signs struct{ counters, cpu bool }

// canary is what our own request for a token has to do with what is seen.
type canary struct {
	asked bool
	// settling is true until the next sample after an answer: counters may move late.
	settling bool
	// What was known when it was asked.
	at       time.Time
	cpu      time.Duration
	counters float64
	counted  bool
}

// LastActive returns when the engine had work that was not our canary, as far as that could be seen: requests in flight,
// counters that moved, processor time while it did not answer. What cannot be seen counts as work. It is the time of the first
// sample if there was no work since, and zero before that.
func (l Liveness) LastActive() time.Time { return l.active }

// busyFactor is how many stall limits an engine has whose counters stand still while it uses processor time: one that works
// may show it late, for counters are printed with few digits (six are usual), and one batch may take minutes.
const busyFactor = 10

// Observe judges by one more sample. It is AskCanary once for each canary: until CanaryDone there is none further. An engine
// that cannot be asked needs NoCanary.
//
// When samples were missing for longer than three intervals, all clocks for what stands still begin anew.
func (l Liveness) Observe(h Health, s Sample) (Liveness, Finding) {
	h, s = h.WithDefaults(), s.cleaned()
	if l.last.At.IsZero() {
		return l.begin(s), Finding{Pulse: Fine}
	}
	interrupted := h.interrupted(l.last.At, s.At)
	if interrupted {
		l.meter = meter{}
	}
	saw := signs{counters: s.HasCounters && l.counted && s.Counters != l.counters}
	l.meter, saw.cpu = l.meter.observe(s.At, s.CPU, h.StallLimit)
	l = l.noteWork(s, saw)
	if interrupted || l.progress(s, saw) {
		l.clock = clock{moved: s.At}
	} else {
		l.clock = l.clock.stood()
	}
	if interrupted || saw.cpu {
		l.worked = s.At
	}
	l = l.remember(s)
	limit := h.StallLimit
	if s.At.Sub(l.worked) < h.StallLimit {
		limit *= busyFactor
	}
	switch {
	case l.clock.stopped(s.At, limit):
		return l, Finding{Pulse: Hung, Cause: s.stillness(s.At.Sub(l.clock.moved))}
	case !h.NoCanary && !l.canary.asked && s.At.Sub(l.idle) >= h.CanaryInterval:
		l.canary = canary{asked: true, at: s.At, cpu: s.CPU, counters: l.counters, counted: l.counted}
		return l, Finding{Pulse: AskCanary}
	}
	return l, Finding{Pulse: Fine}
}

// CanaryDone judges by what came of the canary: failed is nil if the engine has computed a token, and s is a sample of
// afterwards. A canary that failed makes an engine hung only if nothing else of it has moved since it was asked, for other
// requests may have been before it. Without a canary that was asked it changes nothing.
func (l Liveness) CanaryDone(h Health, s Sample, failed error) (Liveness, Finding) {
	h, s = h.WithDefaults(), s.cleaned()
	if !l.canary.asked {
		return l, Finding{Pulse: Fine}
	}
	asked := l.canary
	waited := s.At.Sub(asked.at)
	moved := l.movedSince(asked, s)
	if s.Known && s.InFlight > 0 {
		l.active = s.At
	}
	l.canary = canary{settling: true}
	l.idle = s.At
	l = l.remember(s)
	if failed != nil && !moved && waited >= 0 && waited <= h.CanaryTimeout+h.slack() {
		cause := fmt.Sprintf("asked for a token, it made no progress for %s: %v", waited.Round(time.Millisecond), failed)
		return l, Finding{Pulse: Hung, Cause: cause}
	}
	l.clock = clock{moved: s.At}
	return l, Finding{Pulse: Fine}
}

// begin takes the first sample.
func (l Liveness) begin(s Sample) Liveness {
	l.active, l.idle, l.worked = s.At, s.At, s.At
	l.clock = clock{moved: s.At}
	l.meter, _ = l.meter.observe(s.At, s.CPU, 0)
	return l.remember(s)
}

// progress is whether a sample gives no reason to doubt the engine.
func (l Liveness) progress(s Sample, saw signs) bool {
	switch {
	case !s.Answered:
		return saw.cpu
	case !s.Known || s.InFlight == 0 || !s.HasCounters || !l.counted:
		return true
	default:
		return saw.counters
	}
}

// noteWork remembers work that was not our canary, and whether the engine is idle.
func (l Liveness) noteWork(s Sample, saw signs) Liveness {
	ours := 0
	if l.canary.asked {
		ours = 1
	}
	var work bool
	switch {
	case !s.Answered:
		work = saw.cpu && !l.canary.asked
	case s.Known && s.InFlight > ours, !s.Known && !s.HasCounters:
		work = true
	default:
		work = saw.counters && !l.canary.asked && !l.canary.settling
	}
	if work {
		l.active = s.At
	}
	if saw.counters || !s.idle() {
		l.idle = s.At
	}
	l.canary.settling = l.canary.settling && !s.Answered
	return l
}

// movedSince is whether anything of the engine has moved between a canary and the sample after it. Counters tell, where
// they can be read; else processor time.
func (l Liveness) movedSince(asked canary, s Sample) bool {
	if asked.counted && (l.counters != asked.counters || s.HasCounters && s.Counters != asked.counters) {
		return true
	}
	if asked.counted && s.HasCounters {
		return false
	}
	return asked.cpu <= 0 || s.CPU < asked.cpu || worked(s.CPU-asked.cpu, s.At.Sub(asked.at))
}

func (l Liveness) remember(s Sample) Liveness {
	l.last = s
	if s.HasCounters {
		l.counters, l.counted = s.Counters, true
	}
	return l
}

// cleaned leaves out numbers that cannot be.
func (s Sample) cleaned() Sample {
	if !s.Answered {
		s.Known, s.HasCounters = false, false
	}
	s.Known = s.Known && s.InFlight >= 0
	s.HasCounters = s.HasCounters && !math.IsNaN(s.Counters) && !math.IsInf(s.Counters, 0)
	return s
}

func (s Sample) idle() bool { return s.Known && s.InFlight == 0 }

// stillness says what has not moved.
func (s Sample) stillness(since time.Duration) string {
	since = since.Round(time.Millisecond)
	if s.Answered {
		return fmt.Sprintf("%s in flight and no counter has moved for %s", counted(s.InFlight, "request"), since)
	}
	return fmt.Sprintf("it has not answered, nor used processor time, for %s", since)
}
