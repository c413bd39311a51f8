// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

func newMetrics(t *testing.T) (*Metrics, *registry.Registry) {
	t.Helper()
	known, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{Registry: known, Version: "v1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	return m, known
}

// scrape returns the lines of a scrape that begin with the prefix.
func scrape(t *testing.T, m *Metrics, prefix string) []string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, Path, http.NoBody))
	if answer.Code != http.StatusOK {
		t.Fatalf("GET %s: %d %s", Path, answer.Code, answer.Body)
	}
	var lines []string
	for line := range strings.Lines(answer.Body.String()) {
		if strings.HasPrefix(line, prefix) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
	}
	return lines
}

// busy is a pool of which one replica serves, one waits and one loads, in the middle of a reload.
func busy() registry.Pool {
	at := time.Date(2026, 11, 24, 12, 0, 0, 500e6, time.UTC)
	return registry.Pool{
		Spec:    registry.Spec{ID: "chat", Replicas: 3},
		State:   registry.StateDegraded,
		Wanted:  true,
		Edition: 2,
		Prepared: &enginev1.PreparedEngine{
			Engine: &enginev1.EngineIdentity{Kind: "some-engine", Version: "v9"},
			Model:  &enginev1.PreparedModel{Id: "small \xff\"model\""},
		},
		Replicas: []registry.Replica{
			{
				Index: 0, Generation: 7, State: registry.ReplicaReady, SlotsTotal: 4, Ready: at, Adopted: true,
				Supervision: supervision.Status{Restarts: 6, Breaker: supervision.HalfOpen},
			},
			{
				Index: 1, Generation: 3, State: registry.ReplicaBackoff, Ready: at,
				Supervision: supervision.Status{Restarts: 2, FailedStarts: 2, NextAttempt: at.Add(time.Minute), Breaker: supervision.Open},
			},
			{Index: 2, Generation: 1, State: registry.ReplicaStarting, Loading: &registry.LoadProgress{LoadedBytes: 30, TotalBytes: 40}},
		},
		Retiring: []registry.Replica{{Index: 0}, {Index: 1}},
		Reload:   &registry.ReloadStatus{},
	}
}

func TestScrapeOfPools(t *testing.T) {
	t.Parallel()
	m, known := newMetrics(t)
	known.Put(busy())
	known.Put(registry.Pool{Spec: registry.Spec{ID: "a", Replicas: 1}, State: registry.StateStopped})
	got := append(scrape(t, m, "roundhouse_pool_"), scrape(t, m, "roundhouse_replica_")...)
	testkit.Golden(t, "pools.txt", []byte(strings.Join(got, "\n")+"\n"))
}

func TestSeriesOfAPoolGoWithIt(t *testing.T) {
	t.Parallel()
	m, known := newMetrics(t)
	known.Put(busy())
	if got := scrape(t, m, `roundhouse_replica_slots{pool="chat"`); len(got) != 3 {
		t.Fatalf("slots: %q, want 3 series", got)
	}
	known.Delete("chat")
	if got := append(scrape(t, m, "roundhouse_pool_"), scrape(t, m, "roundhouse_replica_")...); len(got) != 0 {
		t.Errorf("after the delete there are %q", got)
	}
}

// TestStatesAreThoseOfTheContract fails when a state is added that a scrape would not show.
func TestStatesAreThoseOfTheContract(t *testing.T) {
	t.Parallel()
	var states, replicas, breakers []string
	for _, state := range poolStates() {
		states = append(states, lowerName("", state.String()))
	}
	for _, state := range replicaStates() {
		replicas = append(replicas, lowerName("", state.String()))
	}
	for state := supervision.Closed; state <= supervision.HalfOpen; state++ {
		breakers = append(breakers, breakerName(state))
	}
	for _, tt := range []struct {
		name      string
		got, want []string
	}{
		{"pool", states, enumNames("POOL_STATE_", poolv1.PoolState_name, 0)},
		{"replica", replicas, enumNames("REPLICA_STATE_", poolv1.ReplicaState_name, 0)},
		{"breaker", breakers, enumNames("BREAKER_STATE_", poolv1.BreakerState_name, 0)},
	} {
		if diff := cmp.Diff(tt.want, tt.got); diff != "" {
			t.Errorf("states of a %s (-contract +scraped):\n%s", tt.name, diff)
		}
	}
}

