// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

func failure(class enginev1.ExitClass) Failure { return Failure{Class: class} }

const (
	crash    = enginev1.ExitClass_EXIT_CLASS_SIGNAL
	gpuFault = enginev1.ExitClass_EXIT_CLASS_GPU_FAULT
)

func TestJitter(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		first  time.Duration
		random float64
		want   time.Duration
	}{
		{"least", 10 * time.Second, 0, 9 * time.Second},
		{"middle", 10 * time.Second, 0.5, 10 * time.Second},
		{"most", 10 * time.Second, math.Nextafter(1, 0), 11 * time.Second},
		{"never below the minimum", 500 * time.Millisecond, 0, 500 * time.Millisecond},
		{"no number", 10 * time.Second, math.NaN(), 10 * time.Second},
		{"out of range", 10 * time.Second, 1, 10 * time.Second},
		{"negative", 10 * time.Second, -1, 10 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			track, got := Track{}.Starting(noon()).Failed(noon(), Policy{FirstDelay: tt.first}, failure(crash), tt.random)
			if off := got.Delay - tt.want; off > time.Microsecond || off < -time.Microsecond {
				t.Errorf("random %v: delay %s, want %s", tt.random, got.Delay, tt.want)
			}
			if want := noon().Add(got.Delay); !got.At.Equal(want) || !track.NextAttempt.Equal(want) {
				t.Errorf("delay %s until %s, remembered %s, want %s", got.Delay, got.At, track.NextAttempt, want)
			}
		})
	}
}

// A GPU fault is doubled but not beyond the longest delay, and does not make other delays grow faster.
func TestGPUFaultDoubles(t *testing.T) {
	t.Parallel()
	policy := Policy{FirstDelay: time.Second, MaxDelay: 5 * time.Second, Breaker: BreakerPolicy{FailedStarts: 1000, FailuresInWindow: 1000}}
	var track Track
	var got []time.Duration
	for _, class := range []enginev1.ExitClass{gpuFault, crash, gpuFault, crash} {
		var d Decision
		track, d = track.Starting(noon()).Failed(noon(), policy, failure(class), 0.5)
		got = append(got, d.Delay)
	}
	want := []time.Duration{2 * time.Second, 2 * time.Second, 5 * time.Second, 5 * time.Second}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("delays of GPU fault, crash, GPU fault, crash, -want +got:\n%s", diff)
	}
}

// The delay that a GPU fault was told, not the half of it, decides how long a run has to be to begin anew.
func TestResetCountsTheDoubledDelay(t *testing.T) {
	t.Parallel()
	policy := Policy{FirstDelay: 40 * time.Second, MaxDelay: time.Hour, ImmediateAfter: time.Hour}
	for ready, want := range map[time.Duration]time.Duration{159 * time.Second: 80 * time.Second, 160 * time.Second: 40 * time.Second} {
		track, _ := Track{}.Starting(noon()).Failed(noon(), policy, failure(gpuFault), 0.5)
		after, got := track.Starting(noon()).Ready(noon()).Failed(noon().Add(ready), policy, Failure{Class: crash, WasReady: true, ReadyFor: ready}, 0.5)
		if after.Waited != want || after.Backoff != want {
			t.Errorf("after a GPU fault and %s READY: remembers %s and %s, want %s", ready, after.Waited, after.Backoff, want)
		}
		if got.Delay != want {
			t.Errorf("after a GPU fault and %s READY: delay %s, want %s", ready, got.Delay, want)
		}
	}
}

