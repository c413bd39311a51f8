// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"os"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// fate is what becomes of a pool whose manager was killed.
type fate string

const (
	forgotten fate = "forgotten"      // there is no such pool, and nothing of it runs
	keeps     fate = "keeps"          // the engine that it had serves on
	switches  fate = "switches"       // the engine that was to take over serves
	renews    fate = "renews"         // another engine serves, since there was none
	stops     fate = "stops"          // it is STOPPED, and nothing of it runs
	undecided fate = "either of both" // forgotten or keeps, unless the caller was told that it is READY: then it keeps
)

// crash is a moment at which pool-managerd is killed as by kill -9, the story that comes to it, and what the next one has to
// make of it.
type crash struct {
	at    failpoint.Name
	story func(*testing.T, *harness.Node, crash) wreck
	want  fate
	// busy stories have a request in flight when the manager dies, which must not be cut.
	busy bool
	// starts is how many engines have ended by then, or end since their pool does not need them; each must be on record once.
	starts int
}

// wreck is what a dead manager has left.
type wreck struct {
	engine, successor int32 // processes
	stream            *harness.Stream
	// again does what the manager died of once more, and must succeed.
	again func(*testing.T, *harness.Node)
	// told is true if its caller was told of success all the same.
	told bool
}

// crashes are all moments but those of any record, which TestKilledAtEachRecord goes through.
func crashes() []crash {
	return []crash{
		{at: failpoint.PreloadPrepared, story: preloading, want: forgotten},
		{at: failpoint.StartIntended, story: preloading, want: forgotten},
		{at: failpoint.StartSpawned, story: preloading, want: forgotten},
		{at: failpoint.StartRecorded, story: preloading, want: forgotten},
		{at: failpoint.StartProven, story: preloading, want: forgotten},
		{at: failpoint.StartOffered, story: preloading, want: forgotten},
		{at: failpoint.StartReady, story: preloading, want: undecided},
		{at: failpoint.PreloadReady, story: preloading, want: forgotten},
		{at: failpoint.PreloadCommitted, story: preloading, want: keeps},

		{at: failpoint.DrainWithdrawn, story: draining, want: keeps, busy: true},
		{at: failpoint.DrainIdle, story: draining, want: keeps},
		{at: failpoint.DrainUnwanted, story: draining, want: stops, starts: 1},
		{at: failpoint.StopEnded, story: draining, want: stops, starts: 1},
		{at: failpoint.StopNoted, story: draining, want: stops, starts: 1},
		{at: failpoint.StopCleared, story: draining, want: stops, starts: 1},
		{at: failpoint.DrainStopped, story: draining, want: stops, starts: 1},
		{at: failpoint.StopNoted, story: shuttingDown, want: renews, starts: 1},

		{at: failpoint.ReloadPrepared, story: reloading, want: keeps, busy: true},
		{at: failpoint.ReloadStarted, story: reloading, want: keeps, busy: true, starts: 1},
		{at: failpoint.ReloadProven, story: reloading, want: keeps, busy: true, starts: 1},
		{at: failpoint.ReloadCommitted, story: reloading, want: switches, busy: true, starts: 1},
		{at: failpoint.ReloadSwitched, story: reloading, want: switches, busy: true, starts: 1},
		{at: failpoint.ReloadOffered, story: reloading, want: switches, busy: true, starts: 1},
		{at: failpoint.ReloadDrained, story: reloading, want: switches, starts: 1},
		{at: failpoint.ReloadRetired, story: reloading, want: switches, starts: 1},
		{at: failpoint.ReloadOldStopped, story: reloadingWithOutage, want: renews, starts: 1},
		{at: failpoint.ReloadRollingBack, story: reloadingWithOutage, want: renews, starts: 2},

		{at: failpoint.RestartBuried, story: restarting, want: renews, starts: 1},
		{at: failpoint.RestartDecided, story: restarting, want: renews, starts: 1},

		{at: failpoint.RestoreLoaded, story: restoring, want: keeps, busy: true},
		{at: failpoint.AdoptAttached, story: restoring, want: keeps, busy: true},
		{at: failpoint.AdoptProven, story: restoring, want: keeps, busy: true},
		{at: failpoint.RestoreAdopted, story: restoring, want: keeps, busy: true},
		{at: failpoint.LeftoverEnded, story: endingLeftovers, want: forgotten},
		{at: failpoint.RestoreUnloaded, story: restoringAfterReboot, want: stops, starts: 1},

		{at: failpoint.DeleteRemoved, story: deleting, want: forgotten},
		{at: failpoint.DeleteForgotten, story: deleting, want: forgotten},
	}
}

