// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// Each state of the registry is the one of the same name in the contract, and neither has one more.
func TestStatesHaveTheirNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		prefix string
		values map[int32]string
		ours   func(int32) string
		theirs func(int32) string
	}{
		{
			"pool", "POOL_STATE_", poolv1.PoolState_name,
			func(n int32) string { return registry.State(n).String() },
			func(n int32) string { return stateOf(registry.State(n)).String() },
		},
		{
			"phase", "LOAD_PHASE_", poolv1.LoadPhase_name,
			func(n int32) string { return registry.Phase(n).String() },
			func(n int32) string { return phaseOf(registry.Phase(n)).String() },
		},
		{
			"replica", "REPLICA_STATE_", poolv1.ReplicaState_name,
			func(n int32) string { return registry.ReplicaState(n).String() },
			func(n int32) string { return replicaStateOf(registry.ReplicaState(n)).String() },
		},
		{
			"reload", "RELOAD_ACTION_", poolv1.ReloadAction_name,
			func(n int32) string { return strings.ToUpper(lifecycle.ReloadAction(n).String()) },
			func(n int32) string {
				return reloadResultOf(lifecycle.ReloadResult{Action: lifecycle.ReloadAction(n)}).GetAction().String()
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			count := int32(len(tt.values))
			for n := int32(1); n < count; n++ {
				if tt.prefix+tt.ours(n) != tt.theirs(n) {
					t.Errorf("%d is %s here and %s in the contract", n, tt.ours(n), tt.theirs(n))
				}
			}
			if !strings.HasSuffix(tt.theirs(0), "UNSPECIFIED") {
				t.Errorf("0 is %s", tt.theirs(0))
			}
			defer func() {
				if recover() == nil {
					t.Errorf("%d is %s here and unknown to the contract", count, tt.ours(count))
				}
			}()
			_ = tt.ours(count)
		})
	}
}

// Nor does what has no name here differ in its number.
func TestEnumsHaveTheirNumbers(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ours []int
		want []int32
		all  map[int32]string
	}{
		{
			"residency", []int{int(registry.Pinned), int(registry.TTL), int(registry.Lazy)},
			[]int32{int32(poolv1.Residency_RESIDENCY_PINNED), int32(poolv1.Residency_RESIDENCY_TTL), int32(poolv1.Residency_RESIDENCY_LAZY)},
			poolv1.Residency_name,
		},
		{
			"breaker", []int{int(supervision.Closed), int(supervision.Open), int(supervision.HalfOpen)},
			[]int32{
				int32(poolv1.BreakerState_BREAKER_STATE_CLOSED), int32(poolv1.BreakerState_BREAKER_STATE_OPEN),
				int32(poolv1.BreakerState_BREAKER_STATE_HALF_OPEN),
			},
			poolv1.BreakerState_name,
		},
		{
			"reload phase",
			[]int{
				int(registry.ReloadPreparing), int(registry.ReloadStoppingOld), int(registry.ReloadStarting), int(registry.ReloadProving),
				int(registry.ReloadDrainingOld), int(registry.ReloadRollingBack),
			},
			[]int32{
				int32(poolv1.ReloadPhase_RELOAD_PHASE_PREPARING), int32(poolv1.ReloadPhase_RELOAD_PHASE_STOPPING_OLD),
				int32(poolv1.ReloadPhase_RELOAD_PHASE_STARTING), int32(poolv1.ReloadPhase_RELOAD_PHASE_PROVING),
				int32(poolv1.ReloadPhase_RELOAD_PHASE_DRAINING_OLD), int32(poolv1.ReloadPhase_RELOAD_PHASE_ROLLING_BACK),
			},
			poolv1.ReloadPhase_name,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if len(tt.all) != len(tt.ours)+1 {
				t.Errorf("the contract has %d values, we have %d", len(tt.all)-1, len(tt.ours))
			}
			for i, want := range tt.want {
				if tt.ours[i] != int(want) {
					t.Errorf("%s is %d here, and %d in the contract", tt.all[want], tt.ours[i], want)
				}
			}
		})
	}
}

// fullReplica is one of which everything is known.
func fullReplica() registry.Replica {
	return registry.Replica{
		ID: "a-1", Index: 1, Generation: 9, State: registry.ReplicaFailed, Endpoint: "http://e", PID: 17, SlotsTotal: 4,
		Started: time.Unix(2, 0), Ready: time.Unix(3, 0), LogPath: "/log", Adopted: true,
		Exit: &registry.Exit{
			Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Code: -1, Signal: "SIGSEGV", Uptime: time.Hour, Ended: time.Unix(4, 0),
			LastLines: []string{"x", "y"}, RequestsCut: 6,
		},
		Supervision: supervision.Status{
			Restarts: 5, FailedStarts: 3, NextAttempt: time.Unix(7, 0), Breaker: supervision.HalfOpen, BreakerCause: "too often",
		},
		Loading: &registry.LoadProgress{LoadedBytes: 1, TotalBytes: 2, Remaining: 3 * time.Second, StillSince: time.Unix(8, 0)},
	}
}

