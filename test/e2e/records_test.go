// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// damages are what can have happened to a record on disk. They are given its text without the room behind it.
func damages() map[string]func([]byte) []byte {
	return map[string]func([]byte) []byte{
		"torn":      func(text []byte) []byte { return append(text[:len(text)/2:len(text)/2], make([]byte, len(text)/2)...) },
		"truncated": func(text []byte) []byte { return text[:len(text)/2] },
		"empty":     func([]byte) []byte { return nil },
		"bit-flipped": func(text []byte) []byte {
			text[bytes.Index(text, []byte(`_at":"20`))+len(`_at":"202`)] ^= 1 // another year, which only the checksum tells
			return text
		},
		"of the future": func(text []byte) []byte {
			return bytes.Replace(text, []byte(`{"schema":2,`), []byte(`{"schema":3,`), 1)
		},
	}
}

// spoil damages a record of the state directory.
func spoil(t *testing.T, node *harness.Node, name string, damage func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(node.State, name)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.TrimRight(text, " \n")
	bad := damage(bytes.Clone(text))
	if bytes.Equal(bad, text) {
		t.Fatalf("record %s is as it was: %s", name, text)
	}
	if err := os.WriteFile(path, bad, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The record of an engine is damaged: it is put aside and reported, the engine, which is nobody's any more, is ended and
// started again, and no other pool is touched.
func TestEngineRecordIsBad(t *testing.T) {
	t.Parallel()
	for name, damage := range damages() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := harness.Start(t, harness.Config{})
			pools := []*poolv1.Pool{node.MustPreload(t, node.FakePool(t, "bad")), node.MustPreload(t, node.FakePool(t, "good"))}
			watcher := node.Watch(t)
			node.PoolManager.Kill()
			spoil(t, node, "replicas/bad-0-g1.json", damage)
			node.StartPoolManager(t)
			ready := watcher.Until(t, "the pool serves with another engine", func(p *poolv1.Pool) bool {
				return p.GetPoolId() == "bad" && readyAt(2)(p)
			})
			if engines := node.Engines(); len(engines) != 2 || ready.GetReplicas()[0].GetPid() == pools[0].GetReplicas()[0].GetPid() {
				t.Errorf("engines = %v, pool = %v; want the old engine gone, and one for each pool", engines, ready)
			}
			assertAdopted(t, node, "good", pools[1].GetReplicas()[0])
			if aside := node.TakeQuarantine(t); len(aside) != 1 {
				t.Errorf("put aside = %v, want the one record", aside)
			}
		})
	}
}

// The record of a pool is damaged: the pool is FAILED and says why, its engine is ended, for nobody knows what it is to be, and
// no other pool is touched.
func TestPoolRecordIsBad(t *testing.T) {
	t.Parallel()
	for name, damage := range damages() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			node := harness.Start(t, harness.Config{})
			spec := node.FakePool(t, "bad")
			node.MustPreload(t, spec)
			good := node.MustPreload(t, node.FakePool(t, "good"))
			node.PoolManager.Kill()
			spoil(t, node, "pools/bad.json", damage)
			node.StartPoolManager(t)
			if got := node.GetPool(t, "bad"); got.GetState() != poolv1.PoolState_POOL_STATE_FAILED || got.GetFailure().GetReason() != reason.RecordUnreadable {
				t.Errorf("pool = %v, want FAILED of RECORD_UNREADABLE", got)
			}
			assertAdopted(t, node, "good", good.GetReplicas()[0])
			if aside := node.TakeQuarantine(t); len(aside) != 1 {
				t.Errorf("put aside = %v, want the one record", aside)
			}
			node.MustPreload(t, spec) // waits for the end of what was left
			if engines := node.Engines(); len(engines) != 2 {
				t.Errorf("engines = %v, want one for each pool", engines)
			}
		})
	}
}