// Each circuit counts its own failures in the window, so neither opens the breaker of the other.
func TestCircuitsAreApart(t *testing.T) {
	t.Parallel()
	policy := Policy{Breaker: BreakerPolicy{FailuresInWindow: 3, FailedStarts: 1000}}
	now := noon()
	var track Track
	var d Decision
	for _, class := range []enginev1.ExitClass{crash, gpuFault, gpuFault, crash} {
		track, d = track.Starting(now).Failed(now, policy, failure(class), 0.5)
		if d.Verdict != RestartLater {
			t.Fatalf("%s: %+v, want RESTART_LATER", class, d)
		}
		now = d.At
	}
	track, d = track.Starting(now).Failed(now, policy, failure(gpuFault), 0.5)
	if d.Verdict != BreakerOpened || track.GPU.Breaker != Open || track.General.tripped() {
		t.Errorf("third GPU fault: %+v, general %s, GPU %s; want the breaker for GPU faults alone to open", d, track.General.Breaker, track.GPU.Breaker)
	}
	// The trial of that breaker fails for another reason, which opens the other one too: the longer wait counts.
	now = d.At
	track, d = track.Starting(now).Failed(now, Policy{Breaker: BreakerPolicy{FailuresInWindow: 1}}, failure(crash), 0.5)
	if d.Delay != 10*time.Minute || track.General.Breaker != Open || track.GPU.Breaker != Open {
		t.Errorf("failed trial: %+v, general %s, GPU %s; want 10m for both", d, track.General.Breaker, track.GPU.Breaker)
	}
	if _, d := track.Starting(d.At).Failed(d.At, Policy{}, failure(gpuFault), 0.5); d.Delay != 20*time.Minute {
		t.Errorf("both trials fail: %+v, want the longer time, 20m", d)
	}
	track.General.OpenFor, track.GPU.OpenFor = track.GPU.OpenFor, track.General.OpenFor
	if _, d := track.Starting(d.At).Failed(d.At, Policy{}, failure(crash), 0.5); d.Delay != 20*time.Minute {
		t.Errorf("both trials fail, the other way round: %+v, want the longer time, 20m", d)
	}
	status := track.Starting(d.At).Status()
	if want := track.General.cause() + "; " + track.GPU.cause(); status.Breaker != HalfOpen || status.BreakerCause != want {
		t.Errorf("trial of both: %+v, want HALF_OPEN and cause %q", status, want)
	}
}

// While one breaker is open and the other half open, what others see is the open one.
func TestStatusShowsTheBreakerThatMatters(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ general, gpu, want Breaker }{
		{0, 0, Closed}, {Closed, Closed, Closed}, {HalfOpen, 0, HalfOpen}, {0, HalfOpen, HalfOpen},
		{Open, HalfOpen, Open}, {HalfOpen, Open, Open}, {0, Open, Open},
	} {
		track := Track{General: circuit{Breaker: tt.general, Cause: "x"}, GPU: circuit{Breaker: tt.gpu, Cause: "x"}}
		if got := track.Status(); got.Breaker != tt.want || (got.BreakerCause == "") != (tt.want == Closed) {
			t.Errorf("general %s, GPU %s: %+v, want %s and a cause only if it is not closed", tt.general, tt.gpu, got, tt.want)
		}
	}
}

func TestOpenTimeIsCapped(t *testing.T) {
	t.Parallel()
	policy := Policy{Breaker: BreakerPolicy{FailedStarts: 1}}
	var track Track
	var d Decision
	var got []time.Duration
	for range 6 {
		track, d = track.Starting(noon()).Failed(noon(), policy, failure(crash), 0.9)
		got = append(got, d.Delay)
	}
	want := []time.Duration{5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 40 * time.Minute, time.Hour, time.Hour}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("open times, -want +got:\n%s", diff)
	}
}

// A policy may change between two failures.
func TestOpenTimeFollowsThePolicy(t *testing.T) {
	t.Parallel()
	track, d := Track{}.Starting(noon()).Failed(noon(), Policy{Breaker: BreakerPolicy{FailedStarts: 1}}, failure(crash), 0.5)
	for want, policy := range map[time.Duration]BreakerPolicy{
		3 * time.Hour:   {OpenFor: 3 * time.Hour},
		7 * time.Minute: {MaxOpenFor: 7 * time.Minute},
	} {
		if _, got := track.Starting(d.At).Failed(d.At, Policy{Breaker: policy}, failure(crash), 0.5); got.Delay != want {
			t.Errorf("trial failed under %+v: open for %s, want %s", policy, got.Delay, want)
		}
	}
}

