// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// allPhases are those of a load, in order.
func allPhases() []poolv1.LoadPhase {
	return []poolv1.LoadPhase{
		poolv1.LoadPhase_LOAD_PHASE_PREPARING, poolv1.LoadPhase_LOAD_PHASE_STARTING, poolv1.LoadPhase_LOAD_PHASE_LOADING,
		poolv1.LoadPhase_LOAD_PHASE_VERIFYING,
	}
}

// Equal Preloads at once are one: one engine, and everybody sees the whole story, whenever they came.
func TestEqualPreloadsAreOne(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	loaded := node.Path("loaded")
	request := &poolv1.PreloadRequest{Spec: node.FakePool(t, "one", "--fake-load-until", loaded)}
	watcher := node.Watch(t, "one")
	loads := make(chan harness.Load)
	begin := func() { loads <- node.Preload(t.Context(), request) }
	for range 3 {
		go begin()
	}
	watcher.Until(t, "the engine loads", harness.InPhase(poolv1.LoadPhase_LOAD_PHASE_LOADING))
	go begin() // late
	other := node.FakePool(t, "one")
	harness.Want{Code: codes.Aborted, Reason: reason.PoolBusy}.Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: other}).Err)
	if engines := node.Engines(); len(engines) != 1 {
		t.Errorf("engines = %v, want one", engines)
	}
	writeFile(t, loaded)
	var first *poolv1.Pool
	for range 4 {
		load := harness.Await(t, "the end of a Preload", loads)
		if load.Err != nil {
			t.Fatalf("Preload: %v", load.Err)
		}
		if diff := cmp.Diff(allPhases(), load.Phases); diff != "" {
			t.Errorf("phases (-want +got):\n%s", diff)
		}
		if len(load.Progress.Steps) == 0 {
			t.Error("a caller saw nothing of what was prepared")
		}
		if first == nil {
			first = load.Pool
		}
		if got := load.Pool.GetReplicas()[0]; got.GetPid() != first.GetReplicas()[0].GetPid() || got.GetGeneration() != 1 {
			t.Errorf("replica = %v, want that of %v", got, first)
		}
	}
	again := node.Preload(t.Context(), request)
	if again.Err != nil || again.Pool.GetReplicas()[0].GetPid() != first.GetReplicas()[0].GetPid() {
		t.Errorf("Preload of a pool that is READY = %v, %v; want the pool as it is", again.Pool, again.Err)
	}
	harness.Want{Code: codes.AlreadyExists, Reason: reason.PoolExists, Field: "spec"}.
		Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: other}).Err)
}

// A caller who goes away does not stop the work.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	loaded := node.Path("loaded")
	watcher := node.Watch(t)
	caller, leave := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- node.Preload(caller, &poolv1.PreloadRequest{Spec: node.FakePool(t, "alone", "--fake-load-until", loaded)}).Err
	}()
	watcher.Until(t, "the engine loads", harness.InPhase(poolv1.LoadPhase_LOAD_PHASE_LOADING))
	leave()
	if err := harness.Await(t, "the end of the call", ended); reason.Of(err) != reason.Cancelled {
		t.Errorf("Preload = %v, want the end of the caller's context", err)
	}
	writeFile(t, loaded)
	pool := watcher.Until(t, "the pool is READY", harness.InState(poolv1.PoolState_POOL_STATE_READY))
	answer, err := harness.NewChat("tiny", 3).Ask(t.Context(), pool.GetReplicas()[0].GetEndpoint())
	if err != nil || answer.Choices[0].Message.Content != "0 1 2 " {
		t.Errorf("answer = %v, %v", answer, err)
	}
}

