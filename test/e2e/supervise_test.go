// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// readyAt is a condition for Until: the pool is READY and its first replica has this generation.
func readyAt(generation uint64) func(*poolv1.Pool) bool {
	return func(pool *poolv1.Pool) bool {
		return pool.GetState() == poolv1.PoolState_POOL_STATE_READY && pool.GetReplicas()[0].GetGeneration() == generation
	}
}

// quickRestart waits as little as is allowed.
func quickRestart() *poolv1.RestartPolicy {
	return &poolv1.RestartPolicy{FirstDelay: durationpb.New(500 * time.Millisecond), MaxDelay: durationpb.New(500 * time.Millisecond)}
}

// quickHealth finds a hung engine soon.
func quickHealth() *poolv1.HealthPolicy {
	return &poolv1.HealthPolicy{Interval: durationpb.New(100 * time.Millisecond), StallLimit: durationpb.New(300 * time.Millisecond)}
}

// An engine that is killed with a request in flight, or while it is started again: another one takes its place.
func TestEngineIsKilledAtWork(t *testing.T) {
	t.Parallel()
	t.Run("mid-stream", func(t *testing.T) {
		t.Parallel()
		node := harness.Start(t, harness.Config{})
		pool := node.MustPreload(t, node.FakePool(t, "busy", "--fake-hold", "/nonexistent/file"))
		watcher := node.Watch(t, "busy")
		stream := harness.NewChat("tiny", 10).Begin(t, pool.GetReplicas()[0].GetEndpoint())
		harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
		watcher.Until(t, "another engine serves", readyAt(2))
		if _, _, err := stream.Wait(); err == nil {
			t.Error("the stream of the killed engine has ended well")
		}
	})
	t.Run("loading", func(t *testing.T) {
		t.Parallel()
		node := harness.Start(t, harness.Config{})
		loaded := node.Path("loaded")
		writeFile(t, loaded)
		spec := node.FakePool(t, "loading", "--fake-load-until", loaded)
		spec.Restart = quickRestart()
		pool := node.MustPreload(t, spec)
		if err := os.Remove(loaded); err != nil {
			t.Fatal(err)
		}
		watcher := node.Watch(t, "loading")
		harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
		loads := watcher.Until(t, "another engine loads", func(p *poolv1.Pool) bool {
			return p.GetReplicas()[0].GetGeneration() == 2 && p.GetReplicas()[0].GetPid() != 0
		})
		if loads.GetState() != poolv1.PoolState_POOL_STATE_RECOVERING || loads.GetReplicas()[0].GetState() != poolv1.ReplicaState_REPLICA_STATE_STARTING {
			t.Errorf("pool = %v, want RECOVERING with a replica that is STARTING", loads)
		}
		harness.Signal(t, loads.GetReplicas()[0], syscall.SIGKILL)
		waits := watcher.Until(t, "it is to be started again", func(p *poolv1.Pool) bool {
			return p.GetReplicas()[0].GetSupervision().GetFailedStarts() == 1
		}).GetReplicas()[0]
		if waits.GetState() != poolv1.ReplicaState_REPLICA_STATE_BACKOFF || waits.GetSupervision().GetNextAttempt() == nil {
			t.Errorf("replica = %v, want BACKOFF with the next attempt", waits)
		}
		writeFile(t, loaded)
		watcher.Until(t, "another engine serves", readyAt(3))
		starts := node.Starts(t, "loading")
		if len(starts) != 2 || starts[0].GetReady() != nil || starts[0].GetStartedBy() != "restart" || starts[0].GetExit().GetSignal() != "SIGKILL" ||
			starts[1].GetReady() == nil {
			t.Errorf("starts = %v, want one that never got ready and one that had been", starts)
		}
	})
}

