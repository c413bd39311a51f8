// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// drain drains pool a, which it preloads before, and returns the events and the result.
func (n *node) drain(t *testing.T, request *poolv1.DrainRequest) ([]*poolv1.DrainProgress, *poolv1.DrainResult) {
	t.Helper()
	n.mustPreload(t, validSpec("a"))
	request.PoolId = "a"
	stream, err := n.Drain(t.Context(), request)
	messages, err := all(t, stream, err)
	if err != nil {
		t.Fatalf("Drain: %v", err)
	}
	var events []*poolv1.DrainProgress
	for _, m := range messages[:len(messages)-1] {
		events = append(events, m.GetProgress())
	}
	return events, messages[len(messages)-1].GetResult()
}

func TestDrain(t *testing.T) {
	t.Parallel()
	const giveUp = poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP
	const ready, stopped = poolv1.PoolState_POOL_STATE_READY, poolv1.PoolState_POOL_STATE_STOPPED
	for _, tt := range []struct {
		name     string
		inFlight int // -1: the engine does not say.
		killed   bool
		request  *poolv1.DrainRequest
		want     *poolv1.DrainResult
		state    poolv1.PoolState
	}{
		{"idle", 0, false, &poolv1.DrainRequest{}, &poolv1.DrainResult{}, stopped},
		{"idle, asked to give up", 0, false, &poolv1.DrainRequest{OnDeadline: giveUp}, &poolv1.DrainResult{}, stopped},
		{"busy", 2, false, &poolv1.DrainRequest{Deadline: durationpb.New(0)}, &poolv1.DrainResult{Forced: true, RequestsCut: 2}, stopped},
		{"mute", -1, false, &poolv1.DrainRequest{Deadline: durationpb.New(0)}, &poolv1.DrainResult{Forced: true}, stopped},
		{"busy, and it must be killed", 1, true, &poolv1.DrainRequest{Deadline: durationpb.New(0)},
			&poolv1.DrainResult{Forced: true, RequestsCut: 1, Killed: true}, stopped},
		{"busy, giving up", 1, false, &poolv1.DrainRequest{Deadline: durationpb.New(time.Millisecond), OnDeadline: giveUp},
			&poolv1.DrainResult{GaveUp: true}, ready},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, Config{})
			n.be(func() { n.inFlight, n.killed = tt.inFlight, tt.killed })
			events, result := n.drain(t, tt.request)
			if diff := cmp.Diff(tt.want, result, protocmp.Transform(), protocmp.IgnoreFields(result, "pool", "duration")); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if result.GetPool().GetState() != tt.state || result.GetPool().GetPoolId() != "a" || result.GetDuration() == nil {
				t.Errorf("result is %v, want pool a %s", result, tt.state)
			}
			// That it stops may be told by the result alone.
			if last := events[len(events)-1].GetPhase(); tt.want.GetGaveUp() && last != poolv1.DrainPhase_DRAIN_PHASE_WAITING {
				t.Errorf("the last event is %s", last)
			}
		})
	}
}

func TestDrainThatWaits(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.be(func() { n.inFlight = 3 })
	n.mustPreload(t, validSpec("a"))
	stream, err := n.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			t.Fatalf("Drain: %v", err)
		}
		p := message.GetProgress()
		if p.GetPhase() != poolv1.DrainPhase_DRAIN_PHASE_WAITING {
			t.Fatalf("event %v, want waiting", p)
		}
		if left := p.GetRemaining().AsDuration(); left <= 20*time.Second || left > 30*time.Second {
			t.Errorf("event %v, want something below the 30 s that an absent deadline means", p)
		}
		if p.InFlight != nil { // It is not known before the first answer.
			if p.GetInFlight() != 3 {
				t.Errorf("event %v, want 3 in flight", p)
			}
			break
		}
	}
	got, err := n.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "a"})
	if err != nil || got.GetPool().GetState() != poolv1.PoolState_POOL_STATE_DRAINING ||
		got.GetPool().GetReplicas()[0].GetState() != poolv1.ReplicaState_REPLICA_STATE_DRAINING {
		t.Errorf("meanwhile: %v, %v, want DRAINING", got, err)
	}
	n.be(func() { n.inFlight = 0 })
	messages, err := all(t, stream, nil)
	if err != nil {
		t.Fatalf("Drain: %v", err)
	}
	if result := messages[len(messages)-1].GetResult(); result.GetForced() || result.GetRequestsCut() != 0 {
		t.Errorf("result is %v, want a good end", result)
	}
}

func TestDrainOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		request *poolv1.DrainRequest
		want    lifecycle.DrainOptions
	}{
		{"nothing", &poolv1.DrainRequest{}, lifecycle.DrainOptions{Deadline: 30 * time.Second}},
		{"no wait", &poolv1.DrainRequest{Deadline: durationpb.New(0)}, lifecycle.DrainOptions{}},
		{"an hour", &poolv1.DrainRequest{Deadline: durationpb.New(time.Hour), OnDeadline: poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_FORCE},
			lifecycle.DrainOptions{Deadline: time.Hour}},
		{"give up", &poolv1.DrainRequest{OnDeadline: poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP},
			lifecycle.DrainOptions{Deadline: 30 * time.Second, GiveUp: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, drainOptionsOf(tt.request), cmp.AllowUnexported(lifecycle.DrainOptions{})); diff != "" {
				t.Errorf("options (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDrainMessages(t *testing.T) {
	t.Parallel()
	five := uint32(5)
	for _, tt := range []struct {
		name string
		in   lifecycle.DrainProgress
		want *poolv1.DrainProgress
	}{
		{"waiting", lifecycle.DrainProgress{InFlight: 5, Known: true, Remaining: time.Second},
			&poolv1.DrainProgress{Phase: poolv1.DrainPhase_DRAIN_PHASE_WAITING, InFlight: &five, Remaining: durationpb.New(time.Second)}},
		{"waiting until now", lifecycle.DrainProgress{},
			&poolv1.DrainProgress{Phase: poolv1.DrainPhase_DRAIN_PHASE_WAITING, Remaining: durationpb.New(0)}},
		{"stopping", lifecycle.DrainProgress{Stopping: true, Known: true, InFlight: 5, Remaining: time.Second},
			&poolv1.DrainProgress{Phase: poolv1.DrainPhase_DRAIN_PHASE_STOPPING, InFlight: &five}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, drainProgressOf(tt.in), protocmp.Transform()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
	result := drainResultOf(lifecycle.DrainResult{
		Forced: true, GaveUp: true, Killed: true, RequestsCut: 5, Duration: time.Minute, Pool: &registry.Pool{State: registry.StateStopped},
	})
	want := &poolv1.DrainResult{
		Forced: true, GaveUp: true, Killed: true, RequestsCut: 5, Duration: durationpb.New(time.Minute), Pool: result.GetPool(),
	}
	if diff := cmp.Diff(want, result, protocmp.Transform()); diff != "" || result.GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("result %v (-want +got):\n%s", result, diff)
	}
}
