// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"os"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// How engines that do not end when told to are ended, with everything that they have started.
func TestDrainOfStubbornEngines(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		flags  []string
		busy   bool // has a request in flight
		killed bool
		forced bool
		cut    uint32
	}{
		{name: "obeys", flags: []string{"--fake-pause", "1ms"}},
		{name: "has children in sessions of their own that ignore TERM", flags: []string{"--fake-forks", "3"}, killed: true},
		{name: "ignores TERM", flags: []string{"--fake-behave", "deaf"}, killed: true},
		{name: "does not tell its requests", flags: []string{"--fake-behave", "secretive"}, forced: true},
		{name: "hangs on TERM with a request", flags: []string{"--fake-hold", "/nonexistent/file"}, busy: true, forced: true, cut: 1},
	}
	node := harness.Start(t, harness.Config{})
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { //nolint:paralleltest // what runs on the node is looked at
			pool := node.MustPreload(t, node.FakePool(t, "stubborn", tt.flags...))
			var stream *harness.Stream
			if tt.busy {
				stream = harness.NewChat("tiny", 10).Begin(t, pool.GetReplicas()[0].GetEndpoint())
			}
			drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "stubborn", Deadline: durationpb.New(300 * time.Millisecond)})
			if drained.Err != nil {
				t.Fatalf("Drain: %v", drained.Err)
			}
			node.AssertNothingRuns(t)
			result := drained.Result
			if result.GetKilled() != tt.killed || result.GetForced() != tt.forced || result.GetRequestsCut() != tt.cut {
				t.Errorf("drain = killed %v, forced %v, cut %d; want %v, %v, %d", result.GetKilled(), result.GetForced(),
					result.GetRequestsCut(), tt.killed, tt.forced, tt.cut)
			}
			if stream != nil {
				if _, _, err := stream.Wait(); err == nil {
					t.Error("the stream was not cut")
				}
			}
			deletePool(t, node, "stubborn")
		})
	}
}

// A drain that gives up at its deadline leaves the pool serving, and the request that it waited for whole.
func TestDrainThatGivesUp(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	release := node.Path("release")
	pool := node.MustPreload(t, node.FakePool(t, "kept", "--fake-hold", release))
	stream := harness.NewChat("tiny", 10).Begin(t, pool.GetReplicas()[0].GetEndpoint())
	drained := node.Drain(t.Context(), &poolv1.DrainRequest{
		PoolId: "kept", Deadline: durationpb.New(200 * time.Millisecond), OnDeadline: poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP,
	})
	if drained.Err != nil || !drained.Result.GetGaveUp() || drained.Result.GetRequestsCut() != 0 {
		t.Errorf("drain = %v, %v; want given up and nothing cut", drained.Result, drained.Err)
	}
	if got := node.GetPool(t, "kept"); got.GetState() != poolv1.PoolState_POOL_STATE_READY || got.GetReplicas()[0].GetEndpoint() == "" {
		t.Errorf("pool = %v, want READY", got)
	}
	if files := node.HandoffFiles(); len(files) != 1 {
		t.Errorf("handoff files = %v, want the one of the pool", files)
	}
	writeFile(t, release)
	if text, _, err := stream.Wait(); err != nil || text != "0 1 2 3 4 5 6 7 8 9 " {
		t.Errorf("stream = %q, %v; want all of it", text, err)
	}
}

// Calls on a pool that is being drained, and what a second drain is told.
func TestWhileDraining(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	release := node.Path("release")
	spec := node.FakePool(t, "going", "--fake-hold", release)
	pool := node.MustPreload(t, spec)
	stream := harness.NewChat("tiny", 3).Begin(t, pool.GetReplicas()[0].GetEndpoint())
	watcher := node.Watch(t, "going")
	request := &poolv1.DrainRequest{PoolId: "going", Deadline: durationpb.New(time.Hour)}
	ended := make(chan harness.Drained, 2)
	for range 2 {
		go func() { ended <- node.Drain(t.Context(), request) }()
	}
	watcher.Until(t, "the pool drains", harness.InState(poolv1.PoolState_POOL_STATE_DRAINING))
	if files := node.HandoffFiles(); len(files) != 0 {
		t.Errorf("handoff files = %v, want none while the pool drains", files)
	}
	harness.Want{Code: codes.FailedPrecondition, Reason: reason.PoolDraining}.
		Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}).Err)
	_, err := node.Pools.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "going"})
	harness.Want{Code: codes.Aborted, Reason: reason.PoolBusy}.Check(t, err)
	writeFile(t, release)
	for range 2 {
		if drained := harness.Await(t, "the end of the call", ended); drained.Err != nil || drained.Result.GetForced() || drained.Result.GetRequestsCut() != 0 {
			t.Errorf("drain = %v, %v; want nothing forced", drained.Result, drained.Err)
		}
	}
	if _, _, err := stream.Wait(); err != nil {
		t.Errorf("the stream was cut: %v", err)
	}
	if again := node.Drain(t.Context(), request); again.Err != nil || again.Result.GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("drain of a pool that is STOPPED = %v, %v", again.Result, again.Err)
	}
}

func writeFile(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