// What is no record among the starts that have ended is left out, and nothing else.
func TestStartRecordIsBad(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	pool := node.MustPreload(t, node.FakePool(t, "known"))
	watcher := node.Watch(t)
	for generation := uint64(2); generation <= 3; generation++ {
		harness.Signal(t, pool.GetReplicas()[0], syscall.SIGKILL)
		pool = watcher.Until(t, "another engine serves", readyAt(generation))
	}
	spoil(t, node, "starts/known/0-g1.json", damages()["truncated"])
	if starts := node.Starts(t, "known"); len(starts) != 1 || starts[0].GetGeneration() != 2 {
		t.Errorf("starts = %v, want the one that can be read", starts)
	}
	if aside := node.TakeQuarantine(t); len(aside) != 1 {
		t.Errorf("put aside = %v, want the one record", aside)
	}
}

// The disk of the state is full when an engine ends: it is started again, for its record takes the place of the old one, and the
// others serve on; what would need more room is refused, and nothing of it runs.
func TestDiskFillsUpMeanwhile(t *testing.T) {
	t.Parallel()
	disk := harness.NewDisk(t, "512k")
	node := harness.New(t, harness.Config{State: disk.Path})
	node.StartProvisioner(t)
	node.StartPoolManager(t)
	spec := node.FakePool(t, "dies")
	spec.Restart = quickRestart()
	dies := node.MustPreload(t, spec).GetReplicas()[0]
	stays := node.MustPreload(t, node.FakePool(t, "stays")).GetReplicas()[0]
	watcher := node.Watch(t)
	mend := fill(t, disk.Path)
	for generation := uint64(2); generation <= 3; generation++ {
		harness.Signal(t, dies, syscall.SIGKILL)
		dies = watcher.Until(t, "another engine serves", func(p *poolv1.Pool) bool {
			return p.GetPoolId() == "dies" && readyAt(generation)(p)
		}).GetReplicas()[0]
	}
	if _, err := harness.NewChat("tiny", 2).Ask(t.Context(), stays.GetEndpoint()); err != nil {
		t.Errorf("the other engine does not serve: %v", err)
	}
	harness.Want{Code: codes.ResourceExhausted, Reason: reason.DiskFull}.
		Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: node.FakePool(t, "more")}).Err)
	if engines := node.Engines(); len(engines) != 2 {
		t.Errorf("engines = %v, want one for each pool", engines)
	}
	node.PoolManager.Kill()
	mend()
	node.StartPoolManager(t)
	assertAdopted(t, node, "stays", stays)
	assertAdopted(t, node, "dies", dies)
	for _, id := range []string{"dies", "stays"} {
		if drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: id}); drained.Err != nil {
			t.Errorf("Drain of %s: %v", id, drained.Err)
		}
	}
}

// Many engines are taken over by the next manager, none is touched, and requests to them go on meanwhile.
func TestManyEnginesAreTakenOver(t *testing.T) {
	t.Parallel()
	const replicas = 50
	node := harness.Start(t, harness.Config{})
	spec := node.FakePool(t, "many")
	spec.Replicas = replicas
	before := node.MustPreload(t, spec)
	traffic := node.Traffic(t, "many", harness.NewChat("tiny", 2), 2)
	traffic.Await(t, 10)
	node.PoolManager.Kill()
	traffic.Await(t, 10) // Who knows the endpoints needs no manager.
	node.StartPoolManager(t)
	after := node.GetPool(t, "many")
	traffic.Await(t, 10)
	if asked, failures := traffic.Stop(); len(failures) > 0 {
		t.Errorf("%d of %d requests failed: %v", len(failures), asked, failures[0])
	}
	if after.GetState() != poolv1.PoolState_POOL_STATE_READY {
		t.Fatalf("pool = %v, want READY", after)
	}
	for i, was := range before.GetReplicas() {
		if is := after.GetReplicas()[i]; is.GetPid() != was.GetPid() || !is.GetAdopted() {
			t.Errorf("replica = %v, want the engine that was there: %v", is, was)
		}
	}
	if files := node.HandoffFiles(); len(files) != replicas {
		t.Errorf("%d handoff files, want %s", len(files), strconv.Itoa(replicas))
	}
	if got := fmt.Sprint(node.PoolRecords()); got != "[many]" {
		t.Errorf("records of pools = %s", got)
	}
}
