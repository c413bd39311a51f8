// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// A manager that is told to leave the engines ends and cuts nothing; the next one has the same engines.
func TestManagerLeavesEngines(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	node.StartPoolManager(t, "--shutdown-engines", "leave")
	release := node.Path("release")
	old := node.MustPreload(t, node.FakePool(t, "left", "--fake-hold", release, "--fake-forks", "2")).GetReplicas()[0]
	stream := harness.NewChat("tiny", 5).Begin(t, old.GetEndpoint())
	if code := node.PoolManager.Stop(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	if engines := node.Engines(); len(engines) != 3 {
		t.Errorf("engine processes = %v, want the engine and its two children", engines)
	}
	if files := node.HandoffFiles(); len(files) != 1 {
		t.Errorf("handoff files = %v, want that of the engine, which serves", files)
	}
	writeFile(t, release)
	if text, _, err := stream.Wait(); err != nil || text != "0 1 2 3 4 " {
		t.Errorf("stream = %q, %v; want all of it", text, err)
	}
	node.StartPoolManager(t)
	assertAdopted(t, node, "left", old)
	if starts := node.Starts(t, "left"); len(starts) != 0 {
		t.Errorf("starts = %v, want none that has ended", starts)
	}
}

// assertAdopted looks whether a pool of one engine is READY with the engine that was there.
func assertAdopted(t *testing.T, node *harness.Node, id string, old *poolv1.Replica) {
	t.Helper()
	pool := node.GetPool(t, id)
	is := pool.GetReplicas()[0]
	if pool.GetState() != poolv1.PoolState_POOL_STATE_READY || !is.GetAdopted() || is.GetPid() != old.GetPid() ||
		is.GetEndpoint() != old.GetEndpoint() || is.GetGeneration() != old.GetGeneration() {
		t.Errorf("pool = %v, want READY with the engine of before: %v", pool, old)
	}
}

// An engine that loads when its manager is killed goes on loading, and the next manager waits for it.
func TestLoadingEngineIsTakenOver(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	loaded := node.Path("loaded")
	writeFile(t, loaded)
	pool := node.MustPreload(t, node.FakePool(t, "loads", "--fake-load-until", loaded))
	if err := os.Remove(loaded); err != nil {
		t.Fatal(err)
	}
	watcher := node.Watch(t, "loads")
	harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
	loading := watcher.Until(t, "another engine loads", func(p *poolv1.Pool) bool {
		return p.GetReplicas()[0].GetGeneration() == 2 && p.GetReplicas()[0].GetPid() != 0
	}).GetReplicas()[0]
	testkit.Eventually(t, harness.Patience, "the process is on record", func() (bool, string) { // else it would be ended
		pid := node.RecordedPID("loads-0-g2.json")
		return pid == int(loading.GetPid()), fmt.Sprint(pid)
	})
	node.PoolManager.Kill()
	node.PoolManager = node.RunPoolManager(t) // it serves when the load has ended, or after 5 s
	watcher.Until(t, "the next manager has the load", func(p *poolv1.Pool) bool {
		r := p.GetReplicas()[0]
		return r.GetPid() == loading.GetPid() && r.GetState() == poolv1.ReplicaState_REPLICA_STATE_STARTING && p.GetEdition() == 1 && r.GetLoading() != nil
	})
	writeFile(t, loaded)
	ready := watcher.Until(t, "the engine serves", readyAt(2)).GetReplicas()[0]
	if ready.GetPid() != loading.GetPid() || !ready.GetAdopted() {
		t.Errorf("replica = %v, want the engine that was loading: %v", ready, loading)
	}
}

// What a manager does with records that do not tell what runs: a process that is not proven to be ours is never touched, and an
// engine of ours that no record tells of is ended, or left alone if that is configured, and never doubled.
func TestRecordsThatDoNotFit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		config string
		// spoil is done while no manager is there; stranger is a process that is none of ours.
		spoil func(t *testing.T, node *harness.Node, old *poolv1.Replica, stranger int)
		class enginev1.ExitClass // of the old engine's end; unspecified means that there is no record of it.
		lives bool               // the old engine.
	}{
		{
			name: "the engine died meanwhile", class: enginev1.ExitClass_EXIT_CLASS_UNKNOWN,
			spoil: func(t *testing.T, _ *harness.Node, old *poolv1.Replica, _ int) {
				t.Helper()
				harness.Signal(t, old, syscall.SIGKILL)
				harness.AwaitEnd(t, harness.Processes{{PID: int(old.GetPid())}})
			},
		},
		{
			name: "another process has its pid", class: enginev1.ExitClass_EXIT_CLASS_UNKNOWN,
			spoil: func(t *testing.T, node *harness.Node, old *poolv1.Replica, stranger int) {
				t.Helper()
				harness.Signal(t, old, syscall.SIGKILL)
				harness.AwaitEnd(t, harness.Processes{{PID: int(old.GetPid())}})
				node.EditRecord(t, "replicas/odd-0-g1.json", func(record map[string]any) { identityOf(t, record)["pid"] = stranger })
			},
		},
		{
			name: "it names a stranger while the engine lives", class: enginev1.ExitClass_EXIT_CLASS_UNKNOWN,
			spoil: func(t *testing.T, node *harness.Node, _ *poolv1.Replica, stranger int) {
				t.Helper()
				node.EditRecord(t, "replicas/odd-0-g1.json", func(record map[string]any) { identityOf(t, record)["pid"] = stranger })
			},
		},
		{
			name: "there is none",
			spoil: func(t *testing.T, node *harness.Node, _ *poolv1.Replica, _ int) {
				t.Helper()
				removeFile(t, filepath.Join(node.State, "replicas", "odd-0-g1.json"))
			},
		},
		{
			name: "there is none, and strays are kept", config: "restore: {strays: keep}\n", lives: true,
			spoil: func(t *testing.T, node *harness.Node, _ *poolv1.Replica, _ int) {
				t.Helper()
				removeFile(t, filepath.Join(node.State, "replicas", "odd-0-g1.json"))
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			node := harness.Start(t, harness.Config{PoolManagerConfig: tt.config})
			old := node.MustPreload(t, node.FakePool(t, "odd")).GetReplicas()[0]
			fine := node.MustPreload(t, node.FakePool(t, "fine")).GetReplicas()[0]
			stranger := startStranger(t)
			watcher := node.Watch(t, "odd")
			node.PoolManager.Kill()
			tt.spoil(t, node, old, stranger)
			node.StartPoolManager(t)
			fresh := watcher.Until(t, "another engine serves", func(p *poolv1.Pool) bool {
				return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetPid() != old.GetPid()
			})
			assertAdopted(t, node, "fine", fine)
			if err := syscall.Kill(stranger, 0); err != nil {
				t.Errorf("the stranger is gone: %v", err)
			}
			want := 2
			if tt.lives {
				want = 3
				defer harness.Signal(t, old, syscall.SIGKILL)
			}
			if engines := node.Engines(); len(engines) != want {
				t.Errorf("engines = %v, want %d; the old one was %d, the new one is %v", engines, want, old.GetPid(), fresh.GetReplicas()[0])
			}
			starts := node.Starts(t, "odd")
			if told := len(starts) == 1 && starts[0].GetExit().GetClass() == tt.class; !told && (tt.class != 0 || len(starts) > 0) {
				t.Errorf("starts = %v, want that of the old engine with %v", starts, tt.class)
			}
		})
	}
}

