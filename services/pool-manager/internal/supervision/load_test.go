// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"strings"
	"testing"
	"time"
)

func TestLoadThatMoves(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		move func(*LoadSample)
	}{
		{"reads", func(s *LoadSample) { s.IOBytes++ }},
		{"faults", func(s *LoadSample) { s.Faults++ }},
		{"memory grows", func(s *LoadSample) { s.RSS++ }},
		{"memory shrinks", func(s *LoadSample) { s.RSS-- }},
		{"log", func(s *LoadSample) { s.LogBytes++ }},
		{"computes", func(s *LoadSample) { s.CPU += 10 * time.Millisecond }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := LoadSample{At: noon(), IOBytes: 1, Faults: 1, RSS: 1 << 40, LogBytes: 1, CPU: time.Second}
			l, _ := Load{}.Observe(Health{Interval: time.Second}, s)
			for range 4 * 3600 {
				s.At = s.At.Add(time.Second)
				tt.move(&s)
				var got Movement
				if l, got = l.Observe(Health{Interval: time.Second}, s); got != (Movement{}) {
					t.Fatalf("at %s: %+v, want it to move", s.At.Sub(noon()), got)
				}
			}
		})
	}
}

func TestLoadThatStandsStill(t *testing.T) {
	t.Parallel()
	for name, trickle := range map[string]time.Duration{"stopped": 0, "a trickle is no work": 9 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := LoadSample{At: noon(), CPU: time.Second, RSS: 1}
			l, _ := Load{}.Observe(Health{}, s)
			s.At, s.RSS = s.At.Add(time.Second), 2
			l, _ = l.Observe(Health{}, s)
			moved := s.At
			for s.At.Before(moved.Add(2 * time.Minute)) {
				s.At, s.CPU = s.At.Add(time.Second), s.CPU+trickle
				var got Movement
				l, got = l.Observe(Health{}, s)
				still := s.At.Sub(moved)
				if wantSince := still >= 24*time.Second; got.StillSince.Equal(moved) != wantSince || got.StillSince.IsZero() == wantSince {
					t.Fatalf("%s after it moved: still since %s, want to be told %v", still, got.StillSince, wantSince)
				}
				if want := still >= 2*time.Minute; got.Stalled != want || strings.Contains(got.Cause, "2m0s") != want {
					t.Fatalf("%s after it moved: %+v, want stalled %v", still, got, want)
				}
			}
			s.At, s.LogBytes = s.At.Add(time.Second), 1
			if _, got := l.Observe(Health{}, s); got != (Movement{}) {
				t.Errorf("it moves again: %+v", got)
			}
		})
	}
}

func TestLoadWithoutSamples(t *testing.T) {
	t.Parallel()
	slack := 3 * (time.Second + readLimit)
	for gap, want := range map[time.Duration]bool{slack: true, slack + 1: false, 10 * time.Hour: false, -time.Hour: false} {
		for _, cpu := range []time.Duration{time.Second, 0} { // 0 is not known.
			health := Health{Interval: time.Second}
			s := LoadSample{At: noon(), CPU: cpu}
			l, _ := Load{}.Observe(health, s)
			for range 119 {
				s.At = s.At.Add(time.Second)
				l, _ = l.Observe(health, s)
			}
			s.At = s.At.Add(gap)
			if _, got := l.Observe(health, s); got.Stalled != want {
				t.Errorf("a sample %s after 119 s of standing still: %+v, want stalled %v", gap, got, want)
			}
		}
	}
}

// A clock that was set back is none to measure processor time by.
func TestLoadAfterTimeRanBackwards(t *testing.T) {
	t.Parallel()
	s := LoadSample{At: noon(), CPU: time.Second}
	l, _ := Load{}.Observe(Health{}, s)
	s.At = s.At.Add(-time.Hour)
	for range 300 {
		s.At, s.CPU = s.At.Add(time.Second), s.CPU+time.Second
		var got Movement
		if l, got = l.Observe(Health{}, s); got.Stalled {
			t.Fatalf("it computes: %+v", got)
		}
	}
}

// Processor time that is not known says nothing for a load, which has more to go by.
func TestLoadWithUnknownProcessorTime(t *testing.T) {
	t.Parallel()
	s := LoadSample{At: noon()}
	l, _ := Load{}.Observe(Health{}, s)
	var got Movement
	for range 120 {
		s.At = s.At.Add(time.Second)
		l, got = l.Observe(Health{}, s)
	}
	if !got.Stalled {
		t.Errorf("after 2 min of standing still: %+v, want stalled", got)
	}
}

// One sample decides nothing, however short the limit.
func TestLoadIsNotJudgedByOneSample(t *testing.T) {
	t.Parallel()
	health := Health{LoadStallLimit: 100 * time.Millisecond}
	s := LoadSample{At: noon(), CPU: time.Second}
	l, _ := Load{}.Observe(health, s)
	for _, want := range []bool{false, true} {
		s.At = s.At.Add(time.Second)
		var got Movement
		if l, got = l.Observe(health, s); got.Stalled != want {
			t.Errorf("%s after the first sample: %+v, want stalled %v", s.At.Sub(noon()), got, want)
		}
	}
}
