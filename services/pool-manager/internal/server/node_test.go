// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// drainNode returns what is told of each pool, by id, the sum, and the error that it ends with.
func (n *node) drainNode(t *testing.T, request *poolv1.DrainNodeRequest) (map[string]*poolv1.PoolDrained, *poolv1.DrainNodeResult, error) {
	t.Helper()
	stream, err := n.DrainNode(t.Context(), request)
	messages, err := all(t, stream, err)
	pools := make(map[string]*poolv1.PoolDrained)
	for i, m := range messages {
		if result := m.GetResult(); result != nil {
			if i != len(messages)-1 || err != nil {
				t.Errorf("the sum comes as message %d of %d, which end with %v", i+1, len(messages), err)
			}
			return pools, result, err
		}
		if id := m.GetPool().GetPoolId(); pools[id] != nil {
			t.Errorf("pool %s is told of twice", id)
		}
		pools[m.GetPool().GetPoolId()] = m.GetPool()
	}
	if err == nil {
		t.Errorf("DrainNode(%v) ended well without a sum", request)
	}
	return pools, nil, err
}

func TestDrainNode(t *testing.T) {
	t.Parallel()
	const giveUp = poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP
	for _, tt := range []struct {
		name     string
		inFlight int
		request  *poolv1.DrainNodeRequest
		want     *poolv1.DrainNodeResult
		each     *poolv1.DrainResult
	}{
		{"idle", 0, &poolv1.DrainNodeRequest{}, &poolv1.DrainNodeResult{Pools: 3}, &poolv1.DrainResult{}},
		{
			"busy, one at a time", 2, &poolv1.DrainNodeRequest{Deadline: durationpb.New(0), Parallel: 1},
			&poolv1.DrainNodeResult{Pools: 3, RequestsCut: 6}, &poolv1.DrainResult{Forced: true, RequestsCut: 2},
		},
		{
			"busy, giving up", 1, &poolv1.DrainNodeRequest{Deadline: durationpb.New(time.Millisecond), OnDeadline: giveUp},
			&poolv1.DrainNodeResult{Pools: 3, GaveUp: 3}, &poolv1.DrainResult{GaveUp: true},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, Config{})
			for _, id := range []string{"a", "b", "c"} {
				n.mustPreload(t, validSpec(id))
			}
			n.be(func() { n.inFlight = tt.inFlight })
			pools, sum, err := n.drainNode(t, tt.request)
			if diff := cmp.Diff(tt.want, sum, protocmp.Transform(), protocmp.IgnoreFields(sum, "duration")); diff != "" || err != nil {
				t.Errorf("sum: %v (-want +got):\n%s", err, diff)
			}
			if len(pools) != 3 || sum.GetDuration() == nil {
				t.Errorf("%d pools in %v, want 3", len(pools), sum.GetDuration())
			}
			for id, one := range pools {
				result := one.GetResult()
				if diff := cmp.Diff(tt.each, result, protocmp.Transform(), protocmp.IgnoreFields(result, "duration", "pool")); diff != "" {
					t.Errorf("pool %s (-want +got):\n%s", id, diff)
				}
				if one.GetFailure() != nil || result.GetPool().GetPoolId() != id {
					t.Errorf("pool %s: %v", id, one)
				}
			}
		})
	}
	t.Run("empty", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, Config{})
		if pools, sum, err := n.drainNode(t, &poolv1.DrainNodeRequest{}); err != nil || len(pools) != 0 || sum.GetPools() != 0 {
			t.Errorf("DrainNode = %v, %v, %v", pools, sum, err)
		}
	})
}