func identityOf(t *testing.T, record map[string]any) map[string]any {
	t.Helper()
	identity, ok := record["identity"].(map[string]any)
	if !ok {
		t.Fatalf("record without an identity: %v", record)
	}
	return identity
}

func removeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// startStranger starts a process that is none of ours and lives until the end of the test.
func startStranger(t *testing.T) int {
	t.Helper()
	stranger := exec.CommandContext(t.Context(), "sleep", "3600")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stranger.Wait() }) // the test's end kills it
	return stranger.Process.Pid
}

// After a restart of the machine what is to serve comes back by itself, and LAZY pools wait to be asked for. The pids of before
// belong to others now.
func TestReboot(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	spec := func(id string, residency poolv1.Residency) *poolv1.PoolSpec {
		s := node.FakePool(t, id)
		s.Residency = residency
		return s
	}
	ttl := spec("ttl", poolv1.Residency_RESIDENCY_TTL)
	ttl.IdleTimeout = durationpb.New(3600e9)
	for _, s := range []*poolv1.PoolSpec{spec("pinned", poolv1.Residency_RESIDENCY_PINNED), spec("lazy", poolv1.Residency_RESIDENCY_LAZY), ttl, spec("drained", 0)} {
		node.MustPreload(t, s)
	}
	if drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "drained"}); drained.Err != nil {
		t.Fatalf("Drain: %v", drained.Err)
	}
	node.PoolManager.Kill()
	engines := node.Engines()
	for _, p := range engines {
		harness.Signal(t, &poolv1.Replica{Pid: int32(p.PID)}, syscall.SIGKILL)
	}
	harness.AwaitEnd(t, engines)
	node.Reboot(t)
	stranger := startStranger(t)
	for _, name := range node.Records() {
		node.EditRecord(t, "replicas/"+name, func(record map[string]any) { identityOf(t, record)["pid"] = stranger })
	}
	node.StartPoolManager(t)
	want := map[string]poolv1.PoolState{
		"pinned": poolv1.PoolState_POOL_STATE_READY, "ttl": poolv1.PoolState_POOL_STATE_READY,
		"lazy": poolv1.PoolState_POOL_STATE_STOPPED, "drained": poolv1.PoolState_POOL_STATE_STOPPED,
	}
	testkit.Eventually(t, harness.Patience, "what is to serve serves", func() (bool, string) {
		is := map[string]poolv1.PoolState{}
		for id := range want {
			is[id] = node.GetPool(t, id).GetState()
		}
		return fmt.Sprint(is) == fmt.Sprint(want), fmt.Sprint(is)
	})
	if engines := node.Engines(); len(engines) != 2 {
		t.Errorf("engines = %v, want two", engines)
	}
	if err := syscall.Kill(stranger, 0); err != nil {
		t.Errorf("the stranger is gone: %v", err)
	}
	node.MustPreload(t, spec("lazy", poolv1.Residency_RESIDENCY_LAZY))
}

// A node that is drained has no engine more, and says what became of each pool.
func TestDrainNode(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	busy := node.MustPreload(t, node.FakePool(t, "busy", "--fake-hold", "/nonexistent/file"))
	node.MustPreload(t, node.FakePool(t, "idle"))
	stream := harness.NewChat("tiny", 5).Begin(t, busy.GetReplicas()[0].GetEndpoint())
	pools, sum, err := node.DrainNode(t.Context(), &poolv1.DrainNodeRequest{Deadline: durationpb.New(200e6)})
	if err != nil || sum.GetPools() != 2 || sum.GetRequestsCut() != 1 || sum.GetGaveUp() != 0 {
		t.Errorf("DrainNode = %v, %v; want 2 pools and one request cut", sum, err)
	}
	if pools["busy"].GetResult().GetRequestsCut() != 1 || pools["idle"].GetResult().GetForced() {
		t.Errorf("pools = %v, want the busy one alone forced", pools)
	}
	node.AssertNothingRuns(t)
	if _, _, err := stream.Wait(); err == nil {
		t.Error("the stream was not cut")
	}
	node.PoolManager.Kill()
	node.StartPoolManager(t)
	node.AssertNothingRuns(t) // what was drained stays so
}