func fullReplicaMessage() *poolv1.Replica {
	return &poolv1.Replica{
		ReplicaId: "a-1", Index: 1, Generation: 9, State: poolv1.ReplicaState_REPLICA_STATE_FAILED, Endpoint: "http://e", Pid: 17, SlotsTotal: 4,
		Started: &timestamppb.Timestamp{Seconds: 2}, Ready: &timestamppb.Timestamp{Seconds: 3}, Adopted: true,
		Exit: &poolv1.Exit{
			Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Code: -1, Signal: "SIGSEGV", Uptime: durationpb.New(time.Hour),
			Ended: &timestamppb.Timestamp{Seconds: 4}, LastLogLines: []string{"x", "y"}, RequestsCut: 6,
		},
		Supervision: &poolv1.Supervision{
			Restarts: 5, FailedStarts: 3, NextAttempt: &timestamppb.Timestamp{Seconds: 7}, Breaker: poolv1.BreakerState_BREAKER_STATE_HALF_OPEN,
			BreakerCause: "too often",
		},
		Loading: &poolv1.LoadProgress{
			LoadedBytes: 1, TotalBytes: 2, Remaining: durationpb.New(3 * time.Second), StillSince: &timestamppb.Timestamp{Seconds: 8},
		},
	}
}

// fullSpec has no two durations, counts or numbers alike.
func fullSpec() registry.Spec {
	return registry.Spec{
		ID: "a", Prepare: &enginev1.PrepareSpec{Engine: &enginev1.EngineSpec{Kind: "some"}}, Replicas: 2, Port: 8080, StartupTimeout: 20 * time.Second,
		Restart: supervision.Policy{
			FirstDelay: time.Second, MaxDelay: 2 * time.Second, ImmediateAfter: 3 * time.Second, ResetAfter: 4 * time.Second,
			Breaker: supervision.BreakerPolicy{
				FailedStarts: 5, FailuresInWindow: 6, Window: 7 * time.Second, OpenFor: 8 * time.Second, MaxOpenFor: 9 * time.Second,
				CloseAfter: 10 * time.Second,
			},
		},
		Health: supervision.Health{
			Interval: 11 * time.Second, StallLimit: 12 * time.Second, LoadStallLimit: 13 * time.Second, CanaryInterval: 14 * time.Second,
			CanaryTimeout: 15 * time.Second, NoCanary: true,
		},
		Residency: registry.TTL, IdleTimeout: 16 * time.Second, Priority: -17, Labels: map[string]string{"k": "v"},
	}
}

func fullSpecMessage() *poolv1.PoolSpec {
	seconds := func(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }
	return &poolv1.PoolSpec{
		PoolId: "a", Workload: &poolv1.PoolSpec_Prepare{Prepare: fullSpec().Prepare}, Replicas: 2, Port: 8080, StartupTimeout: seconds(20),
		Restart: &poolv1.RestartPolicy{
			FirstDelay: seconds(1), MaxDelay: seconds(2), ImmediateAfter: seconds(3), ResetAfter: seconds(4),
			Breaker: &poolv1.BreakerPolicy{
				FailedStarts: 5, FailuresInWindow: 6, Window: seconds(7), OpenFor: seconds(8), MaxOpenFor: seconds(9), CloseAfter: seconds(10),
			},
		},
		Health: &poolv1.HealthPolicy{
			Interval: seconds(11), StallLimit: seconds(12), LoadStallLimit: seconds(13), CanaryInterval: seconds(14), CanaryTimeout: seconds(15),
			NoCanary: true,
		},
		Residency: poolv1.Residency_RESIDENCY_TTL, IdleTimeout: seconds(16), Priority: -17, Labels: map[string]string{"k": "v"},
	}
}

// full is a snapshot in which nothing is empty.
func full() *registry.Pool {
	return &registry.Pool{
		Spec:    fullSpec(),
		State:   registry.StateFailed,
		Phase:   registry.PhaseVerifying,
		Failure: &registry.Failure{Reason: enginev1.Reason_REASON_ENGINE_EXITED, Message: "it ended", At: time.Unix(5, 0)},
		Prepared: &enginev1.PreparedEngine{
			PreparedId: "sha256:1", Engine: &enginev1.EngineIdentity{Kind: "some", Version: "v"},
			Model: &enginev1.PreparedModel{Id: "m", Files: []*enginev1.ModelFile{{Sha256: "first"}, {Sha256: "second"}}},
			Spec:  &enginev1.PrepareSpec{Launch: &enginev1.LaunchSpec{ContextTokens: 4096}},
		},
		Replicas: []registry.Replica{fullReplica()},
		Retiring: []registry.Replica{fullReplica(), fullReplica()},
		Reload:   &registry.ReloadStatus{Phase: registry.ReloadProving, Candidates: []registry.Replica{fullReplica()}},
		Created:  time.Unix(1, 0), Wanted: true, Edition: 3, Revision: 12, Updated: time.Unix(6, 0),
	}
}

