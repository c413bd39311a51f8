// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// The manager is killed while the engine of a Preload loads: nobody was told that it serves, so it is undone, and the same Preload
// succeeds afterwards.
func TestPoolManagerIsKilledWhileLoading(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	loaded := node.Path("loaded")
	spec := node.FakePool(t, "asked", "--fake-load-until", loaded, "--fake-behave", "deaf", "--fake-forks", "2")
	other := node.MustPreload(t, node.FakePool(t, "other")).GetReplicas()[0]
	watcher := node.Watch(t, "asked")
	ended := make(chan error, 1)
	go func() { ended <- node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}).Err }()
	watcher.Until(t, "the engine loads", harness.InPhase(poolv1.LoadPhase_LOAD_PHASE_LOADING))
	node.PoolManager.Kill()
	if err := harness.Await(t, "the end of the Preload", ended); err == nil {
		t.Error("a Preload has succeeded whose manager was killed before")
	}
	node.StartPoolManager(t)
	if ids := node.PoolIDs(t); !slices.Equal(ids, []string{"other"}) {
		t.Errorf("pools = %v, want the one alone that is to serve", ids)
	}
	assertAdopted(t, node, "other", other)
	watcher.UntilDeleted(t, "asked")
	writeFile(t, loaded)
	node.MustPreload(t, spec) // it waits until what was left has ended
	if engines := node.Engines(); len(engines) != 4 {
		t.Errorf("engine processes = %v, want the new engine, its two children and the other", engines)
	}
}

// The manager is killed while a drain waits: nothing was stopped yet, so the pool serves on.
func TestPoolManagerIsKilledWhileDraining(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	release := node.Path("release")
	old := node.MustPreload(t, node.FakePool(t, "going", "--fake-hold", release)).GetReplicas()[0]
	stream := harness.NewChat("tiny", 3).Begin(t, old.GetEndpoint())
	watcher := node.Watch(t)
	ended := make(chan error, 1)
	go func() { ended <- node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "going"}).Err }()
	watcher.Until(t, "the pool drains", harness.InState(poolv1.PoolState_POOL_STATE_DRAINING))
	node.PoolManager.Kill()
	if err := harness.Await(t, "the end of the Drain", ended); err == nil {
		t.Error("a Drain has succeeded whose manager was killed before")
	}
	node.StartPoolManager(t)
	assertAdopted(t, node, "going", old)
	if files := node.HandoffFiles(); len(files) != 1 {
		t.Errorf("handoff files = %v, want that of the pool again", files)
	}
	writeFile(t, release)
	if _, _, err := stream.Wait(); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	if drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "going"}); drained.Err != nil || drained.Result.GetForced() {
		t.Errorf("drain = %v, %v; want nothing forced", drained.Result, drained.Err)
	}
	node.AssertNothingRuns(t)
}

// As a service of systemd: it says when it serves and when it ends, and leaves its engines to the next one without being told to.
func TestServiceIsRestarted(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	until := notes(t, node.Path("notify.sock"))
	node.RunNotifying(t, node.Path("notify.sock"))
	until("READY=1")
	old := node.MustPreload(t, node.FakePool(t, "kept")).GetReplicas()[0]
	if code := node.PoolManager.Stop(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	until("STOPPING=1")
	if engines := node.Engines(); len(engines) != 1 {
		t.Errorf("engines = %v, want the one that was left", engines)
	}
	node.StartPoolManager(t)
	assertAdopted(t, node, "kept", old)
}

// notes listens as systemd does, and returns what waits for a note. It ends with the test.
func notes(t *testing.T, socket string) (until func(what string)) {
	t.Helper()
	listener, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = listener.Close()
		removeFile(t, socket)
	})
	told := make(chan string, 64)
	go func() {
		for buffer := make([]byte, 4096); ; {
			n, err := listener.Read(buffer)
			if err != nil {
				return
			}
			told <- string(buffer[:n])
		}
	}()
	return func(what string) {
		for note := ""; !strings.Contains(note, what); {
			note = harness.Await(t, "the note "+what, told)
		}
	}
}

// A manager that leaves its engines leaves no load half done.
func TestLeaveWhileLoading(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	node.StartPoolManager(t, "--shutdown-engines", "leave")
	old := node.MustPreload(t, node.FakePool(t, "serves")).GetReplicas()[0]
	watcher := node.Watch(t)
	ended := make(chan error, 1)
	go func() {
		spec := node.FakePool(t, "loads", "--fake-load-until", "/nonexistent/file")
		ended <- node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}).Err
	}()
	watcher.Until(t, "the engine loads", harness.InPhase(poolv1.LoadPhase_LOAD_PHASE_LOADING))
	if code := node.PoolManager.Stop(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	if err := harness.Await(t, "the end of the Preload", ended); err == nil {
		t.Error("a Preload has succeeded whose manager has ended before")
	}
	if engines := node.Engines(); len(engines) != 1 || engines[0].PID != int(old.GetPid()) {
		t.Errorf("engines = %v, want the one that serves", engines)
	}
	node.StartPoolManager(t)
	assertAdopted(t, node, "serves", old)
}

