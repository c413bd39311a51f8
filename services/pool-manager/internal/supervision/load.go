// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"fmt"
	"time"
)

// LoadSample is what was seen of a process that loads, at one time: sums over its tree since it began.
type LoadSample struct {
	At       time.Time
	IOBytes  uint64
	Faults   uint64
	RSS      uint64
	LogBytes uint64
	// CPU is the processor time used so far; 0 if that is not known.
	CPU time.Duration
}

// Movement is what a sample says of a load.
type Movement struct {
	// StillSince is since when nothing has moved; zero while something does, and for a fifth of the limit after.
	StillSince time.Time
	// Stalled is whether that is too long; Cause says so for people.
	Stalled bool
	Cause   string
}

// Load judges a process that loads by what moves of it, from samples in the order of time. The zero value has seen none.
type Load struct {
	last  LoadSample
	clock clock
	meter meter
}

// Observe judges by one more sample: a load moves when bytes were read or written, pages faulted, its memory or its log
// changed, or processor time was used by more than a trickle. It is stalled when none of that was so for LoadStallLimit. The
// same gap between samples as for Liveness begins the time anew; Interval is how often samples of loads come.
func (l Load) Observe(h Health, s LoadSample) (Load, Movement) {
	h = h.WithDefaults()
	restart := l.last.At.IsZero() || h.interrupted(l.last.At, s.At)
	if restart {
		l.meter = meter{}
	}
	var used bool
	l.meter, used = l.meter.observe(s.At, s.CPU, h.LoadStallLimit)
	used = used && s.CPU > 0 // Unlike with a ready engine there is more to go by.
	if restart || used || l.last.differs(s) {
		l.clock = clock{moved: s.At}
	} else {
		l.clock = l.clock.stood()
	}
	l.last = s
	var m Movement
	still := s.At.Sub(l.clock.moved)
	if still > 0 && still >= h.LoadStallLimit/5 {
		m.StillSince = l.clock.moved
	}
	if l.clock.stopped(s.At, h.LoadStallLimit) {
		m.Stalled, m.StillSince = true, l.clock.moved
		m.Cause = fmt.Sprintf("nothing of its load has moved for %s", still.Round(time.Millisecond))
	}
	return l, m
}

func (s LoadSample) differs(o LoadSample) bool {
	return s.IOBytes != o.IOBytes || s.Faults != o.Faults || s.RSS != o.RSS || s.LogBytes != o.LogBytes
}