// TestScrapeTouchesNoEngine counts the requests that reach the endpoint of a replica.
func TestScrapeTouchesNoEngine(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	engine := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	t.Cleanup(engine.Close)
	m, known := newMetrics(t)
	pool := busy()
	pool.Replicas[0].Endpoint = engine.URL
	known.Put(pool)
	before := known.List()[0]
	for range 3 {
		scrape(t, m, "")
	}
	if got := asked.Load(); got != 0 {
		t.Errorf("the engine was asked %d times", got)
	}
	if after := known.List()[0]; after != before {
		t.Errorf("the scrapes have changed the pool: %+v, before %+v", after, before)
	}
}

// TestNamesFollowTheRules runs the linter of Prometheus over everything that a scrape can show.
func TestNamesFollowTheRules(t *testing.T) {
	t.Parallel()
	m, known := newMetrics(t)
	known.Put(busy())
	problems, err := testutil.GatherAndLint(m.gathered)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
}

func TestScrapeOfTheProgram(t *testing.T) {
	t.Parallel()
	m, _ := newMetrics(t)
	for _, prefix := range []string{`roundhouse_build_info{version="v1.2.3"} 1`, "go_goroutines ", "process_open_fds "} {
		if got := scrape(t, m, prefix); len(got) != 1 {
			t.Errorf("lines with %q: %q, want one", prefix, got)
		}
	}
}

func TestHandlerAnswersItsPathOnly(t *testing.T) {
	t.Parallel()
	m, _ := newMetrics(t)
	server := httptest.NewServer(m.Handler())
	t.Cleanup(server.Close)
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{http.MethodGet, "/metrics", http.StatusOK},
		{http.MethodHead, "/metrics", http.StatusOK},
		{http.MethodPost, "/metrics", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodGet, "/metrics/x", http.StatusNotFound},
		{http.MethodGet, "/debug/pprof/", http.StatusNotFound},
	} {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			t.Parallel()
			request, err := http.NewRequestWithContext(t.Context(), tt.method, server.URL+tt.path, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := server.Client().Do(request)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			_ = answer.Body.Close()
			if answer.StatusCode != tt.want {
				t.Errorf("%s %s: %d, want %d", tt.method, tt.path, answer.StatusCode, tt.want)
			}
		})
	}
}

// TestScrapesBesideWriters is for the race detector: a scrape has whole pools while they come and go.
func TestScrapesBesideWriters(t *testing.T) {
	t.Parallel()
	m, known := newMetrics(t)
	var writing sync.WaitGroup
	writing.Go(func() {
		for range 200 {
			known.Put(busy())
			m.EngineReady("restart", time.Second)
			known.Delete("chat")
		}
	})
	for range 20 {
		if got := len(scrape(t, m, "roundhouse_replica_slots{")); got != 0 && got != 3 {
			t.Errorf("%d replicas, want all 3 or none", got)
		}
	}
	writing.Wait()
	if got := scrape(t, m, `roundhouse_engine_start_duration_seconds_count{started_by="restart"}`); !strings.HasSuffix(strings.Join(got, ""), " 200") {
		t.Errorf("starts: %q, want 200", got)
	}
}

func TestNewNeedsARegistry(t *testing.T) {
	t.Parallel()
	if m, err := New(Config{Version: "v1"}); err == nil {
		t.Errorf("New without a registry = %v", m)
	}
}

// TestEveryMetricIsDocumented compares the names with the tables of docs/operations.md.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	m, known := newMetrics(t)
	known.Put(busy())
	families, err := m.gathered.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var have, documented []string
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "roundhouse_") && family.GetName() != "roundhouse_build_info" {
			have = append(have, family.GetName())
		}
	}
	page, err := os.ReadFile(filepath.Join(testkit.RepoRoot(t), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if row, ok := strings.CutPrefix(line, "| `roundhouse_"); ok {
			name, _, _ := strings.Cut(row, "`")
			documented = append(documented, "roundhouse_"+name)
		}
	}
	slices.Sort(have)
	slices.Sort(documented)
	if diff := cmp.Diff(have, slices.Compact(documented)); diff != "" {
		t.Errorf("metrics (-scraped +documented):\n%s", diff)
	}
}
