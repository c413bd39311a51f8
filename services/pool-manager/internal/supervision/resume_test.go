// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"
)

// waiting is a replica whose breaker has opened for 5 minutes, after two failures within one.
func waiting(t *testing.T) Track {
	t.Helper()
	policy := Policy{Breaker: BreakerPolicy{FailedStarts: 2}}
	track, _ := Track{}.Starting(noon().Add(-2*time.Minute)).Failed(noon().Add(-time.Minute), policy, failure(crash), 0.5)
	track, d := track.Starting(noon()).Failed(noon(), policy, failure(crash), 0.5)
	if d.Delay != 5*time.Minute {
		t.Fatalf("it waits %+v, want 5m", d)
	}
	return track
}

func TestResumeUnderClockJumps(t *testing.T) {
	t.Parallel()
	const never = -1
	tests := []struct {
		name string
		// savedAfter is how long after the failure it is written again; never, if it is not.
		savedAfter time.Duration
		// passed is what the wall clock says has passed since noon when it is read.
		passed time.Duration
		left   time.Duration
	}{
		{"at once", never, 0, 5 * time.Minute},
		{"a while later", never, 2 * time.Minute, 3 * time.Minute},
		{"just in time", never, 5 * time.Minute, 0},
		{"long after, or the clock was set forward", never, 1000 * time.Hour, 0},
		{"the clock was set back a bit", never, -time.Second, 5 * time.Minute},
		{"the clock was set back to long ago", never, -40 * 365 * 24 * time.Hour, 5 * time.Minute},
		{"saved again on the way", 2 * time.Minute, 3 * time.Minute, 2 * time.Minute},
		{"saved again, then set back", 2 * time.Minute, -time.Hour, 3 * time.Minute},
		{"saved again, then set back to before that", 2 * time.Minute, time.Minute, 3 * time.Minute},
		{"saved when the wait was over", 6 * time.Minute, -time.Hour, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			track := waiting(t)
			if tt.savedAfter != never {
				track = track.Saving(noon().Add(tt.savedAfter))
			}
			now := noon().Add(tt.passed)
			for _, sameBoot := range []bool{true, false} {
				got := written(t, track).Resume(now, sameBoot)
				if left := got.NextAttempt.Sub(now); left != tt.left {
					t.Errorf("same boot %v: %s left to wait, want %s", sameBoot, left, tt.left)
				}
				if status := got.Status(); status.Breaker != Open || status.FailedStarts != 2 || status.BreakerCause == "" {
					t.Errorf("same boot %v: %+v, want an open breaker, its cause and 2 failed starts", sameBoot, status)
				}
			}
		})
	}
}

// behind returns a time with the same monotonic reading, and a wall clock that was set back by d in between.
func behind(t *testing.T, now time.Time, d time.Duration) time.Time {
	t.Helper()
	back := now.Add(-d)
	(*struct { // The layout of a time.Time with a monotonic reading. There is no other way to make such a one.
		wall uint64
		mono int64
	})(unsafe.Pointer(&back)).mono += int64(d)
	if gap := now.Sub(back); gap != 0 || !back.Round(0).Equal(now.Round(0).Add(-d)) {
		t.Fatalf("made %s of %s: %s apart", back, now, gap)
	}
	return back
}

// Saving makes the wall clock's story consistent even if it was set while the replica waited: what was left is what the
// monotonic clock says.
func TestSavingCountsOnTheMonotonicClock(t *testing.T) {
	t.Parallel()
	failed := time.Now() // With a monotonic reading, as it is in a daemon.
	track, d := Track{}.Starting(failed).Failed(failed, Policy{FirstDelay: time.Hour}, failure(crash), 0.5)
	track.ReadySince = failed.Add(5 * time.Minute)
	for _, set := range []time.Duration{-3 * time.Hour, 0, 3 * time.Hour} {
		now := behind(t, failed.Add(20*time.Minute), set)
		saved := written(t, track.Saving(now))
		wall := now.Round(0)
		got := saved.Resume(wall, true)
		if left := got.NextAttempt.Sub(wall); left != d.Delay-20*time.Minute {
			t.Errorf("set back by %s: %s left, want %s", set, left, d.Delay-20*time.Minute)
		}
		if ready := wall.Sub(got.ReadySince); ready != 15*time.Minute {
			t.Errorf("set back by %s: READY for %s, want 15m", set, ready)
		}
		if first := track.General.Failures[0]; !first.Round(0).Equal(failed.Round(0)) {
			t.Errorf("set back by %s: saving it has moved a failure of what was saved from %s to %s", set, failed, first)
		}
		if ages := got.General.Failures; len(ages) != 1 || wall.Sub(ages[0]) != 20*time.Minute {
			t.Errorf("set back by %s: failures at %v, want one 20m before %s", set, ages, wall)
		}
	}
}

// What was resumed can be written down and resumed again.
func TestResumeTwice(t *testing.T) {
	t.Parallel()
	back := noon().Add(-time.Hour)
	once := written(t, waiting(t)).Resume(back, true)
	twice := written(t, once).Resume(back.Add(time.Minute), true)
	if left := twice.NextAttempt.Sub(back.Add(time.Minute)); left != 4*time.Minute {
		t.Errorf("%s left, want 4m", left)
	}
}

// Failures keep their age, so that the window goes on; those that cannot be are forgotten.
func TestResumeKeepsTheAgeOfFailures(t *testing.T) {
	t.Parallel()
	track := Track{SavedAt: noon(), Started: true}
	track.General.Failures = []time.Time{
		{}, noon().Add(-25 * time.Hour), noon().Add(-time.Hour), noon().Add(-time.Minute), noon(), noon().Add(time.Second), noon().Add(200 * time.Hour),
	}
	for passed, want := range map[time.Duration][]time.Duration{
		0:              {time.Hour, time.Minute, 0},
		time.Minute:    {time.Hour + time.Minute, 2 * time.Minute, time.Minute},
		-time.Hour:     {time.Hour, time.Minute, 0},
		23 * time.Hour: {24 * time.Hour, 23*time.Hour + time.Minute, 23 * time.Hour},
		30 * time.Hour: {},
	} {
		now := noon().Add(passed)
		got := written(t, track).Resume(now, true).General.Failures
		if len(got) != len(want) {
			t.Errorf("%s later: failures at %v, want ages %v", passed, got, want)
			continue
		}
		for i := range want {
			if age := now.Sub(got[i]); age != want[i] {
				t.Errorf("%s later: failure %d is %s old, want %s", passed, i, age, want[i])
			}
		}
	}
}

// Time READY counts as far as it was written down, whatever the clock says: a breaker closes late at most.
func TestResumeOfAReadyTrial(t *testing.T) {
	t.Parallel()
	policy := Policy{}
	track := waiting(t).Starting(noon()).Ready(noon()).Saving(noon().Add(40 * time.Second))
	for _, passed := range []time.Duration{-time.Hour, 0, 100 * time.Hour} {
		now := noon().Add(passed)
		got := written(t, track).Resume(now, true)
		if status := got.Status(); status.Breaker != HalfOpen {
			t.Errorf("clock %s on: %+v, want the trial to go on", passed, status)
		}
		if in := got.NextCheck(policy).Sub(now); in != 20*time.Second {
			t.Errorf("clock %s on: breaker closes in %s, want 20s", passed, in)
		}
		if _, changed := got.Stable(now.Add(20*time.Second), policy); !changed {
			t.Errorf("clock %s on: the breaker has not closed after the rest of the time", passed)
		}
	}
	if got := track.Resume(noon(), false); !got.ReadySince.IsZero() || !got.NextAttempt.Equal(noon()) || got.Status().Breaker != Open {
		t.Errorf("after another boot: %+v, want a trial to be made at once", got)
	}
}