// A pool manager that is killed at any step of anything leaves what the next one makes whole: no engine is lost, doubled or
// forgotten, one that serves serves on, and what was cut short can be done again.
func TestKilledAtEachFailpoint(t *testing.T) {
	t.Parallel()
	for _, c := range crashes() {
		t.Run(string(c.at)+"/"+string(c.want), func(t *testing.T) {
			t.Parallel()
			node := harness.New(t, harness.Config{})
			node.StartProvisioner(t)
			left := c.story(t, node, c)
			if c.want == switches { // The engine that is replaced is ended by the next manager, and told to by none before.
				endStream(t, node, left)
			}
			node.StartPoolManager(t)
			is := awaitFate(t, node, c.want, left)
			if c.want != switches {
				endStream(t, node, left)
			}
			if is != nil {
				askPool(t, is)
				assertStarts(t, node, c.starts)
			}
			left.again(t, node)
		})
	}
}

// endStream lets the request in flight end, which must not have been cut.
func endStream(t *testing.T, node *harness.Node, left wreck) {
	t.Helper()
	writeFile(t, node.Path("release"))
	if left.stream == nil {
		return
	}
	if text, _, err := left.stream.Wait(); err != nil || text != "0 1 2 3 4 " {
		t.Errorf("stream = %q, %v; want all of it", text, err)
	}
}

// awaitFate waits until a pool has met its fate, and returns it; nil if it is forgotten. Engines, their records and their
// handoff files are then one each if it serves, and none if not.
func awaitFate(t *testing.T, node *harness.Node, want fate, left wreck) *poolv1.Pool {
	t.Helper()
	var pool *poolv1.Pool
	testkit.Eventually(t, harness.Patience, "the pool is as it should: "+string(want), func() (bool, string) {
		answer, err := node.Pools.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "wrecked"})
		if err != nil && status.Code(err) != codes.NotFound {
			return false, err.Error()
		}
		pool = answer.GetPool()
		engines, records, files := node.Engines(), node.Records(), node.HandoffFiles()
		whole := len(engines) == 0
		if pool.GetState() == poolv1.PoolState_POOL_STATE_READY {
			whole = len(engines) == 1 && engines[0].PID == int(pool.GetReplicas()[0].GetPid())
		}
		return meets(pool, want, left) && whole && len(records) == len(engines) && len(files) == len(engines),
			fmt.Sprintf("pool %v, %v, engines %v, records %v, handoff files %v", pool, err, engines, records, files)
	})
	return pool
}

func meets(pool *poolv1.Pool, want fate, left wreck) bool {
	ready, pid := pool.GetState() == poolv1.PoolState_POOL_STATE_READY, int32(0)
	if ready {
		pid = pool.GetReplicas()[0].GetPid()
	}
	switch want {
	case forgotten:
		return pool == nil
	case keeps:
		return ready && pid == left.engine
	case switches:
		return ready && pid == left.successor
	case renews:
		return ready && pid != left.engine && pid != left.successor
	case stops:
		return pool.GetState() == poolv1.PoolState_POOL_STATE_STOPPED
	case undecided:
		return ready && pid == left.engine || pool == nil && !left.told
	}
	return false
}

func askPool(t *testing.T, pool *poolv1.Pool) {
	t.Helper()
	if pool.GetState() != poolv1.PoolState_POOL_STATE_READY {
		return
	}
	if answer, err := harness.NewChat("tiny", 2).Ask(t.Context(), pool.GetReplicas()[0].GetEndpoint()); err != nil || answer.Choices[0].Message.Content != "0 1 " {
		t.Errorf("answer = %v, %v", answer, err)
	}
}

