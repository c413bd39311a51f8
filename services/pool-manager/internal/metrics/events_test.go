// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// moved tells what an event has changed, as lines of a scrape, without the buckets.
func moved(t *testing.T, m *Metrics, event func(*Metrics)) []string {
	t.Helper()
	known := map[string]bool{}
	for _, line := range scrape(t, m, "roundhouse_") {
		known[line] = true
	}
	event(m)
	var lines []string
	for _, line := range scrape(t, m, "roundhouse_") {
		if name, _, _ := strings.Cut(line, "{"); !known[line] && !strings.HasSuffix(name, "_bucket") {
			lines = append(lines, strings.TrimPrefix(line, "roundhouse_"))
		}
	}
	return lines
}

func TestEventsAreCounted(t *testing.T) {
	t.Parallel()
	const took = 1500 * time.Millisecond
	for _, tt := range []struct {
		name  string
		event func(*Metrics)
		want  []string
	}{
		{
			"preload that succeeded", func(m *Metrics) { m.PreloadEnded(reason.Unspecified, took) },
			[]string{`preload_duration_seconds_sum{outcome="ok"} 1.5`, `preload_duration_seconds_count{outcome="ok"} 1`},
		},
		{
			"preload that was cancelled", func(m *Metrics) { m.PreloadEnded(reason.Cancelled, took) },
			[]string{`preload_duration_seconds_sum{outcome="cancelled"} 1.5`, `preload_duration_seconds_count{outcome="cancelled"} 1`},
		},
		{
			"preload that failed", func(m *Metrics) { m.PreloadEnded(reason.DiskFull, took) },
			[]string{
				`preload_duration_seconds_sum{outcome="failed"} 1.5`, `preload_duration_seconds_count{outcome="failed"} 1`,
				`preload_failures_total{reason="disk_full"} 1`,
			},
		},
		{
			"preload that failed for a reason of tomorrow", func(m *Metrics) { m.PreloadEnded(reason.Reason(9999), took) },
			[]string{
				`preload_duration_seconds_sum{outcome="failed"} 1.5`, `preload_duration_seconds_count{outcome="failed"} 1`,
				`preload_failures_total{reason="other"} 1`,
			},
		},
		{
			"drain", func(m *Metrics) { m.DrainEnded("forced", 3, took) },
			[]string{
				`drain_duration_seconds_sum{outcome="forced"} 1.5`, `drain_duration_seconds_count{outcome="forced"} 1`,
				`drain_requests_cut_total 3`,
			},
		},
		{
			"drain that cut less than nothing", func(m *Metrics) { m.DrainEnded("drained", -1, took) },
			[]string{`drain_duration_seconds_sum{outcome="drained"} 1.5`, `drain_duration_seconds_count{outcome="drained"} 1`},
		},
		{
			"reload", func(m *Metrics) { m.ReloadEnded(reason.Unspecified, "live", took) },
			[]string{
				`reload_duration_seconds_sum{outcome="ok"} 1.5`, `reload_duration_seconds_count{outcome="ok"} 1`,
				`reloads_total{action="live"} 1`,
			},
		},
		{
			"reload that failed", func(m *Metrics) { m.ReloadEnded(reason.ProofFailed, "make_before_break", took) },
			[]string{
				`reload_duration_seconds_sum{outcome="failed"} 1.5`, `reload_duration_seconds_count{outcome="failed"} 1`,
				`reload_failures_total{reason="proof_failed"} 1`, `reloads_total{action="make_before_break"} 1`,
			},
		},
		{
			"engine got ready", func(m *Metrics) { m.EngineReady("rollback", took) },
			[]string{
				`engine_start_duration_seconds_sum{started_by="rollback"} 1.5`,
				`engine_start_duration_seconds_count{started_by="rollback"} 1`,
			},
		},
		{
			"engine got ready for a cause that has no name", func(m *Metrics) { m.EngineReady("pool-17", took) },
			[]string{
				`engine_start_duration_seconds_sum{started_by="other"} 1.5`, `engine_start_duration_seconds_count{started_by="other"} 1`,
			},
		},
		{
			"engine ended", func(m *Metrics) { m.EngineEnded(enginev1.ExitClass_EXIT_CLASS_GPU_FAULT, took) },
			[]string{`engine_exits_total{class="gpu_fault"} 1`, `engine_uptime_seconds_sum 1.5`, `engine_uptime_seconds_count 1`},
		},
		{
			"restart", func(m *Metrics) { m.Restart(took) },
			[]string{`restart_delay_seconds_sum 1.5`, `restart_delay_seconds_count 1`},
		},
		{"breaker", func(m *Metrics) { m.BreakerOpened() }, []string{`breaker_opened_total 1`}},
		{
			"adopted", func(m *Metrics) { m.Adopted(true, took) },
			[]string{`adoption_duration_seconds_sum{outcome="ok"} 1.5`, `adoption_duration_seconds_count{outcome="ok"} 1`},
		},
		{
			"not adopted", func(m *Metrics) { m.Adopted(false, took) },
			[]string{`adoption_duration_seconds_sum{outcome="failed"} 1.5`, `adoption_duration_seconds_count{outcome="failed"} 1`},
		},
		{"health check", func(m *Metrics) { m.HealthCheck("canary_failed") }, []string{`health_checks_total{result="canary_failed"} 1`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m, _ := newMetrics(t)
			if diff := cmp.Diff(tt.want, moved(t, m, tt.event)); diff != "" {
				t.Errorf("what the event has changed (-want +got):\n%s", diff)
			}
		})
	}
}

// TestSeriesAreThereFromTheBeginning holds names for dashboards: rate() sees the first event only if there was a 0 before.
// No event, however odd, adds one.
func TestSeriesAreThereFromTheBeginning(t *testing.T) {
	t.Parallel()
	m, _ := newMetrics(t)
	names := func() []string {
		var all []string
		for _, line := range scrape(t, m, "roundhouse_") {
			name := line[:strings.LastIndexByte(line, ' ')]
			if !strings.Contains(name, "_bucket{") && !strings.Contains(name, "_sum") {
				all = append(all, name)
			}
		}
		return all
	}
	before := names()
	for number := range int32(100) {
		odd := "odd" + time.Duration(number).String()
		m.PreloadEnded(reason.Reason(number), time.Second)
		m.ReloadEnded(reason.Reason(number), odd, time.Second)
		m.DrainEnded(odd, 1, time.Second)
		m.EngineReady(odd, time.Second)
		m.EngineEnded(enginev1.ExitClass(number), time.Second)
		m.HealthCheck(odd)
	}
	if diff := cmp.Diff(before, names()); diff != "" {
		t.Errorf("series that events have added (-before +after):\n%s", diff)
	}
	for _, want := range []string{
		`roundhouse_preload_failures_total{reason="worker_start_timeout"}`, `roundhouse_engine_exits_total{class="oom_host"}`,
		`roundhouse_drain_duration_seconds_count{outcome="gave_up"}`, `roundhouse_breaker_opened_total`,
	} {
		if !strings.Contains(strings.Join(before, "\n")+"\n", want+"\n") {
			t.Errorf("%s is not there from the beginning", want)
		}
	}
}