// A record that is nonsense, and was read nevertheless, neither makes a replica wait for ever nor breaks anything.
func TestResumeOfNonsense(t *testing.T) {
	t.Parallel()
	far := time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)
	track := Track{
		NextAttempt: far, ReadySince: far, Backoff: -1 << 62, Waited: 1 << 62,
		General: circuit{FailedStarts: -7, Breaker: Open, OpenFor: -1 << 62, FailedTrials: 1 << 40},
		GPU:     circuit{FailedStarts: 1 << 60, OpenFor: 1 << 62, Cause: "x", FailedTrials: 3},
	}
	for _, savedAt := range []time.Time{{}, noon(), far} {
		track.SavedAt = savedAt
		got := track.Resume(noon(), true)
		if wait := got.NextAttempt.Sub(noon()); wait < 0 || wait > maxWait {
			t.Errorf("saved at %s: it waits %s", savedAt, wait)
		}
		if got.ReadySince.After(noon()) || got.Backoff != 0 || got.Waited != maxDuration {
			t.Errorf("saved at %s: %+v is not within limits", savedAt, got)
		}
		if g := got.General; g.FailedStarts != 0 || g.OpenFor != 0 || g.FailedTrials != maxCount || g.Breaker != Open {
			t.Errorf("saved at %s: %+v is not within limits", savedAt, g)
		}
		if g := got.GPU; g.FailedStarts != maxCount || g.tripped() || g.OpenFor != 0 || g.Cause != "" || g.FailedTrials != 0 {
			t.Errorf("saved at %s: %+v remembers a breaker that is closed", savedAt, g)
		}
	}
}

func TestBreakerText(t *testing.T) {
	t.Parallel()
	for _, b := range []Breaker{0, Closed, Open, HalfOpen} {
		var back Breaker
		if err := back.UnmarshalText([]byte(b.String())); err != nil || back != b {
			t.Errorf("%s comes back as %s, %v", b, back, err)
		}
	}
	for _, text := range []string{"", "open", "4", "OPENED"} {
		b := HalfOpen
		if err := b.UnmarshalText([]byte(text)); err == nil || b != HalfOpen {
			t.Errorf("%q is taken as %s", text, b)
		}
	}
}

// FuzzTrack reads any text as a Track and goes on with it: no panic, no wait without end, and it can be written again.
func FuzzTrack(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	var track Track
	now := noon()
	for range 40 {
		text, err := json.Marshal(track)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text, int64(0), true)
		track = track.Starting(now)
		var d Decision
		if track, d = track.Failed(now, randomPolicy(r), randomFailure(r), r.Float64()); d.Verdict != GiveUp {
			now = d.At
		}
	}
	f.Add([]byte(`{"next_attempt":"9999-12-31T23:59:59Z","saved_at":"0001-01-01T00:00:00Z"}`), int64(-1<<63), false)
	f.Add([]byte(`{"general":{"failures":["0000-01-01T00:00:00Z"],"breaker":"HALF_OPEN","open_for":-9223372036854775808}}`), int64(1<<62), true)
	f.Add([]byte(`{"general":{"breaker":"AJAR"}}`), int64(0), true)
	f.Add([]byte(`null`), int64(0), false)
	f.Fuzz(func(t *testing.T, text []byte, passed int64, sameBoot bool) {
		var track Track
		if json.Unmarshal(text, &track) != nil {
			return
		}
		now := noon().Add(time.Duration(passed))
		_ = track.Saving(now)
		track, _ = track.Resume(now, sameBoot).Stable(now, Policy{})
		if wait := track.NextAttempt.Sub(now); !track.NextAttempt.IsZero() && (wait < 0 || wait > maxWait) {
			t.Errorf("%s at %s: waits %s", text, now, wait)
		}
		_ = written(t, track)
		for range 3 {
			track = track.Starting(now)
			var d Decision
			track, d = track.Failed(now, Policy{}, failure(gpuFault), 0.5)
			if d.Verdict == GiveUp || d.Delay < 0 || d.Delay > maxOpen {
				t.Fatalf("%s: %+v", text, d)
			}
			_ = written(t, track.Saving(now))
		}
	})
}