// Engines that live and do not work are found by what does not move, ended, and started again.
func TestEngineHangs(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		flags []string
		busy  bool // has a request in flight.
		stop  bool // by SIGSTOP.
		spec  func(*poolv1.HealthPolicy)
	}{
		{name: "stopped and idle", stop: true},
		{name: "stopped with a request", stop: true, busy: true},
		{name: "health says ok and no token comes", flags: []string{"--fake-behave", "stuck"}, busy: true},
		{name: "answers nothing", flags: []string{"--fake-behave", "freeze"}},
		{
			name: "idle and would make no token", flags: []string{"--fake-behave", "stuck"},
			spec: func(h *poolv1.HealthPolicy) {
				h.CanaryInterval, h.CanaryTimeout = durationpb.New(200*time.Millisecond), durationpb.New(300*time.Millisecond)
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			node := harness.Start(t, harness.Config{})
			when := node.Path("when")
			flags := append([]string{"--fake-pause", "5ms", "--fake-behave-when", when}, tt.flags...)
			spec := node.FakePool(t, "hangs", flags...)
			spec.Health = quickHealth()
			if tt.spec != nil {
				tt.spec(spec.Health)
			}
			pool := node.MustPreload(t, spec)
			watcher := node.Watch(t, "hangs")
			var stream *harness.Stream
			if tt.busy {
				stream = harness.NewChat("tiny", 100000).Begin(t, pool.GetReplicas()[0].GetEndpoint())
			}
			if tt.stop {
				harness.Signal(t, pool.GetReplicas()[0], syscall.SIGSTOP)
			} else {
				writeFile(t, when)
			}
			watcher.Until(t, "the engine is being ended", func(p *poolv1.Pool) bool {
				return p.GetReplicas()[0].GetState() == poolv1.ReplicaState_REPLICA_STATE_STOPPING
			})
			if err := os.RemoveAll(when); err != nil {
				t.Fatal(err)
			}
			watcher.Until(t, "another engine serves", readyAt(2))
			start := node.Starts(t, "hangs")[0]
			if start.GetExit().GetClass() != enginev1.ExitClass_EXIT_CLASS_HUNG || start.GetEndedBy() != "hung" || start.GetError() == "" {
				t.Errorf("start = %v, want HUNG with its cause", start)
			}
			if stream != nil {
				if _, _, err := stream.Wait(); err == nil {
					t.Error("the stream of the hung engine has ended well")
				}
			}
		})
	}
}

// Honest work is left alone however long it takes: counters that move, and an idle engine that is asked for a token.
func TestSlowEngineIsLeftAlone(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	spec := node.FakePool(t, "slow", "--fake-pause", "100ms")
	spec.Health = quickHealth()
	spec.Health.CanaryInterval = durationpb.New(100 * time.Millisecond)
	pool := node.MustPreload(t, spec)
	chat := harness.NewChat("tiny", 20) // 2 s at least, which is many times the limit
	if answer, err := chat.Ask(t.Context(), pool.GetReplicas()[0].GetEndpoint()); err != nil || answer.Usage.CompletionTokens != 20 {
		t.Errorf("answer = %v, %v; want all of it", answer, err)
	}
	if got := node.GetPool(t, "slow").GetReplicas()[0]; got.GetPid() != pool.GetReplicas()[0].GetPid() {
		t.Errorf("replica = %v, want the engine that was there", got)
	}
}

// An engine with two hundred processes in sessions of their own: killed, and drained, it takes all of them along.
func TestForkBomb(t *testing.T) {
	t.Parallel()
	const children = 200
	node := harness.Start(t, harness.Config{})
	pool := node.MustPreload(t, node.FakePool(t, "bomb", "--fake-forks", fmt.Sprint(children)))
	watcher := node.Watch(t, "bomb")
	first := node.Engines()
	if len(first) != children+1 {
		t.Fatalf("%d processes, want %d", len(first), children+1)
	}
	harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
	watcher.Until(t, "another engine serves", readyAt(2))
	if again := node.Engines(); len(again) != children+1 {
		t.Errorf("%d processes after the restart, want those of the new engine alone: %d", len(again), children+1)
	}
	harness.AwaitEnd(t, first)
	drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "bomb"})
	if drained.Err != nil || !drained.Result.GetKilled() {
		t.Errorf("drain = %v, %v; want some killed", drained.Result, drained.Err)
	}
	node.AssertNothingRuns(t)
}

