// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"cmp"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// pools is a collector of what the registry knows at the time of the scrape.
type pools struct{ known *registry.Registry }

// Describe sends nothing: which series there are is known at each scrape only.
func (pools) Describe(chan<- *prometheus.Desc) {}

// Collect sends the series of every pool. It takes the newest snapshots at once and waits for nobody.
func (p pools) Collect(out chan<- prometheus.Metric) {
	d := newDescriptions()
	for _, pool := range p.known.List() {
		d.pool(pool, out)
		for i := range pool.Replicas {
			d.replica(pool.Spec.ID, &pool.Replicas[i], out)
		}
	}
}

// descriptions are the names and texts of what pools collects.
type descriptions struct {
	info, poolState, wanted, edition, replicas, retiring, reloading                              *prometheus.Desc
	state, generation, slots, restarts, failedStarts, breaker, nextAttempt, ready, adopted, load *prometheus.Desc
}

func newDescriptions() descriptions {
	ofPool := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_pool_"+name, help, append([]string{"pool"}, labels...), nil)
	}
	ofReplica := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(namespace+"_replica_"+name, help, append([]string{"pool", "replica"}, labels...), nil)
	}
	return descriptions{
		info:      ofPool("info", "What a pool serves, once that was prepared. Always 1.", "engine", "engine_version", "model"),
		poolState: ofPool("state", "Where a pool stands: 1 for that state, 0 for the others.", "state"),
		wanted:    ofPool("wanted", "1 if the pool is to serve, now and after a restart; else 0."),
		edition:   ofPool("edition", "Counts what was made of the pool: Preloads, and Reloads that started other engines."),
		replicas:  ofPool("replicas", "How many engines the pool is to have."),
		retiring:  ofPool("retiring_replicas", "Engines of before a reload that end what they have."),
		reloading: ofPool("reloading", "1 while a reload is under way; else 0."),

		state:        ofReplica("state", "Where a replica stands: 1 for that state, 0 for the others.", "state"),
		generation:   ofReplica("generation", "Counts the starts of the replica since its pool was made."),
		slots:        ofReplica("slots", "Requests that the replica serves at once; 0 before that is known."),
		restarts:     ofReplica("restarts_total", "Times that the replica was started again since its pool was made or its breaker reset."),
		failedStarts: ofReplica("failed_starts", "Starts in a row that did not get READY."),
		breaker:      ofReplica("breaker_state", "Where the replica's breaker stands: 1 for that state, 0 for the others.", "state"),
		nextAttempt:  ofReplica("next_attempt_timestamp_seconds", "When the replica will be started again. Absent unless it waits for that."),
		ready:        ofReplica("ready_timestamp_seconds", "When the engine got READY. Absent before that and after its end."),
		adopted:      ofReplica("adopted", "1 if an earlier pool manager had started the engine; else 0."),
		load:         ofReplica("load_ratio", "How much of the model is loaded, from 0 to 1, roughly. Absent unless it loads."),
	}
}

func (d descriptions) pool(p *registry.Pool, out chan<- prometheus.Metric) {
	id := string(p.Spec.ID)
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, append([]string{text(id)}, labels...)...)
	}
	if p.Prepared != nil {
		engine := p.Prepared.GetEngine()
		gauge(d.info, 1, text(engine.GetKind()), text(engine.GetVersion()), text(p.Prepared.GetModel().GetId()))
	}
	for _, state := range poolStates() {
		gauge(d.poolState, truth(p.State == state), lowerName("", state.String()))
	}
	gauge(d.wanted, truth(p.Wanted))
	gauge(d.edition, float64(p.Edition))
	gauge(d.replicas, float64(p.Spec.Replicas))
	gauge(d.retiring, float64(len(p.Retiring)))
	gauge(d.reloading, truth(p.Reload != nil))
}

func (d descriptions) replica(id registry.PoolID, r *registry.Replica, out chan<- prometheus.Metric) {
	index := strconv.Itoa(r.Index)
	send := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(desc, kind, value, append([]string{text(string(id)), index}, labels...)...)
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		send(desc, prometheus.GaugeValue, value, labels...)
	}
	for _, state := range replicaStates() {
		gauge(d.state, truth(r.State == state), lowerName("", state.String()))
	}
	for _, state := range []supervision.Breaker{supervision.Closed, supervision.Open, supervision.HalfOpen} {
		gauge(d.breaker, truth(cmp.Or(r.Supervision.Breaker, supervision.Closed) == state), breakerName(state))
	}
	gauge(d.generation, float64(r.Generation))
	gauge(d.slots, float64(r.SlotsTotal))
	send(d.restarts, prometheus.CounterValue, float64(r.Supervision.Restarts))
	gauge(d.failedStarts, float64(r.Supervision.FailedStarts))
	gauge(d.adopted, truth(r.Adopted))
	if !r.Supervision.NextAttempt.IsZero() {
		gauge(d.nextAttempt, seconds(r.Supervision.NextAttempt))
	}
	if !r.Ready.IsZero() && (r.State == registry.ReplicaReady || r.State == registry.ReplicaDraining) {
		gauge(d.ready, seconds(r.Ready))
	}
	if r.Loading != nil && r.Loading.TotalBytes > 0 {
		gauge(d.load, min(float64(r.Loading.LoadedBytes)/float64(r.Loading.TotalBytes), 1))
	}
}

func poolStates() []registry.State {
	return []registry.State{
		registry.StateLoading, registry.StateReady, registry.StateDraining, registry.StateStopped, registry.StateFailed,
		registry.StateDegraded, registry.StateRecovering,
	}
}

func replicaStates() []registry.ReplicaState {
	return []registry.ReplicaState{
		registry.ReplicaStarting, registry.ReplicaReady, registry.ReplicaDraining, registry.ReplicaStopping,
		registry.ReplicaStopped, registry.ReplicaFailed, registry.ReplicaBackoff,
	}
}

func breakerName(state supervision.Breaker) string {
	switch state {
	case supervision.Open:
		return "open"
	case supervision.HalfOpen:
		return "half_open"
	default:
		return "closed"
	}
}

func truth(is bool) float64 { //nolint:revive // flag-parameter: it is the value itself
	if is {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }
