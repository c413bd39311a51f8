// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// recordMoments are those that come with each record.
func recordMoments() []failpoint.Name {
	return []failpoint.Name{failpoint.RecordWritten, failpoint.RecordPlaced, failpoint.RecordTaken}
}

// most is more than the records that the life of a pool writes, or removes.
const most = 20

// A pool manager that is killed while it writes, or removes, any of the records of a pool's life, from its load to its end, has
// done what it said it has, and the next one finds a whole pool or none.
func TestKilledAtEachRecord(t *testing.T) {
	t.Parallel()
	for _, at := range recordMoments() {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			node := harness.New(t, harness.Config{})
			node.StartProvisioner(t)
			killedAtFirst(t, node, at)
			for nth := 1; ; nth++ {
				if nth > most {
					t.Fatalf("the manager was killed %d times", nth-1)
				}
				if !killedInLife(t, node, at, nth) {
					if nth < 3 {
						t.Errorf("the manager came to %s %d times, want more", at, nth-1)
					}
					return
				}
			}
		})
	}
}

// killedAtFirst has a manager be killed while it writes the first record of all, which is its own id, and the next one start.
func killedAtFirst(t *testing.T, node *harness.Node, at failpoint.Name) {
	t.Helper()
	if at != failpoint.RecordTaken { // No record is removed at a start.
		node.RunFailing(t, at, 1)
		node.AwaitFailpoint(t, at)
	}
	node.StartPoolManager(t)
	if code := node.PoolManager.Stop(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
}

// killedInLife has a manager live through the life of a pool, be killed at the nth record, and the next one make it whole. It
// says whether the manager was killed.
func killedInLife(t *testing.T, node *harness.Node, at failpoint.Name, nth int) bool {
	t.Helper()
	node.RunFailing(t, at, nth)
	node.AwaitPoolManager(t)
	said := life(t, node)
	if said.deleted && node.PoolManager.Stop(t) == 0 {
		return false
	}
	node.AwaitFailpoint(t, at)
	t.Logf("killed at %s %d, after %+v", at, nth, said)
	node.StartPoolManager(t)
	testkit.Eventually(t, harness.Patience, fmt.Sprintf("what was said before %s %d holds: %+v", at, nth, said), func() (bool, string) {
		return said.holds(t, node)
	})
	if again := life(t, node); !again.deleted {
		t.Fatalf("after %s %d the life of a pool came to %+v, want its end", at, nth, again)
	}
	if code := node.PoolManager.Stop(t); code != 0 {
		t.Errorf("exit code = %d, want 0", code)
	}
	return true
}

// said is what a manager has told.
type said struct {
	pid                     int32 // of the engine, once ready
	ready, drained, deleted bool
}

// life loads, drains and deletes a pool, until it is told of an error.
func life(t *testing.T, node *harness.Node) said {
	t.Helper()
	var s said
	load := node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: node.FakePool(t, "wrecked")})
	if load.Err != nil {
		return s
	}
	s.ready, s.pid = true, load.Pool.GetReplicas()[0].GetPid()
	if drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "wrecked"}); drained.Err != nil {
		return s
	}
	s.drained = true
	_, err := node.Pools.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "wrecked"})
	s.deleted = err == nil
	return s
}

// holds tells whether the pool is as was said, or as it was about to be.
func (s said) holds(t *testing.T, node *harness.Node) (bool, string) {
	t.Helper()
	list, err := node.Pools.ListPools(t.Context(), &poolv1.ListPoolsRequest{})
	if err != nil {
		return false, err.Error()
	}
	var pool *poolv1.Pool
	if pools := list.GetPools(); len(pools) > 0 {
		pool = pools[0]
	}
	engines, records, files := node.Engines(), node.Records(), node.HandoffFiles()
	told := fmt.Sprintf("pool %v, engines %v, records %v, handoff files %v", pool, engines, records, files)
	if len(records) != len(engines) || len(files) != len(engines) {
		return false, told
	}
	switch {
	case pool == nil:
		return (!s.ready || s.drained) && len(engines) == 0, told
	case pool.GetState() == poolv1.PoolState_POOL_STATE_READY:
		pid := pool.GetReplicas()[0].GetPid()
		return !s.drained && (!s.ready || pid == s.pid) && len(engines) == 1 && engines[0].PID == int(pid), told
	case pool.GetState() == poolv1.PoolState_POOL_STATE_STOPPED:
		return s.ready && !s.deleted && len(engines) == 0, told
	}
	return false, told
}

// Each failpoint is in one place of the pool manager, and gone through by a test.
func TestFailpointsAreUsed(t *testing.T) {
	t.Parallel()
	use := regexp.MustCompile(`failpoint\.Hit\(failpoint\.(\w+)\)`)
	var used []string
	err := filepath.WalkDir(filepath.Join(testkit.RepoRoot(t), "services"), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, match := range use.FindAllSubmatch(text, -1) {
			used = append(used, dashed(string(match[1])))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all, tested []string
	for _, name := range failpoint.All() {
		all = append(all, string(name))
	}
	for _, name := range recordMoments() {
		tested = append(tested, string(name))
	}
	for _, c := range crashes() {
		tested = append(tested, string(c.at))
	}
	slices.Sort(all)
	slices.Sort(used)
	slices.Sort(tested)
	if diff := cmp.Diff(all, used); diff != "" {
		t.Errorf("failpoints in the code (-all +used):\n%s", diff)
	}
	if diff := cmp.Diff(all, slices.Compact(tested)); diff != "" {
		t.Errorf("failpoints with a test (-all +tested):\n%s", diff)
	}
}

// dashed is the value of a constant with this name: start-ready of StartReady.
func dashed(name string) string {
	words := regexp.MustCompile(`[A-Z][a-z]*`).FindAllString(name, -1)
	return strings.ToLower(strings.Join(words, "-"))
}