func TestPoolMessage(t *testing.T) {
	t.Parallel()
	p := full()
	got := poolOf(p)
	want := &poolv1.Pool{
		PoolId: "a", Revision: 12, State: poolv1.PoolState_POOL_STATE_FAILED, Phase: poolv1.LoadPhase_LOAD_PHASE_VERIFYING,
		Failure:    &poolv1.Failure{Reason: enginev1.Reason_REASON_ENGINE_EXITED, Message: "it ended", At: &timestamppb.Timestamp{Seconds: 5}},
		Spec:       fullSpecMessage(),
		PreparedId: "sha256:1", Engine: p.Prepared.GetEngine(), Model: &poolv1.Model{Id: "m", Sha256: "first", ContextTokens: 4096},
		Replicas: []*poolv1.Replica{fullReplicaMessage()},
		Retiring: []*poolv1.Replica{fullReplicaMessage(), fullReplicaMessage()},
		Reload: &poolv1.ReloadStatus{
			Phase: poolv1.ReloadPhase_RELOAD_PHASE_PROVING, Candidates: []*poolv1.Replica{fullReplicaMessage()},
		},
		Wanted: true, Edition: 3, Created: &timestamppb.Timestamp{Seconds: 1}, Updated: &timestamppb.Timestamp{Seconds: 6},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	wantFull(t, got)
}

// wantFull fails for each field of a message of this service, and of those in it, that is not set.
func wantFull(t *testing.T, message proto.Message) {
	t.Helper()
	m := message.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if !m.Has(field) {
			if field.ContainingOneof() == nil {
				t.Errorf("%s is never set", field.FullName())
			}
			continue
		}
		if field.Message() == nil || field.IsMap() || field.Message().ParentFile().Package() != "roundhouse.pool.v1" {
			continue
		}
		if !field.IsList() {
			wantFull(t, m.Get(field).Message().Interface())
			continue
		}
		for list, j := m.Get(field).List(), 0; j < list.Len(); j++ {
			wantFull(t, list.Get(j).Message().Interface())
		}
	}
}

// The words of a failure come from anywhere.
func TestFailureIsFitForTheWire(t *testing.T) {
	t.Parallel()
	got := failureOf(&registry.Failure{Message: "\xff of https://joe:secret@host/x?token=1"}).GetMessage()
	if want := "\uFFFD of https://host/x"; got != want {
		t.Errorf("message is %q, want %q", got, want)
	}
}

// A pool of which nothing is known yet says so by absence.
func TestEmptyPoolMessage(t *testing.T) {
	t.Parallel()
	got := poolOf(&registry.Pool{Spec: registry.Spec{ID: "a", PreparedID: "sha256:2", Replicas: 1}, State: registry.StateLoading})
	if none := poolOf(nil); none != nil {
		t.Errorf("no pool is %v", none)
	}
	var set []string
	got.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		set = append(set, string(field.Name()))
		return true
	})
	if len(set) != 3 || got.GetSpec().GetPreparedId() != "sha256:2" || got.GetSpec().GetStartupTimeout() != nil {
		t.Errorf("message has %v: %v, want pool_id, state and spec", set, got)
	}
	if idle := poolOf(&registry.Pool{Replicas: []registry.Replica{{Loading: &registry.LoadProgress{}}}}).GetReplicas()[0]; idle.GetExit() != nil ||
		idle.GetLoading().GetRemaining() != nil || idle.GetLoading().GetStillSince() != nil || idle.GetSupervision().GetNextAttempt() != nil {
		t.Errorf("a replica of which nothing is known is %v", idle)
	}
	bare := full()
	bare.Prepared.Model.Files = nil
	if model := poolOf(bare).GetModel(); model.GetId() != "m" || model.GetSha256() != "" {
		t.Errorf("model without files is %v", model)
	}
}

func TestSpecBothWays(t *testing.T) {
	t.Parallel()
	alone := fullSpecMessage()
	alone.Replicas = 1 // It has a port.
	prepared := &poolv1.PoolSpec{PoolId: "a", Workload: &poolv1.PoolSpec_PreparedId{PreparedId: "sha256:x"}, Port: 65535}
	lazy := &poolv1.PoolSpec{PoolId: "a", Residency: poolv1.Residency_RESIDENCY_LAZY, IdleTimeout: durationpb.New(time.Second)}
	lazyFilled := withDefaults(lazy)
	lazyFilled.Residency = poolv1.Residency_RESIDENCY_LAZY
	for _, tt := range []struct {
		name       string
		give, want *poolv1.PoolSpec
	}{
		{"everything", alone, alone},
		{"defaults", prepared, withDefaults(prepared)},
		{"lazy, and unloaded when idle", lazy, lazyFilled},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			read, err := specOf(tt.give)
			if diff := cmp.Diff(tt.want, specMessage(read), protocmp.Transform()); diff != "" || err != nil {
				t.Errorf("spec: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}