// assertStarts demands that the end of each engine is on record once.
func assertStarts(t *testing.T, node *harness.Node, want int) {
	t.Helper()
	starts := node.Starts(t, "wrecked")
	seen := map[uint64]bool{}
	for _, start := range starts {
		seen[start.GetGeneration()] = true
	}
	if len(starts) != want || len(seen) != want {
		t.Errorf("starts = %v, want %d", starts, want)
	}
}

// wreckedPool is the pool of all stories. Its engine holds requests until they are released.
func wreckedPool(t *testing.T, node *harness.Node) *poolv1.PoolSpec {
	t.Helper()
	return node.FakePool(t, "wrecked", "--fake-hold", node.Path("release"))
}

// readyPool starts a manager that dies at the moment of the crash and has it load the pool, with a request if the crash is busy.
func readyPool(t *testing.T, node *harness.Node, c crash) wreck {
	t.Helper()
	node.RunFailing(t, c.at, 1)
	node.AwaitPoolManager(t)
	return loadPool(t, node, c)
}

func loadPool(t *testing.T, node *harness.Node, c crash) wreck {
	t.Helper()
	replica := node.MustPreload(t, wreckedPool(t, node)).GetReplicas()[0]
	left := wreck{engine: replica.GetPid()}
	if c.busy {
		left.stream = harness.NewChat("tiny", 5).Begin(t, replica.GetEndpoint())
	}
	return left
}

func preloading(t *testing.T, node *harness.Node, c crash) wreck {
	node.RunFailing(t, c.at, 1)
	node.AwaitPoolManager(t)
	spec := wreckedPool(t, node)
	load := node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec})
	node.AwaitFailpoint(t, c.at)
	left := wreck{told: load.Err == nil, again: func(t *testing.T, node *harness.Node) {
		node.MustPreload(t, spec)
		drainWrecked(t, node)
	}}
	if engines := node.Engines(); len(engines) > 0 {
		left.engine = int32(engines[0].PID)
	}
	return left
}

func draining(t *testing.T, node *harness.Node, c crash) wreck {
	left := readyPool(t, node, c)
	if drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "wrecked"}); drained.Err == nil {
		t.Errorf("Drain = %v, want it cut short", drained.Result)
	}
	node.AwaitFailpoint(t, c.at)
	left.again = drainWrecked
	return left
}

func drainWrecked(t *testing.T, node *harness.Node) {
	t.Helper()
	drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "wrecked"})
	if drained.Err != nil || drained.Result.GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("Drain = %v, %v; want the pool STOPPED", drained.Result, drained.Err)
	}
	node.AssertNothingRuns(t)
	// All generations so far, also those that the pool has had under managers that died.
	assertStarts(t, node, int(node.GetPool(t, "wrecked").GetReplicas()[0].GetGeneration()))
}

func shuttingDown(t *testing.T, node *harness.Node, c crash) wreck {
	left := readyPool(t, node, c)
	node.PoolManager.Stop(t)
	node.AwaitFailpoint(t, c.at)
	left.again = func(t *testing.T, node *harness.Node) {
		if code := node.PoolManager.Stop(t); code != 0 {
			t.Errorf("exit code = %d, want 0", code)
		}
		node.AssertNothingRuns(t)
	}
	return left
}

// changed is what the wrecked pool is reloaded to.
func changed(t *testing.T, node *harness.Node, flags ...string) *poolv1.PoolSpec {
	t.Helper()
	return node.FakePool(t, "wrecked", append([]string{"--fake-pause", "2ms"}, flags...)...)
}

func reloading(t *testing.T, node *harness.Node, c crash) wreck {
	left := readyPool(t, node, c)
	request := &poolv1.ReloadRequest{Spec: changed(t, node), Proof: &poolv1.ReloadProof{Prompt: "Hi", Contains: "0"}}
	if reloaded := node.Reload(t.Context(), request); reloaded.Err == nil {
		t.Errorf("Reload = %v, want it cut short", reloaded.Result)
	}
	node.AwaitFailpoint(t, c.at)
	for _, engine := range node.Engines() {
		if int32(engine.PID) != left.engine {
			left.successor = int32(engine.PID)
		}
	}
	left.again = func(t *testing.T, node *harness.Node) { reloadWrecked(t, node, request) }
	return left
}

