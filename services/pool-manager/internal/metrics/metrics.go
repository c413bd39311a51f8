// SPDX-License-Identifier: Apache-2.0

// Package metrics tells Prometheus what the pool manager knows and what has happened to it.
//
// What is known (pools, replicas, breakers) is read from the snapshots of the registry when somebody scrapes, so it is
// never older than the scrape and goes away with the pool. What has happened (starts, ends, drains, health checks) is
// counted as it is told, through the methods of an observer. A scrape touches no engine and no disk, and never counts as
// use of a pool.
//
// Labels are bounded: a pool's id and a replica's index, of which there are as many as in the registry, and names from
// fixed lists. A value that is not in its list is counted as "other". Every series of a fixed list is there from the
// beginning, with 0. Nothing is stored: counters begin at 0 with the program.
//
// Everything here may be called by many goroutines at once, and nothing blocks.
package metrics

import (
	"errors"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// Path is where the Handler answers.
const Path = "/metrics"

const (
	// maxScrapes are answered at once; more are told 503. Two servers and a person are three.
	maxScrapes = 4
	// scrapeTimeout is Prometheus' own default.
	scrapeTimeout = 10 * time.Second
)

// namespace begins every name of ours.
const namespace = "roundhouse"

// Config of Metrics.
type Config struct {
	// Registry is what is known. Required.
	Registry *registry.Registry
	// Version is the program's, for roundhouse_build_info.
	Version string
}

// Metrics is what a scrape shows. Make one with New.
type Metrics struct {
	gathered *prometheus.Registry
	events
}

// New returns Metrics in which nothing has happened yet.
func New(config Config) (*Metrics, error) {
	if config.Registry == nil {
		return nil, errors.New("make metrics: no registry")
	}
	m := &Metrics{gathered: prometheus.NewRegistry(), events: newEvents()}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Version of the program. Always 1.",
		ConstLabels: prometheus.Labels{"version": text(config.Version)},
	})
	build.Set(1)
	all := append(m.collectors(), build, pools{config.Registry}, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, collector := range all {
		if err := m.gathered.Register(collector); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Handler answers GET on Path, and nothing else.
func (m *Metrics) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, promhttp.HandlerFor(m.gathered, promhttp.HandlerOpts{
		Registry:            m.gathered,
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		EnableOpenMetrics:   true,
	}))
	return mux
}
