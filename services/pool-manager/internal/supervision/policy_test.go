// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

func TestPolicyDefaults(t *testing.T) {
	t.Parallel()
	defaults := Policy{
		FirstDelay: time.Second, MaxDelay: time.Minute, ImmediateAfter: time.Minute, ResetAfter: time.Minute,
		Breaker: BreakerPolicy{
			FailedStarts: 5, FailuresInWindow: 10, Window: 10 * time.Minute,
			OpenFor: 5 * time.Minute, MaxOpenFor: time.Hour, CloseAfter: time.Minute,
		},
	}
	with := func(change func(*Policy)) Policy {
		p := defaults
		change(&p)
		return p
	}
	own := Policy{
		FirstDelay: 2 * time.Second, MaxDelay: 3 * time.Second, ImmediateAfter: 4 * time.Second, ResetAfter: 5 * time.Second,
		Breaker: BreakerPolicy{1, 2, 6 * time.Second, 7 * time.Second, 8 * time.Second, 9 * time.Second},
	}
	tests := []struct {
		name      string
		give, get Policy
	}{
		{"nothing", Policy{}, defaults},
		{"everything", own, own},
		{"a long first delay raises the longest", Policy{FirstDelay: time.Hour}, with(func(p *Policy) { p.FirstDelay, p.MaxDelay = time.Hour, time.Hour })},
		{
			"a short longest delay lowers the first", Policy{MaxDelay: 600 * time.Millisecond},
			with(func(p *Policy) { p.FirstDelay, p.MaxDelay = 600*time.Millisecond, 600*time.Millisecond }),
		},
		{
			"longest before first", Policy{FirstDelay: 2 * time.Minute, MaxDelay: time.Second},
			with(func(p *Policy) { p.FirstDelay, p.MaxDelay = 2*time.Minute, 2*time.Minute }),
		},
		{
			"shorter than the least", Policy{FirstDelay: 1, MaxDelay: 2},
			with(func(p *Policy) { p.FirstDelay, p.MaxDelay = minDelay, minDelay }),
		},
		{
			"an open time raises the longest", Policy{Breaker: BreakerPolicy{OpenFor: 2 * time.Hour}},
			with(func(p *Policy) { p.Breaker.OpenFor, p.Breaker.MaxOpenFor = 2*time.Hour, 2*time.Hour }),
		},
		{
			"negative", Policy{-1, -1, -1, -1, BreakerPolicy{-1, -1, -1, -1, -1, -1}}, defaults,
		},
		{
			"without limits",
			Policy{
				math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64,
				BreakerPolicy{math.MaxInt, math.MaxInt, math.MaxInt64, math.MaxInt64, math.MaxInt64, math.MaxInt64},
			},
			Policy{
				maxDuration, maxDuration, maxDuration, maxDuration,
				BreakerPolicy{maxCount, maxCount, maxDuration, maxOpen, maxOpen, maxDuration},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := tt.give.WithDefaults()
			if diff := cmp.Diff(tt.get, got); diff != "" {
				t.Errorf("%+v.WithDefaults(), -want +got:\n%s", tt.give, diff)
			}
			if again := got.WithDefaults(); again != got {
				t.Errorf("filled in twice: %+v, once: %+v", again, got)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		policy Policy
		fields string
	}{
		{"nothing given", Policy{}, ""},
		{"the defaults", Policy{}.WithDefaults(), ""},
		{"the least", Policy{minDelay, minDelay, 1, 1, BreakerPolicy{1, 1, 1, 1, 1, 1}}, ""},
		{
			"the most",
			Policy{maxDuration, maxDuration, maxDuration, maxDuration, BreakerPolicy{1000, 1000, maxDuration, maxDuration, maxOpen, maxDuration}}, "",
		},
		{"first delay too short", Policy{FirstDelay: minDelay - 1}, "spec.restart.first_delay"},
		{"longest delay shorter than the first", Policy{FirstDelay: 2 * time.Second, MaxDelay: time.Second}, "spec.restart.max_delay"},
		{"longest delay too short in two ways", Policy{FirstDelay: 2 * time.Second, MaxDelay: 1}, "spec.restart.max_delay"},
		{"longest open time shorter than the first", Policy{Breaker: BreakerPolicy{OpenFor: 2, MaxOpenFor: 1}}, "spec.restart.breaker.max_open_for"},
		{
			"all negative", Policy{-1, -1, -1, -1, BreakerPolicy{-1, -1, -1, -1, -1, -1}},
			"spec.restart.first_delay spec.restart.max_delay spec.restart.immediate_after spec.restart.reset_after spec.restart.breaker.failed_starts " +
				"spec.restart.breaker.failures_in_window spec.restart.breaker.window spec.restart.breaker.open_for spec.restart.breaker.max_open_for spec.restart.breaker.close_after",
		},
		{
			"all too long",
			Policy{maxDuration + 1, maxDuration + 2, maxDuration + 1, maxDuration + 1, BreakerPolicy{1001, 1001, maxDuration + 1, maxDuration + 1, maxOpen + 1, maxDuration + 1}},
			"spec.restart.first_delay spec.restart.max_delay spec.restart.immediate_after spec.restart.reset_after spec.restart.breaker.failed_starts " +
				"spec.restart.breaker.failures_in_window spec.restart.breaker.window spec.restart.breaker.open_for spec.restart.breaker.max_open_for spec.restart.breaker.close_after",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wantFields(t, tt.policy.Check(), tt.fields)
		})
	}
}

func TestHealthDefaultsAndCheck(t *testing.T) {
	t.Parallel()
	want := Health{
		Interval: 5 * time.Second, StallLimit: time.Minute, LoadStallLimit: 2 * time.Minute,
		CanaryInterval: 5 * time.Minute, CanaryTimeout: time.Minute,
	}
	if got := (Health{}).WithDefaults(); got != want {
		t.Errorf("Health{}.WithDefaults() = %+v, want %+v", got, want)
	}
	own := Health{1, 2, 3, 4, 5, true}
	if got := own.WithDefaults(); got != own {
		t.Errorf("%+v.WithDefaults() = %+v, want the same", own, got)
	}
	const all = "spec.health.interval spec.health.stall_limit spec.health.load_stall_limit spec.health.canary_interval spec.health.canary_timeout"
	wantFields(t, Health{}.Check(), "")
	wantFields(t, Health{leastHealth, leastHealth, leastHealth, leastHealth, leastHealth, true}.Check(), "")
	wantFields(t, own.Check(), all)
	wantFields(t, Health{longestProbe, maxDuration, maxDuration, maxDuration, longestProbe, false}.Check(), "")
	wantFields(t, Health{longestProbe + 1, maxDuration + 1, maxDuration + 1, maxDuration + 1, longestProbe + 1, false}.Check(), all)
}

// wantFields wants an error of INVALID_PARAMS that names exactly these fields, each with a problem and a remedy.
func wantFields(t *testing.T, err error, fields string) {
	t.Helper()
	if fields == "" {
		if err != nil {
			t.Errorf("Check() = %v, want nil", err)
		}
		return
	}
	e, ok := reason.As(err)
	if !ok || e.Reason != reason.InvalidParams {
		t.Fatalf("Check() = %v, want an error of INVALID_PARAMS", err)
	}
	var names []string
	for _, field := range e.Fields {
		names = append(names, field.Name)
		if len(e.Fields) > 1 && field.Problem == "" {
			t.Errorf("%s has no problem of its own: %v", field.Name, err)
		}
	}
	if got := strings.Join(names, " "); got != fields {
		t.Errorf("Check() = %v names %q, want %q", err, got, fields)
	}
	if e.Remedy == "" || e.Message == "" {
		t.Errorf("Check() = %v has no message or no remedy", err)
	}
}