func TestStableRunForgetsTheDelay(t *testing.T) {
	t.Parallel()
	track, _ := Track{}.Starting(noon()).Failed(noon(), Policy{}, failure(crash), 0.5)
	track, d := track.Starting(noon()).Ready(noon()).Failed(noon(), Policy{}, Failure{Class: crash, WasReady: true, ReadyFor: time.Hour}, 0.5)
	if d.Verdict != RestartNow || track.Backoff != 0 || track.Waited != 0 {
		t.Errorf("READY for 1h: %s, remembers %s and %s; want RESTART_NOW and none", d.Verdict, track.Backoff, track.Waited)
	}
}

// An engine that turns out to be READY while its breaker is open is its trial, as if it had been started for that.
func TestReadyIsATrialToo(t *testing.T) {
	t.Parallel()
	track, _ := Track{}.Starting(noon()).Failed(noon(), Policy{Breaker: BreakerPolicy{FailedStarts: 1}}, failure(crash), 0.5)
	track = track.Ready(noon())
	if status := track.Status(); status.Breaker != HalfOpen || !status.NextAttempt.IsZero() {
		t.Errorf("READY: %+v, want HALF_OPEN and no next attempt", status)
	}
	if track, changed := track.Stable(noon().Add(time.Minute), Policy{}); !changed || track.Status().Breaker != Closed {
		t.Errorf("READY for 1m: %+v, want CLOSED", track.Status())
	}
}

func TestDoubled(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ d, limit, want time.Duration }{
		{0, 10, 0}, {3, 10, 6}, {5, 10, 10}, {6, 10, 10}, {-1, 10, 0}, {-1<<62 - 1, 10, 0}, {math.MaxInt64, math.MaxInt64, math.MaxInt64},
	} {
		if got := doubled(tt.d, tt.limit); got != tt.want {
			t.Errorf("doubled(%d, %d) = %d, want %d", tt.d, tt.limit, got, tt.want)
		}
	}
}

// A run that was long enough closes the breaker even if nobody asked Stable meanwhile.
func TestFailedKnowsThatTheTrialHeld(t *testing.T) {
	t.Parallel()
	policy := Policy{Breaker: BreakerPolicy{FailedStarts: 1}}
	track, d := Track{}.Starting(noon()).Failed(noon(), policy, failure(crash), 0.5)
	track = track.Starting(d.At).Ready(d.At)
	for ready, want := range map[time.Duration]Verdict{time.Minute - 1: BreakerOpened, time.Minute: RestartNow} {
		after, got := track.Failed(d.At.Add(ready), policy, Failure{Class: crash, WasReady: true, ReadyFor: ready}, 0.5)
		if got.Verdict != want || after.General.tripped() != (want == BreakerOpened) {
			t.Errorf("trial READY for %s: %s, breaker %s; want %s", ready, got.Verdict, after.General.Breaker, want)
		}
	}
}

// A permanent failure ends a trial too: nothing is left that could be tried.
func TestGiveUpLeavesNoBreakerOpen(t *testing.T) {
	t.Parallel()
	track, d := Track{}.Starting(noon()).Failed(noon(), Policy{Breaker: BreakerPolicy{FailedStarts: 1}}, failure(crash), 0.5)
	track, d = track.Starting(d.At).Failed(d.At, Policy{}, failure(enginev1.ExitClass_EXIT_CLASS_CONFIG), 0.5)
	status := track.Status()
	if d.Verdict != GiveUp || !d.At.IsZero() || d.Delay != 0 || !track.GaveUp || status.Breaker != Closed || !status.NextAttempt.IsZero() ||
		status.FailedStarts != 2 {
		t.Errorf("CONFIG in a trial: %+v, %+v; want GIVE_UP, closed, 2 failed starts and no next attempt", d, status)
	}
	if track.Starting(noon()).GaveUp || track.Reset().GaveUp || track.Ready(noon()).GaveUp {
		t.Error("a start or a reset does not take back that it was given up")
	}
}

func TestResetKeepsAReadyReplicaReady(t *testing.T) {
	t.Parallel()
	track, d := Track{}.Starting(noon()).Failed(noon(), Policy{Breaker: BreakerPolicy{FailedStarts: 1}}, failure(crash), 0.5)
	track = track.Starting(d.At).Ready(d.At)
	got := track.Reset()
	want := Track{Started: true, ReadySince: d.At, SavedAt: d.At}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Track{}, circuit{})); diff != "" {
		t.Errorf("Reset(), -want +got:\n%s", diff)
	}
	if got := (Track{}).Reset().Starting(noon()); got.Restarts != 0 {
		t.Errorf("the first start after a reset before any start: %d restarts, want 0", got.Restarts)
	}
}

// Values that were handed out stay as they were: failures are counted in slices, which could be shared.
func TestTracksShareNothing(t *testing.T) {
	t.Parallel()
	track, _ := Track{}.Starting(noon()).Failed(noon(), Policy{}, failure(crash), 0.5)
	track, _ = track.Starting(noon()).Failed(noon().Add(time.Second), Policy{}, failure(crash), 0.5)
	before := written(t, track)
	for i := range 3 {
		at := noon().Add(time.Duration(i+2) * time.Hour)
		next, _ := track.Failed(at, Policy{}, failure(crash), 0.5)
		_ = next.Saving(at).Resume(at.Add(time.Hour), true)
		_ = track.Saving(at).Resume(at.Add(time.Hour), true)
		_ = track.Resume(at, false)
	}
	if diff := cmp.Diff(before, track, cmp.AllowUnexported(Track{}, circuit{})); diff != "" {
		t.Errorf("a track that was used has changed:\n%s", diff)
	}
}

// A random history of a replica: whatever happens, and however often it is written down in between, the promises hold.
func TestRandomHistories(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			walk(t, rand.New(rand.NewPCG(seed, 1)))
		})
	}
}

// walk repeats: start, perhaps get ready, fail; and wait as told.
func walk(t *testing.T, r *rand.Rand) {
	t.Helper()
	policy := randomPolicy(r)
	p := policy.WithDefaults()
	var plain, saved Track // saved is written and read at every step.
	now := noon()
	trials := 0
	for step := range 60 {
		plain, saved = plain.Starting(now), written(t, saved.Starting(now))
		if plain.Status().Breaker == HalfOpen {
			trials++
		}
		if plain.Status().Breaker == Open {
			t.Fatalf("step %d: open during a start: %+v", step, plain)
		}
		f := randomFailure(r)
		if f.WasReady {
			now = now.Add(randomDuration(r, time.Minute))
			plain, saved = plain.Ready(now), written(t, saved.Ready(now))
			now = now.Add(f.ReadyFor)
			if r.IntN(2) == 0 {
				plain, _ = plain.Stable(now, policy)
				saved, _ = saved.Stable(now, policy)
				saved = written(t, saved)
			}
			if plain.Status().Breaker == Closed {
				trials = 0
			}
		}
		if f.ReadyFor >= p.Breaker.CloseAfter {
			trials = 0
		}
		random := r.Float64()
		var d, other Decision
		plain, d = plain.Failed(now, policy, f, random)
		saved, other = saved.Failed(now, policy, f, random)
		saved = written(t, saved)
		if !reflect.DeepEqual(plain, saved) || d != other {
			t.Fatalf("step %d: written down on the way: %+v, %+v; else: %+v, %+v", step, other, saved, d, plain)
		}
		if trials > 0 && d.Verdict != BreakerOpened && d.Verdict != GiveUp {
			t.Fatalf("step %d: a trial that failed leads to %+v", step, d)
		}
		if trials > 1 {
			t.Fatalf("step %d: %d trials of one opening", step, trials)
		}
		trials = 0
		checkDecision(t, p, f, plain, d, now)
		if d.Verdict == GiveUp {
			plain, saved = plain.Reset(), saved.Reset()
		} else {
			now = d.At
		}
	}
}

