// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Outcomes of what either succeeds or fails for a reason.
const (
	outcomeOK        = "ok"
	outcomeFailed    = "failed"
	outcomeCancelled = "cancelled"
)

// events are the counters of what has happened.
type events struct {
	preloads        family[prometheus.Observer]
	preloadFailures family[prometheus.Counter]
	drains          family[prometheus.Observer]
	cut             prometheus.Counter
	reloads         family[prometheus.Observer]
	reloadFailures  family[prometheus.Counter]
	reloadActions   family[prometheus.Counter]
	starts          family[prometheus.Observer]
	exits           family[prometheus.Counter]
	uptimes         prometheus.Histogram
	restarts        prometheus.Histogram
	breakers        prometheus.Counter
	adoptions       family[prometheus.Observer]
	checks          family[prometheus.Counter]
}

func newEvents() events {
	outcomes := []string{outcomeOK, outcomeFailed, outcomeCancelled}
	reasons := enumNames("REASON_", enginev1.Reason_name, int32(reason.Unspecified), int32(reason.Cancelled))
	return events{
		preloads: newHistograms("preload_duration_seconds", "How long preloads took, by how they ended.",
			loadBounds(), "outcome", outcomes),
		preloadFailures: newCounters("preload_failures_total", "Preloads that failed, by reason.", "reason", reasons),
		drains: newHistograms("drain_duration_seconds", "How long drains of a pool took, by how they ended.",
			loadBounds(), "outcome", []string{"drained", "forced", "gave_up", "failed"}),
		cut: newCounter("drain_requests_cut_total", "Requests that were in flight when drains stopped an engine."),
		reloads: newHistograms("reload_duration_seconds", "How long reloads took, by how they ended.",
			loadBounds(), "outcome", outcomes),
		reloadFailures: newCounters("reload_failures_total", "Reloads that failed, by reason.", "reason", reasons),
		reloadActions: newCounters("reloads_total", "Reloads that ended, by what they did or were about to do.", "action",
			[]string{"none", "live", "make_before_break", "break_before_make"}),
		starts: newHistograms("engine_start_duration_seconds", "How long engines took to get READY, by why they were started.",
			loadBounds(), "started_by", []string{"preload", "restart", "reload", "restore", "rollback", "reset"}),
		exits: newCounters("engine_exits_total", "Engines that ended, by exit class.", "class",
			enumNames("EXIT_CLASS_", enginev1.ExitClass_name, int32(enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED))),
		uptimes:  newHistogram("engine_uptime_seconds", "How long engines that ended had lived.", uptimeBounds()),
		restarts: newHistogram("restart_delay_seconds", "How long engines that ended waited to be started again.", delayBounds()),
		breakers: newCounter("breaker_opened_total", "Times that the breaker of a replica opened."),
		adoptions: newHistograms("adoption_duration_seconds",
			"How long it took to take an engine of an earlier pool manager over, or to find that it cannot be.",
			adoptionBounds(), "outcome", []string{outcomeOK, outcomeFailed}),
		checks: newCounters("health_checks_total", "Looks at engines, by result.", "result",
			[]string{"fine", "unanswered", "canary_ok", "canary_failed", "hung"}),
	}
}

func (e events) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		e.preloads, e.preloadFailures, e.drains, e.cut, e.reloads, e.reloadFailures, e.reloadActions, e.starts, e.exits,
		e.uptimes, e.restarts, e.breakers, e.adoptions, e.checks,
	}
}

// PreloadEnded counts a Preload; reason.Unspecified is one that succeeded.
func (e events) PreloadEnded(why reason.Reason, took time.Duration) {
	e.preloads.of(outcome(why)).Observe(took.Seconds())
	if outcome(why) == outcomeFailed {
		e.preloadFailures.of(reasonName(why)).Inc()
	}
}

// DrainEnded counts the drain of a pool and the requests that it cut.
func (e events) DrainEnded(outcome string, requestsCut int, took time.Duration) {
	e.drains.of(outcome).Observe(took.Seconds())
	e.cut.Add(float64(max(requestsCut, 0)))
}

// ReloadEnded counts a Reload; reason.Unspecified is one that succeeded.
func (e events) ReloadEnded(why reason.Reason, action string, took time.Duration) {
	e.reloads.of(outcome(why)).Observe(took.Seconds())
	e.reloadActions.of(action).Inc()
	if outcome(why) == outcomeFailed {
		e.reloadFailures.of(reasonName(why)).Inc()
	}
}

// EngineReady counts a start that got READY after so long.
func (e events) EngineReady(startedBy string, took time.Duration) {
	e.starts.of(startedBy).Observe(took.Seconds())
}

// EngineEnded counts the end of an engine.
func (e events) EngineEnded(class enginev1.ExitClass, uptime time.Duration) {
	e.exits.of(lowerName("EXIT_CLASS_", class.String())).Inc()
	e.uptimes.Observe(uptime.Seconds())
}

// Restart counts a start that will be made after the delay.
func (e events) Restart(delay time.Duration) { e.restarts.Observe(delay.Seconds()) }

// BreakerOpened counts a breaker that opened.
func (e events) BreakerOpened() { e.breakers.Inc() }

// Adopted counts an engine of an earlier manager, and whether it could be taken over.
func (e events) Adopted(ok bool, took time.Duration) { //nolint:revive // flag-parameter: the observer's owner says so
	result := outcomeFailed
	if ok {
		result = outcomeOK
	}
	e.adoptions.of(result).Observe(took.Seconds())
}

// HealthCheck counts a look at an engine.
func (e events) HealthCheck(result string) { e.checks.of(result).Inc() }

func outcome(why reason.Reason) string {
	switch why {
	case reason.Unspecified:
		return outcomeOK
	case reason.Cancelled:
		return outcomeCancelled
	default:
		return outcomeFailed
	}
}

func reasonName(why reason.Reason) string { return lowerName("REASON_", why.String()) }

// loadBounds are seconds for what loads a model or waits for requests: a moment or hours.
func loadBounds() []float64 {
	return []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600}
}

// uptimeBounds are seconds for lives, up to a month.
func uptimeBounds() []float64 {
	return []float64{1, 10, 60, 600, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600}
}

// delayBounds are seconds for waits: none, those that double from 1 s and are 10 % longer at most, and a breaker's.
func delayBounds() []float64 {
	return []float64{0, 1.1, 2.2, 4.4, 8.8, 17.6, 35.2, 66, 330, 660, 1320, 2640, 3960}
}

// adoptionBounds are seconds for what should take milliseconds and may take 5 s.
func adoptionBounds() []float64 {
	return []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
}
