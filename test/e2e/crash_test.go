// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// An engine that is killed while it serves is seen at once, everything that it had started goes with it, and another one
// takes its place.
func TestEngineIsKilled(t *testing.T) {
	t.Parallel()
	const limit = time.Second
	node := harness.Start(t, harness.Config{})
	spec := node.FakePool(t, "victim", "--fake-forks", "2")
	pool := node.MustPreload(t, spec)
	watcher := node.Watch(t, "victim")
	killed := time.Now()
	if err := unix.Kill(int(pool.GetReplicas()[0].GetPid()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	failed := watcher.Until(t, "the pool recovers", harness.InState(poolv1.PoolState_POOL_STATE_RECOVERING))
	if took := time.Since(killed); took > limit {
		t.Errorf("the pool was RECOVERING %v after its engine had been killed, want %v at most", took, limit)
	}
	if got := failed.GetFailure().GetReason(); got != reason.EngineExited {
		t.Errorf("failure = %v, want ENGINE_EXITED", failed.GetFailure())
	}
	replica := failed.GetReplicas()[0]
	exit := replica.GetExit()
	if exit.GetClass() != enginev1.ExitClass_EXIT_CLASS_SIGNAL || exit.GetSignal() != "SIGKILL" || exit.GetUptime().AsDuration() <= 0 ||
		!strings.Contains(strings.Join(exit.GetLastLogLines(), "\n"), "listening on") {
		t.Errorf("exit = %v, want SIGNAL by SIGKILL with the last lines of the log", exit)
	}
	if replica.GetEndpoint() != "" || replica.GetPid() != 0 {
		t.Errorf("replica = %v, want no endpoint and no pid", replica)
	}
	ready := watcher.Until(t, "another engine serves", func(p *poolv1.Pool) bool {
		return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetGeneration() == 2
	})
	if again := ready.GetReplicas()[0]; again.GetExit().GetSignal() != "SIGKILL" || again.GetSupervision().GetRestarts() != 1 {
		t.Errorf("replica = %v, want one restart and the last exit", again)
	}
	starts, err := node.Pools.ListStarts(t.Context(), &poolv1.ListStartsRequest{PoolId: "victim"})
	if err != nil || len(starts.GetStarts()) != 1 || starts.GetStarts()[0].GetExit().GetSignal() != "SIGKILL" || starts.GetStarts()[0].GetStartedBy() != "preload" {
		t.Errorf("starts = %v, %v; want that of the killed engine", starts, err)
	}
	if engines := node.Engines(); len(engines) != 3 {
		t.Errorf("engine processes = %v, want the new engine and its two children", engines)
	}
}

// A killed pool manager takes no engine with it, and cuts no stream; the next one takes over what it finds.
func TestPoolManagerIsKilled(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	release := node.Path("release")
	pool := node.MustPreload(t, node.FakePool(t, "orphan", "--fake-hold", release, "--fake-forks", "2"))
	stream := harness.NewChat("tiny", 5).Begin(t, pool.GetReplicas()[0].GetEndpoint())
	watcher := node.Watch(t)
	node.PoolManager.Kill()
	engines := node.Engines()
	if len(engines) != 3 {
		t.Fatalf("engine processes after the kill = %v, want the engine and its two children", engines)
	}
	writeFile(t, release)
	if text, _, err := stream.Wait(); err != nil || text != "0 1 2 3 4 " {
		t.Errorf("stream = %q, %v; want all of it", text, err)
	}
	node.StartPoolManager(t)
	again := watcher.Until(t, "the engine is taken over", func(p *poolv1.Pool) bool { // who watched before the kill learns of it
		return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetAdopted()
	})
	was, is := pool.GetReplicas()[0], again.GetReplicas()[0]
	if is.GetPid() != was.GetPid() || is.GetEndpoint() != was.GetEndpoint() || is.GetGeneration() != was.GetGeneration() {
		t.Errorf("replica = %v, want the engine that was there: %v", is, was)
	}
	if after := node.Engines(); len(after) != 3 {
		t.Errorf("engine processes = %v, want those of before: %v", after, engines)
	}
	drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "orphan"})
	if drained.Err != nil {
		t.Errorf("Drain: %v", drained.Err)
	}
	harness.AwaitEnd(t, engines)
	node.AssertNothingRuns(t)
}

// What two pool managers must not share, and addresses that are refused.
func TestDaemonsThatMustNotStart(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		flags func(*harness.Node) []string
		code  int
		says  string
	}{
		{"the state directory of another", func(n *harness.Node) []string { return []string{"--listen", "unix://" + n.Path("other.sock")} }, 3, "in use"},
		{"the address of another", func(n *harness.Node) []string { return []string{"--state-dir", n.Path("other")} }, 4, "m.sock"},
		{"an address of the network", func(*harness.Node) []string { return []string{"--listen", "0.0.0.0:9200"} }, 2, "loopback"},
		{"a state directory that is a file", func(n *harness.Node) []string { return []string{"--state-dir", n.Path("root/file")} }, 3, "root/file"},
		{"a flag that is not known", func(*harness.Node) []string { return []string{"--frobnicate"} }, 2, "frobnicate"},
	}
	node := harness.Start(t, harness.Config{})
	node.WriteFile(t, "file", []byte("not a folder"))
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { //nolint:paralleltest // the node belongs to the test above
			second := node.RunPoolManager(t, tt.flags(node)...)
			if code := second.Wait(t); code != tt.code {
				t.Errorf("exit code = %d, want %d:\n%s", code, tt.code, second.Log(t))
			}
			if log := second.Log(t); !strings.Contains(log, tt.says) {
				t.Errorf("it does not say %q:\n%s", tt.says, log)
			}
		})
	}
	node.MustPreload(t, node.FakePool(t, "untouched"))
}