// An absent deadline means 30 s here too.
func TestDrainNodeThatWaits(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.mustPreload(t, validSpec("a"))
	n.be(func() { n.inFlight = 1 })
	stream, err := n.DrainNode(t.Context(), &poolv1.DrainNodeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	attached, err := n.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "a", Deadline: durationpb.New(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	watch := n.watch(t, "", "a")
	for watch.next(t) != "+a DRAINING" {
	}
	message, err := attached.Recv()
	if left := message.GetProgress().GetRemaining().AsDuration(); err != nil || left <= 0 {
		t.Errorf("the drain is at %v, %v, want it to wait", message, err)
	}
	n.be(func() { n.inFlight = 0 })
	messages, err := all(t, stream, nil)
	if err != nil || messages[len(messages)-1].GetResult().GetRequestsCut() != 0 {
		t.Errorf("DrainNode: %v, %v, want that it has waited", messages, err)
	}
	if _, err := all(t, attached, nil); err != nil {
		t.Errorf("Drain: %v", err)
	}
}

func TestDrainNodeWithAPoolThatFails(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.mustPreload(t, validSpec("a"))
	n.mustPreload(t, validSpec("b"))
	n.be(func() { n.stubborn = "a-0" })
	pools, _, err := n.drainNode(t, &poolv1.DrainNodeRequest{})
	if typed := typedError(t, err, reason.StopFailed); typed.Remedy == "" || !strings.Contains(typed.Message, "a") {
		t.Errorf("error is %+v, want the pool and a remedy", typed)
	}
	a, b := pools["a"], pools["b"]
	if a.GetResult() != nil || a.GetFailure().GetReason() != enginev1.Reason_REASON_STOP_FAILED || a.GetFailure().GetAt() == nil ||
		!strings.Contains(a.GetFailure().GetMessage(), "it hangs in the kernel") {
		t.Errorf("pool a: %v, want its failure alone", a)
	}
	if b.GetFailure() != nil || b.GetResult().GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("pool b: %v, want it STOPPED", b)
	}
	n.be(func() { n.stubborn = "" })
	if pools, sum, err := n.drainNode(t, &poolv1.DrainNodeRequest{}); err != nil || sum.GetPools() != 2 || pools["a"].GetFailure() != nil {
		t.Errorf("DrainNode again = %v, %v, %v", pools, sum, err)
	}
}

func TestListStarts(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.mustPreload(t, validSpec("a"))
	got, err := n.ListStarts(t.Context(), &poolv1.ListStartsRequest{PoolId: "a"})
	want := &poolv1.ListStartsResponse{Starts: []*poolv1.Start{
		{
			ReplicaId: "a-1", Generation: 3, PreparedId: "prepared", Pid: 7, StartedBy: "restart", EndedBy: "hung",
			Started: &timestamppb.Timestamp{Seconds: 1}, Ready: &timestamppb.Timestamp{Seconds: 2},
			Exit: &poolv1.Exit{
				Class: enginev1.ExitClass_EXIT_CLASS_OOM_HOST, Code: 4, Signal: "SIGKILL", Uptime: durationpb.New(time.Minute),
				Ended: &timestamppb.Timestamp{Seconds: 61}, LastLogLines: []string{"boom"}, RequestsCut: 2,
			},
		},
		{
			ReplicaId: "a-0", Generation: 1, StartedBy: "preload", Error: "no such file",
			Exit: &poolv1.Exit{Uptime: durationpb.New(0)}, // A class of a newer version.
		},
	}}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
		t.Errorf("ListStarts: %v (-want +got):\n%s", err, diff)
	}
	wantFull(t, got.GetStarts()[0].GetExit())
	n.be(func() { n.startsFail = reason.New(reason.StorageFailed, "the disk is gone") })
	_, err = n.ListStarts(t.Context(), &poolv1.ListStartsRequest{PoolId: "a"})
	wantReason(t, err, reason.StorageFailed)
}

func TestResetBreaker(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	spec := validSpec("a")
	spec.Replicas, spec.Restart = 2, &poolv1.RestartPolicy{FirstDelay: durationpb.New(time.Hour)}
	n.mustPreload(t, spec)
	reset := func(want uint32) {
		t.Helper()
		if got, err := n.ResetBreaker(t.Context(), &poolv1.ResetBreakerRequest{PoolId: "a"}); err != nil || got.GetReplicas() != want {
			t.Errorf("ResetBreaker = %v, %v, want %d replicas", got, err, want)
		}
	}
	reset(0)
	watch := n.watch(t, "", "a")
	n.be(func() { close(n.engines[0].done) })
	for waiting := false; !waiting; {
		watch.next(t)
		for _, r := range n.poolA(t).GetReplicas() {
			waiting = waiting || r.GetState() == poolv1.ReplicaState_REPLICA_STATE_BACKOFF && r.GetSupervision().GetNextAttempt() != nil
		}
	}
	reset(1)
	for n.poolA(t).GetState() != poolv1.PoolState_POOL_STATE_READY {
		watch.next(t)
	}
	reset(0)

	if _, _, err := n.drainNode(t, &poolv1.DrainNodeRequest{}); err != nil {
		t.Fatalf("DrainNode: %v", err)
	}
	_, err := n.ResetBreaker(t.Context(), &poolv1.ResetBreakerRequest{PoolId: "a"})
	if typed := typedError(t, err, reason.PoolUnready); typed.Remedy == "" {
		t.Errorf("error %+v has no remedy", typed)
	}
}