// An engine that fails again and again is not tried for ever: the breaker opens, says why and until when, and can be reset.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	crash := node.Path("crash")
	spec := node.FakePool(t, "loop", "--fake-crash-when", crash, "--fake-exit", "3", "--fake-last-words", "not today")
	spec.Restart = quickRestart()
	spec.Restart.Breaker = &poolv1.BreakerPolicy{FailedStarts: 2, OpenFor: durationpb.New(time.Hour)}
	node.MustPreload(t, spec)
	watcher := node.Watch(t, "loop")
	writeFile(t, crash)
	open := watcher.Until(t, "the breaker opens", func(p *poolv1.Pool) bool {
		return p.GetReplicas()[0].GetSupervision().GetBreaker() == poolv1.BreakerState_BREAKER_STATE_OPEN
	})
	if replica := open.GetReplicas()[0]; time.Until(replica.GetSupervision().GetNextAttempt().AsTime()) < 50*time.Minute ||
		replica.GetSupervision().GetBreakerCause() == "" || replica.GetState() != poolv1.ReplicaState_REPLICA_STATE_BACKOFF ||
		open.GetState() != poolv1.PoolState_POOL_STATE_RECOVERING || open.GetFailure().GetReason() != enginev1.Reason_REASON_BREAKER_OPEN {
		t.Errorf("pool = %v, want RECOVERING with an open breaker for an hour and its cause", open)
	}
	if starts := node.Starts(t, "loop"); len(starts) != 3 || starts[0].GetExit().GetCode() != 3 ||
		!strings.Contains(strings.Join(starts[0].GetExit().GetLastLogLines(), "\n"), "not today") {
		t.Errorf("starts = %v, want three with code 3 and last words", starts)
	}
	node.PoolManager.Kill()
	node.StartPoolManager(t)
	if after := node.GetPool(t, "loop").GetReplicas()[0].GetSupervision(); after.GetBreaker() != poolv1.BreakerState_BREAKER_STATE_OPEN ||
		time.Until(after.GetNextAttempt().AsTime()) < 50*time.Minute {
		t.Errorf("supervision after a crash of the manager = %v, want the breaker open as before", after)
	}
	if err := os.Remove(crash); err != nil {
		t.Fatal(err)
	}
	answer, err := node.Pools.ResetBreaker(t.Context(), &poolv1.ResetBreakerRequest{PoolId: "loop"})
	if err != nil || answer.GetReplicas() != 1 {
		t.Errorf("ResetBreaker = %v, %v; want one replica started", answer, err)
	}
	ready := watcher.Until(t, "the pool serves again", func(p *poolv1.Pool) bool { // a crash may have forgotten the last failure
		return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetGeneration() > 3
	})
	for _, event := range watcher.Events() {
		if event.Pool.GetState() == poolv1.PoolState_POOL_STATE_FAILED {
			t.Errorf("a watcher was told of %v, which was not given up", event.Pool)
		}
	}
	if s := ready.GetReplicas()[0].GetSupervision(); s.GetBreaker() != poolv1.BreakerState_BREAKER_STATE_CLOSED || s.GetFailedStarts() != 0 {
		t.Errorf("supervision = %v, want nothing of before", s)
	}
}

// An end that another start would only repeat is final.
func TestPermanentFailure(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	crash := node.Path("crash")
	node.MustPreload(t, node.FakePool(t, "broken", "--fake-crash-once", crash, "--fake-exit", "1",
		"--fake-last-words", "error loading model: unknown architecture"))
	watcher := node.Watch(t, "broken")
	writeFile(t, crash)
	failed := watcher.Until(t, "the pool has FAILED", harness.InState(poolv1.PoolState_POOL_STATE_FAILED))
	if got := failed.GetReplicas()[0].GetExit().GetClass(); got != enginev1.ExitClass_EXIT_CLASS_CONFIG {
		t.Errorf("class = %v, want CONFIG", got)
	}
	node.AssertNothingRuns(t)
}

// The kernel kills an engine for its memory, where this machine lets us make a group that has little; elsewhere somebody kills it.
func TestEngineIsOutOfMemory(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	grow := node.Path("grow")
	pool := node.MustPreload(t, node.FakePool(t, "hungry", "--fake-grow-once", grow))
	watcher := node.Watch(t, "hungry")
	want := enginev1.ExitClass_EXIT_CLASS_OOM_HOST
	if enter, err := harness.MemoryGroup(t, 128<<20); err != nil {
		t.Logf("killed by hand, for there is no group of memory here: %v", err)
		want = enginev1.ExitClass_EXIT_CLASS_SIGNAL
		harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
	} else if err := enter(int(pool.GetReplicas()[0].GetPid())); err != nil {
		t.Fatal(err)
	} else {
		writeFile(t, grow)
	}
	watcher.Until(t, "another engine serves", readyAt(2))
	if exit := node.Starts(t, "hungry")[0].GetExit(); exit.GetClass() != want || exit.GetSignal() != "SIGKILL" {
		t.Errorf("exit = %v, want %v by SIGKILL", exit, want)
	}
}

// Somebody takes the port of an engine that is about to be started again: it waits until it can have it.
func TestPortThiefAtRestart(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	spec := node.FakePool(t, "robbed")
	spec.Port = uint32(free.Addr().(*net.TCPAddr).Port) //nolint:errcheck // a TCP listener has a TCP address
	spec.Restart = quickRestart()
	pool := node.MustPreload(t, spec)
	watcher := node.Watch(t, "robbed")
	harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
	watcher.Until(t, "the engine waits to be started again", func(p *poolv1.Pool) bool {
		return p.GetReplicas()[0].GetState() == poolv1.ReplicaState_REPLICA_STATE_BACKOFF && p.GetReplicas()[0].GetSupervision().GetNextAttempt() != nil
	})
	thief, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	refused := watcher.Until(t, "the port is refused", func(p *poolv1.Pool) bool {
		return p.GetFailure().GetReason() == enginev1.Reason_REASON_PORT_IN_USE
	})
	if refused.GetState() != poolv1.PoolState_POOL_STATE_RECOVERING {
		t.Errorf("pool = %v, want RECOVERING", refused)
	}
	_ = thief.Close()
	ready := watcher.Until(t, "the pool serves again", func(p *poolv1.Pool) bool {
		return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetGeneration() > 2
	})
	if got := ready.GetReplicas()[0].GetEndpoint(); got != "http://"+address {
		t.Errorf("endpoint = %s, want the old one: %s", got, address)
	}
}

