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
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
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

// full is a snapshot in which nothing is empty.
func full() *registry.Pool {
	return &registry.Pool{
		Spec: registry.Spec{
			ID: "a", Prepare: &enginev1.PrepareSpec{Engine: &enginev1.EngineSpec{Kind: "some"}}, Replicas: 2, Port: 8080, StartupTimeout: time.Minute,
		},
		State: registry.StateFailed, Phase: registry.PhaseVerifying,
		Failure: &registry.Failure{Reason: enginev1.Reason_REASON_ENGINE_EXITED, Message: "it ended", At: time.Unix(5, 0)},
		Prepared: &enginev1.PreparedEngine{
			PreparedId: "sha256:1", Engine: &enginev1.EngineIdentity{Kind: "some", Version: "v"},
			Model: &enginev1.PreparedModel{Id: "m", Files: []*enginev1.ModelFile{{Sha256: "first"}, {Sha256: "second"}}},
			Spec:  &enginev1.PrepareSpec{Launch: &enginev1.LaunchSpec{ContextTokens: 4096}},
		},
		Replicas: []registry.Replica{{
			ID: "a-1", Index: 1, Generation: 9, State: registry.ReplicaFailed, Endpoint: "http://e", PID: 17, SlotsTotal: 4,
			Started: time.Unix(2, 0), Ready: time.Unix(3, 0), LogPath: "/log",
			Exit: &registry.Exit{
				Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Code: -1, Signal: "SIGSEGV", Uptime: time.Hour, Ended: time.Unix(4, 0),
				LastLines: []string{"x", "y"}, RequestsCut: 6,
			},
		}},
		Created: time.Unix(1, 0), Revision: 12, Updated: time.Unix(6, 0),
	}
}

func TestPoolMessage(t *testing.T) {
	t.Parallel()
	p := full()
	got := poolOf(p)
	want := &poolv1.Pool{
		PoolId: "a", Revision: 12, State: poolv1.PoolState_POOL_STATE_FAILED, Phase: poolv1.LoadPhase_LOAD_PHASE_VERIFYING,
		Failure: &poolv1.Failure{Reason: enginev1.Reason_REASON_ENGINE_EXITED, Message: "it ended", At: &timestamppb.Timestamp{Seconds: 5}},
		Spec: &poolv1.PoolSpec{
			PoolId: "a", Workload: &poolv1.PoolSpec_Prepare{Prepare: p.Spec.Prepare}, Replicas: 2, Port: 8080, StartupTimeout: durationpb.New(time.Minute),
		},
		PreparedId: "sha256:1", Engine: p.Prepared.GetEngine(), Model: &poolv1.Model{Id: "m", Sha256: "first", ContextTokens: 4096},
		Replicas: []*poolv1.Replica{{
			ReplicaId: "a-1", Index: 1, Generation: 9, State: poolv1.ReplicaState_REPLICA_STATE_FAILED, Endpoint: "http://e", Pid: 17, SlotsTotal: 4,
			Started: &timestamppb.Timestamp{Seconds: 2}, Ready: &timestamppb.Timestamp{Seconds: 3},
			Exit: &poolv1.Exit{
				Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Code: -1, Signal: "SIGSEGV", Uptime: durationpb.New(time.Hour),
				Ended: &timestamppb.Timestamp{Seconds: 4}, LastLogLines: []string{"x", "y"}, RequestsCut: 6,
			},
		}},
		Created: &timestamppb.Timestamp{Seconds: 1}, Updated: &timestamppb.Timestamp{Seconds: 6},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	for _, m := range []proto.Message{got, got.GetSpec(), got.GetFailure(), got.GetModel(), got.GetReplicas()[0], got.GetReplicas()[0].GetExit()} {
		fields := m.ProtoReflect().Descriptor().Fields()
		for i := range fields.Len() {
			if field := fields.Get(i); field.ContainingOneof() == nil && !m.ProtoReflect().Has(field) {
				t.Errorf("%s is never set", field.FullName())
			}
		}
	}
}

// A pool of which nothing is known yet says so by absence.
func TestEmptyPoolMessage(t *testing.T) {
	t.Parallel()
	got := poolOf(&registry.Pool{Spec: registry.Spec{ID: "a", PreparedID: "sha256:2", Replicas: 1}, State: registry.StateLoading})
	var set []string
	got.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		set = append(set, string(field.Name()))
		return true
	})
	if len(set) != 3 || got.GetSpec().GetPreparedId() != "sha256:2" || got.GetSpec().GetStartupTimeout() != nil {
		t.Errorf("message has %v: %v, want pool_id, state and spec", set, got)
	}
	bare := full()
	bare.Prepared.Model.Files = nil
	if model := poolOf(bare).GetModel(); model.GetId() != "m" || model.GetSha256() != "" {
		t.Errorf("model without files is %v", model)
	}
}

func TestSpecBothWays(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]*poolv1.PoolSpec{
		"to prepare": {PoolId: "a", Workload: &poolv1.PoolSpec_Prepare{Prepare: &enginev1.PrepareSpec{}}, Replicas: 3, StartupTimeout: durationpb.New(1)},
		"prepared":   {PoolId: "a", Workload: &poolv1.PoolSpec_PreparedId{PreparedId: "sha256:x"}, Replicas: 1, Port: 65535},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			read, err := specOf(spec)
			if diff := cmp.Diff(spec, specMessage(read), protocmp.Transform()); diff != "" || err != nil {
				t.Errorf("spec: %v (-want +got):\n%s", err, diff)
			}
		})
	}
	read, err := specOf(&poolv1.PoolSpec{PoolId: "a", Workload: &poolv1.PoolSpec_PreparedId{PreparedId: "x"}, Port: 1})
	if err != nil || read.Replicas != 1 || read.Port != 1 {
		t.Errorf("defaults: %+v, %v, want one replica", read, err)
	}
}