// checkDecision checks what holds for each decision by itself.
func checkDecision(t *testing.T, p Policy, f Failure, track Track, d Decision, now time.Time) {
	t.Helper()
	if Permanent(f.Class) != (d.Verdict == GiveUp) {
		t.Fatalf("%s leads to %s", f.Class, d.Verdict)
	}
	if d.Cause == "" {
		t.Fatalf("%+v has no cause", d)
	}
	status := track.Status()
	if (status.Breaker == Open) != (d.Verdict == BreakerOpened) || status.Breaker == HalfOpen {
		t.Fatalf("%s leaves a breaker that is %s", d.Verdict, status.Breaker)
	}
	switch d.Verdict {
	case RestartLater:
		most := time.Duration(float64(p.MaxDelay) * 1.1)
		if d.Delay < minDelay || d.Delay > most {
			t.Fatalf("delay %s is not within %s and %s", d.Delay, minDelay, most)
		}
	case BreakerOpened:
		if d.Delay < p.Breaker.OpenFor || d.Delay > p.Breaker.MaxOpenFor {
			t.Fatalf("open for %s, which is not within %s and %s", d.Delay, p.Breaker.OpenFor, p.Breaker.MaxOpenFor)
		}
	case RestartNow:
		if f.ReadyFor < p.ImmediateAfter || d.Delay != 0 || !status.NextAttempt.IsZero() {
			t.Fatalf("started at once after %s READY: %+v, next attempt %s", f.ReadyFor, d, status.NextAttempt)
		}
	case GiveUp:
		return
	}
	if want := now.Add(d.Delay); !d.At.Equal(want) || d.Verdict != RestartNow && !status.NextAttempt.Equal(want) {
		t.Fatalf("%+v, next attempt %s; want both at %s", d, status.NextAttempt, want)
	}
	if len(track.General.Failures) > p.Breaker.FailuresInWindow || len(track.GPU.Failures) > p.Breaker.FailuresInWindow {
		t.Fatalf("remembers %d and %d failures, more than count", len(track.General.Failures), len(track.GPU.Failures))
	}
}

func randomFailure(r *rand.Rand) Failure {
	classes := []enginev1.ExitClass{
		0, crash, gpuFault, gpuFault, enginev1.ExitClass_EXIT_CLASS_UNASKED, enginev1.ExitClass_EXIT_CLASS_ERROR,
		enginev1.ExitClass_EXIT_CLASS_OOM_HOST, enginev1.ExitClass_EXIT_CLASS_HUNG, enginev1.ExitClass_EXIT_CLASS_UNKNOWN,
	}
	f := failure(classes[r.IntN(len(classes))])
	if r.IntN(30) == 0 {
		f.Class = enginev1.ExitClass_EXIT_CLASS_CONFIG
	}
	if r.IntN(3) == 0 {
		f.WasReady, f.ReadyFor = true, randomDuration(r, 4*time.Minute)
	}
	return f
}

// randomDuration is any up to most, short ones as often as long ones.
func randomDuration(r *rand.Rand, most time.Duration) time.Duration {
	return time.Duration(math.Exp(r.Float64() * math.Log(float64(most))))
}

// randomPolicy has some fields left to their defaults.
func randomPolicy(r *rand.Rand) Policy {
	pick := func(choices ...time.Duration) time.Duration { return choices[r.IntN(len(choices))] }
	p := Policy{
		FirstDelay:     pick(0, 0, minDelay, 3*time.Second),
		MaxDelay:       pick(0, 0, 5*time.Second, time.Hour),
		ImmediateAfter: pick(0, 0, 1, time.Hour),
		ResetAfter:     pick(0, 0, 1, time.Hour),
		Breaker: BreakerPolicy{
			FailedStarts: r.IntN(4) * 3, FailuresInWindow: r.IntN(4) * 4, Window: pick(0, time.Second, time.Hour),
			OpenFor: pick(0, minDelay, time.Hour), MaxOpenFor: pick(0, 2*time.Hour), CloseAfter: pick(0, time.Second, time.Hour),
		},
	}
	if err := p.Check(); err != nil {
		panic(err)
	}
	return p
}

// Whoever fails for ever is tried for ever, and not more often than the breaker allows.
func TestForeverFailingIsTriedNowAndThen(t *testing.T) {
	t.Parallel()
	for _, class := range slices.Sorted(maps.Keys(enginev1.ExitClass_name)) {
		f := failure(enginev1.ExitClass(class))
		if Permanent(f.Class) {
			continue
		}
		track, now, starts := Track{}, noon(), 0
		for now.Before(noon().Add(24 * time.Hour)) {
			starts++
			var d Decision
			track, d = track.Starting(now).Failed(now, Policy{}, f, 0.5)
			now = d.At
		}
		if starts < 24 || starts > 40 {
			t.Errorf("%s for 24 h: %d starts, want about one an hour", f.Class, starts)
		}
	}
}