// Cancelling, or draining, a Preload while its engine loads leaves nothing.
func TestPreloadIsCancelled(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		flags  []string
		cancel func(context.Context, *harness.Node) error
		stays  bool // as a pool that is STOPPED
	}{
		{name: "by CancelPreload", cancel: cancelPreload},
		{name: "by CancelPreload, an engine that ignores TERM and has children",
			flags: []string{"--fake-behave", "deaf", "--fake-forks", "2"}, cancel: cancelPreload},
		{name: "by Drain", stays: true, cancel: func(ctx context.Context, node *harness.Node) error {
			return node.Drain(ctx, &poolv1.DrainRequest{PoolId: "brief"}).Err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			node := harness.Start(t, harness.Config{})
			watcher := node.Watch(t)
			flags := append([]string{"--fake-load-until", "/nonexistent/file"}, tt.flags...)
			ended := make(chan error)
			go func() {
				ended <- node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: node.FakePool(t, "brief", flags...)}).Err
			}()
			watcher.Until(t, "the engine loads", harness.InPhase(poolv1.LoadPhase_LOAD_PHASE_LOADING))
			if err := tt.cancel(t.Context(), node); err != nil {
				t.Errorf("cancel: %v", err)
			}
			node.AssertNothingRuns(t)
			harness.Want{Code: codes.Canceled, Reason: reason.Cancelled}.Check(t, harness.Await(t, "the end of the call", ended))
			if tt.stays {
				watcher.Until(t, "the pool is STOPPED", harness.InState(poolv1.PoolState_POOL_STATE_STOPPED))
				deletePool(t, node, "brief")
			}
			watcher.UntilDeleted(t, "brief")
			_, err := node.Pools.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "brief"})
			harness.Want{Code: codes.NotFound, Reason: reason.PoolNotFound, Field: "pool_id"}.Check(t, err)
		})
	}
}

func cancelPreload(ctx context.Context, node *harness.Node) error {
	answer, err := node.Pools.CancelPreload(ctx, &poolv1.CancelPreloadRequest{PoolId: "brief"})
	if err == nil && !answer.GetCancelled() {
		return reason.New(reason.Internal, "nothing was cancelled")
	}
	return err
}

// Preload of something that was prepared before, and what a request id promises.
func TestPreloadByID(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	prepared := node.MustPrepare(t, node.FakeEngine(t))
	byID := func(pool, id string) *poolv1.PoolSpec {
		return &poolv1.PoolSpec{PoolId: pool, Workload: &poolv1.PoolSpec_PreparedId{PreparedId: id}, Replicas: 2}
	}
	pool := node.MustPreload(t, byID("ready-made", prepared.GetPreparedId()))
	if pool.GetPreparedId() != prepared.GetPreparedId() || len(pool.GetReplicas()) != 2 ||
		pool.GetReplicas()[0].GetEndpoint() == pool.GetReplicas()[1].GetEndpoint() {
		t.Errorf("pool = %v, want two replicas of %s at two endpoints", pool, prepared.GetPreparedId())
	}
	answer, err := node.Pools.CancelPreload(t.Context(), &poolv1.CancelPreloadRequest{PoolId: "ready-made"})
	if err != nil || answer.GetCancelled() {
		t.Errorf("CancelPreload of a pool that is READY = %v, %v; want nothing cancelled", answer, err)
	}
	unknown := byID("unknown", "sha256:"+strings.Repeat("0", 64))
	harness.Want{Code: codes.NotFound, Reason: reason.PreparedNotFound, Field: "spec.prepared_id"}.
		Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: unknown}).Err)

	broken := &poolv1.PreloadRequest{Spec: node.FakePool(t, "once", "--fake-exit", "4"), RequestId: "a"}
	want := harness.Want{Code: codes.FailedPrecondition, Reason: reason.WorkerStartFailed}
	for range 2 {
		want.Check(t, node.Preload(t.Context(), broken).Err)
	}
	if got := node.GetPool(t, "once").GetReplicas()[0].GetGeneration(); got != 1 {
		t.Errorf("the same request id has started %d engines, want 1", got)
	}
	broken.RequestId = "b"
	want.Check(t, node.Preload(t.Context(), broken).Err)
	if got := node.GetPool(t, "once").GetReplicas()[0].GetGeneration(); got != 2 {
		t.Errorf("another request id has made %d starts, want 2", got)
	}
}