// Restarts need nobody but the pool manager: no provisioner, and no reader who takes what he is told.
func TestRestartNeedsNobody(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	pool := node.MustPreload(t, node.FakePool(t, "alone"))
	stuck, err := node.Pools.Watch(t.Context(), &poolv1.WatchRequest{}) // nothing is ever received from it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = stuck.CloseSend() }()
	watcher := node.Watch(t, "alone")
	node.Provisioner.Stop(t)
	for generation := uint64(2); generation <= 3; generation++ {
		harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
		pool = watcher.Until(t, "another engine serves", readyAt(generation))
	}
}

// An idle pool is unloaded, whoever reads its metrics, and one that works is not.
func TestIdlePoolIsUnloaded(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	node.StartPoolManager(t, node.MetricsFlags()...)
	release := node.Path("release")
	spec := func(id string, flags ...string) *poolv1.PoolSpec {
		s := node.FakePool(t, id, flags...)
		s.Residency, s.IdleTimeout = poolv1.Residency_RESIDENCY_TTL, durationpb.New(time.Second)
		s.Health = &poolv1.HealthPolicy{Interval: durationpb.New(100 * time.Millisecond)}
		return s
	}
	busy := node.MustPreload(t, spec("busy", "--fake-hold", release))
	stream := harness.NewChat("tiny", 3).Begin(t, busy.GetReplicas()[0].GetEndpoint())
	node.MustPreload(t, spec("idle"))
	watcher := node.Watch(t)
	unloaded := func(id string) func(*poolv1.Pool) bool {
		return func(p *poolv1.Pool) bool {
			node.Metrics(t) // with each change
			return p.GetPoolId() == id && p.GetState() == poolv1.PoolState_POOL_STATE_STOPPED
		}
	}
	if gone := watcher.Until(t, "the idle pool is unloaded", unloaded("idle")); gone.GetWanted() {
		t.Errorf("pool = %v, want one that is not to serve", gone)
	}
	if start := node.Starts(t, "idle")[0]; start.GetEndedBy() != "idle" || start.GetExit().GetRequestsCut() != 0 {
		t.Errorf("start = %v, want ended for being idle", start)
	}
	if got := node.GetPool(t, "busy"); got.GetState() != poolv1.PoolState_POOL_STATE_READY {
		t.Errorf("pool with a request in flight = %v, want READY", got)
	}
	writeFile(t, release)
	if _, _, err := stream.Wait(); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	watcher.Until(t, "the other is unloaded when it has nothing more to do", unloaded("busy"))
	node.MustPreload(t, spec("idle")) // one that was unloaded comes back when asked for
}

// What the metrics tell of engines that were started again.
func TestMetricsOfRestarts(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	node.StartPoolManager(t, node.MetricsFlags()...)
	pool := node.MustPreload(t, node.FakePool(t, "counted"))
	watcher := node.Watch(t, "counted")
	harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
	watcher.Until(t, "another engine serves", readyAt(2))
	const replica = `{pool="counted",replica="0"}`
	testkit.Eventually(t, harness.Patience, "the metrics tell it", func() (bool, string) {
		series := node.Metrics(t)
		got := []float64{
			series["roundhouse_replica_restarts_total"+replica], series[`roundhouse_engine_exits_total{class="signal"}`],
			series["roundhouse_replica_generation"+replica], series["roundhouse_replica_adopted"+replica],
		}
		return fmt.Sprint(got) == "[1 1 2 0]", fmt.Sprintf("%v of %v", got, series)
	})
	node.PoolManager.Kill()
	node.StartPoolManager(t, node.MetricsFlags()...)
	series := node.Metrics(t)
	if series["roundhouse_replica_adopted"+replica] != 1 || series[`roundhouse_adoption_duration_seconds_count{outcome="ok"}`] != 1 {
		t.Errorf("series after a crash of the manager = %v, want one engine taken over", series)
	}
	if !node.GetPool(t, "counted").GetReplicas()[0].GetAdopted() {
		t.Error("GetPool does not tell that the engine was taken over")
	}
}