// After a restart of the machine the pools of higher priority come back first.
func TestRebootInOrder(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{PoolManagerConfig: "restore: {parallel_loads: 1}\n"})
	order := []string{"first", "middle", "last"}
	engines := harness.Processes{}
	for i, id := range []string{"middle", "last", "first"} {
		spec := node.FakePool(t, id)
		spec.Priority = []int32{0, -5, 9}[i]
		node.MustPreload(t, spec)
	}
	engines = append(engines, node.Engines()...)
	node.PoolManager.Kill()
	for _, p := range engines {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	harness.AwaitEnd(t, engines)
	node.Reboot(t)
	node.StartPoolManager(t)
	watcher := node.Watch(t)
	var before *poolv1.Replica
	for _, id := range order {
		ready := watcher.Until(t, id+" serves again", func(p *poolv1.Pool) bool {
			return p.GetPoolId() == id && p.GetState() == poolv1.PoolState_POOL_STATE_READY
		}).GetReplicas()[0]
		if before != nil && ready.GetStarted().AsTime().Before(before.GetReady().AsTime()) {
			t.Errorf("%s was started before %s was ready", ready.GetReplicaId(), before.GetReplicaId())
		}
		before = ready
	}
	if starts := node.Starts(t, "first"); len(starts) != 1 || starts[0].GetExit().GetRequestsCut() != 0 {
		t.Errorf("starts = %v, want that of before the restart", starts)
	}
}

// A pool manager whose program is another, as after an upgrade, takes the engines over, and the engine's own program may be replaced
// while it runs.
func TestProgramsAreReplaced(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	old := node.MustPreload(t, node.FakePool(t, "upgraded")).GetReplicas()[0]
	program := node.Root + "/llama-server"
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	node.PoolManager.Kill()
	removeFile(t, program)
	if err := os.WriteFile(program, append(text, "another version"...), 0o755); err != nil {
		t.Fatal(err)
	}
	node.StartUpgraded(t)
	assertAdopted(t, node, "upgraded", old)
	if answer, err := harness.NewChat("tiny", 2).Ask(t.Context(), old.GetEndpoint()); err != nil || answer.Usage.CompletionTokens != 2 {
		t.Errorf("answer = %v, %v", answer, err)
	}
}

// The manager is killed right after a reload has switched: the next one lets the old engine end the request that it has.
func TestReplacedEngineEndsItsRequests(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	node.RunFailing(t, failpoint.ReloadCommitted, 1)
	node.AwaitPoolManager(t)
	release := node.Path("release")
	spec := node.FakePool(t, "switched", "--fake-hold", release)
	old := node.MustPreload(t, spec).GetReplicas()[0]
	stream := harness.NewChat("tiny", 5).Begin(t, old.GetEndpoint())
	if reloaded := node.Reload(t.Context(), &poolv1.ReloadRequest{Spec: respec(spec)}); reloaded.Err == nil {
		t.Error("a Reload has succeeded whose manager was killed before")
	}
	node.AwaitFailpoint(t, failpoint.ReloadCommitted)
	node.StartPoolManager(t)
	pool := node.GetPool(t, "switched")
	if is := pool.GetReplicas()[0]; pool.GetState() != poolv1.PoolState_POOL_STATE_READY || pool.GetEdition() != 2 || is.GetPid() == old.GetPid() || !is.GetAdopted() {
		t.Errorf("pool = %v, want READY with the new engine", pool)
	}
	writeFile(t, release)
	if text, _, err := stream.Wait(); err != nil || text != "0 1 2 3 4 " {
		t.Errorf("stream = %q, %v; want all of it", text, err)
	}
	testkit.Eventually(t, harness.Patience, "the old engine is gone", func() (bool, string) {
		return len(node.Engines()) == 1 && len(node.Starts(t, "switched")) == 1, fmt.Sprint(node.Engines())
	})
	start := node.Starts(t, "switched")[0]
	if start.GetPid() != old.GetPid() || start.GetExit().GetRequestsCut() != 0 || start.GetEndedBy() != "superseded" {
		t.Errorf("start = %v, want that of the old engine with nothing cut", start)
	}
	if words := strings.Join(start.GetExit().GetLastLogLines(), "\n"); !strings.Contains(words, "cleaning up before exit") {
		t.Errorf("last words = %q, want those of an engine that was told to end when it had no request", words)
	}
}