func reloadWrecked(t *testing.T, node *harness.Node, request *poolv1.ReloadRequest) {
	t.Helper()
	if again := node.Reload(t.Context(), request); again.Err != nil || again.Result.GetPool().GetState() != poolv1.PoolState_POOL_STATE_READY {
		t.Errorf("Reload = %v, %v; want the pool READY", again.Result, again.Err)
	}
	if engines := node.Engines(); len(engines) != 1 {
		t.Errorf("engines = %v, want one", engines)
	}
}

// reloadingWithOutage ends the old engine first. The new one fails.
func reloadingWithOutage(t *testing.T, node *harness.Node, c crash) wreck {
	left := readyPool(t, node, c)
	request := &poolv1.ReloadRequest{Spec: changed(t, node, "--fake-exit", "4"), AcceptOutage: true}
	if reloaded := node.Reload(t.Context(), request); reloaded.Err == nil {
		t.Errorf("Reload = %v, want it cut short", reloaded.Result)
	}
	node.AwaitFailpoint(t, c.at)
	left.again = func(t *testing.T, node *harness.Node) {
		reloadWrecked(t, node, &poolv1.ReloadRequest{Spec: changed(t, node), AcceptOutage: true})
	}
	return left
}

// restarting kills the engine.
func restarting(t *testing.T, node *harness.Node, c crash) wreck {
	left := readyPool(t, node, c)
	killProcess(t, left.engine)
	node.AwaitFailpoint(t, c.at)
	left.again = func(t *testing.T, node *harness.Node) {
		watcher := node.Watch(t, "wrecked")
		before := node.GetPool(t, "wrecked").GetReplicas()[0]
		killProcess(t, before.GetPid())
		watcher.Until(t, "another engine serves", func(p *poolv1.Pool) bool {
			return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetGeneration() > before.GetGeneration()
		})
	}
	return left
}

func killProcess(t *testing.T, pid int32) {
	t.Helper()
	process, err := os.FindProcess(int(pid))
	if err == nil {
		err = process.Kill()
	}
	if err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

func restoring(t *testing.T, node *harness.Node, c crash) wreck {
	node.StartPoolManager(t)
	left := loadPool(t, node, c)
	node.PoolManager.Kill()
	node.RunFailing(t, c.at, 1)
	node.AwaitFailpoint(t, c.at)
	left.again = func(t *testing.T, node *harness.Node) {
		node.PoolManager.Kill()
		node.StartPoolManager(t)
		awaitFate(t, node, keeps, left)
		drainWrecked(t, node)
	}
	return left
}

// endingLeftovers has two managers die: one that loads, and the next, which ends what that has left.
func endingLeftovers(t *testing.T, node *harness.Node, c crash) wreck {
	left := preloading(t, node, crash{at: failpoint.PreloadReady})
	node.RunFailing(t, c.at, 1)
	node.AwaitFailpoint(t, c.at)
	return left
}

// restoringAfterReboot has a pool that does not come back by itself.
func restoringAfterReboot(t *testing.T, node *harness.Node, c crash) wreck {
	node.StartPoolManager(t)
	spec := wreckedPool(t, node)
	spec.Residency = poolv1.Residency_RESIDENCY_LAZY
	left := wreck{engine: node.MustPreload(t, spec).GetReplicas()[0].GetPid()}
	node.PoolManager.Kill()
	engines := node.Engines()
	killProcess(t, left.engine)
	harness.AwaitEnd(t, engines)
	node.Reboot(t)
	node.RunFailing(t, c.at, 1)
	node.AwaitFailpoint(t, c.at)
	left.again = func(t *testing.T, node *harness.Node) { node.MustPreload(t, spec) }
	return left
}

func deleting(t *testing.T, node *harness.Node, c crash) wreck {
	left := readyPool(t, node, c)
	drainWrecked(t, node)
	if _, err := node.Pools.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "wrecked"}); err == nil {
		t.Error("DeletePool was not cut short")
	}
	node.AwaitFailpoint(t, c.at)
	left.again = func(t *testing.T, node *harness.Node) {
		_, err := node.Pools.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "wrecked"})
		harness.Want{Code: codes.NotFound, Reason: reason.PoolNotFound}.Check(t, err)
		node.MustPreload(t, wreckedPool(t, node))
		drainWrecked(t, node)
		deletePool(t, node, "wrecked")
	}
	return left
}
