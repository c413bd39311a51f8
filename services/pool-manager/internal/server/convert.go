// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// defaultDrainDeadline is what an absent deadline means, as the contract says.
const defaultDrainDeadline = 30 * time.Second

// The states and phases of registry have the numbers of their enums.
func stateOf(state registry.State) poolv1.PoolState { return poolv1.PoolState(state) }

func phaseOf(phase registry.Phase) poolv1.LoadPhase { return poolv1.LoadPhase(phase) }

func replicaStateOf(state registry.ReplicaState) poolv1.ReplicaState {
	return poolv1.ReplicaState(state)
}

// specOf reads a spec and fills in its defaults.
func specOf(spec *poolv1.PoolSpec) (registry.Spec, error) {
	s := registry.Spec{
		ID:             registry.PoolID(spec.GetPoolId()),
		Prepare:        spec.GetPrepare(),
		PreparedID:     spec.GetPreparedId(),
		Replicas:       max(int(spec.GetReplicas()), 1),
		Port:           uint16(spec.GetPort()),
		StartupTimeout: spec.GetStartupTimeout().AsDuration(),
	}
	if s.Port != 0 && s.Replicas > 1 {
		return registry.Spec{}, reason.New(reason.InvalidParams, "several replicas cannot share one port", reason.Field("spec.port"),
			reason.Remedy("leave the port at 0, or ask for one replica"))
	}
	return s, nil
}

func specMessage(s registry.Spec) *poolv1.PoolSpec {
	spec := &poolv1.PoolSpec{PoolId: string(s.ID), Replicas: uint32(s.Replicas), Port: uint32(s.Port)}
	if s.Prepare != nil {
		spec.Workload = &poolv1.PoolSpec_Prepare{Prepare: s.Prepare}
	} else {
		spec.Workload = &poolv1.PoolSpec_PreparedId{PreparedId: s.PreparedID}
	}
	if s.StartupTimeout > 0 {
		spec.StartupTimeout = durationpb.New(s.StartupTimeout)
	}
	return spec
}

func poolOf(p *registry.Pool) *poolv1.Pool {
	pool := &poolv1.Pool{
		PoolId:     string(p.Spec.ID),
		Revision:   p.Revision,
		State:      stateOf(p.State),
		Phase:      phaseOf(p.Phase),
		Spec:       specMessage(p.Spec),
		PreparedId: p.Prepared.GetPreparedId(),
		Engine:     p.Prepared.GetEngine(),
		Model:      modelOf(p.Prepared),
		Created:    timeOf(p.Created),
		Updated:    timeOf(p.Updated),
	}
	if f := p.Failure; f != nil {
		pool.Failure = &poolv1.Failure{Reason: f.Reason, Message: f.Message, At: timeOf(f.At)}
	}
	for _, r := range p.Replicas {
		pool.Replicas = append(pool.Replicas, replicaOf(r))
	}
	return pool
}

func modelOf(prepared *enginev1.PreparedEngine) *poolv1.Model {
	if prepared == nil {
		return nil
	}
	model := &poolv1.Model{
		Id:            prepared.GetModel().GetId(),
		ContextTokens: prepared.GetSpec().GetLaunch().GetContextTokens(),
	}
	if files := prepared.GetModel().GetFiles(); len(files) > 0 {
		model.Sha256 = files[0].GetSha256()
	}
	return model
}

func replicaOf(r registry.Replica) *poolv1.Replica {
	replica := &poolv1.Replica{
		ReplicaId:  string(r.ID),
		Index:      uint32(r.Index),
		Generation: r.Generation,
		State:      replicaStateOf(r.State),
		Endpoint:   r.Endpoint,
		Pid:        int32(r.PID),
		SlotsTotal: uint32(r.SlotsTotal),
		Started:    timeOf(r.Started),
		Ready:      timeOf(r.Ready),
	}
	if e := r.Exit; e != nil {
		replica.Exit = &poolv1.Exit{
			Class: e.Class, Code: int32(e.Code), Signal: e.Signal, Uptime: durationpb.New(e.Uptime), Ended: timeOf(e.Ended),
			LastLogLines: e.LastLines, RequestsCut: uint32(e.RequestsCut),
		}
	}
	return replica
}

func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func drainOptionsOf(request *poolv1.DrainRequest) lifecycle.DrainOptions {
	options := lifecycle.DrainOptions{
		Deadline: defaultDrainDeadline,
		GiveUp:   request.GetOnDeadline() == poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP,
	}
	if deadline := request.GetDeadline(); deadline != nil {
		options.Deadline = deadline.AsDuration()
	}
	return options
}

func drainProgressOf(p lifecycle.DrainProgress) *poolv1.DrainProgress {
	progress := &poolv1.DrainProgress{Phase: poolv1.DrainPhase_DRAIN_PHASE_STOPPING}
	if !p.Stopping {
		progress.Phase = poolv1.DrainPhase_DRAIN_PHASE_WAITING
		progress.Remaining = durationpb.New(p.Remaining)
	}
	if p.Known {
		inFlight := uint32(p.InFlight)
		progress.InFlight = &inFlight
	}
	return progress
}

func drainResultOf(r lifecycle.DrainResult) *poolv1.DrainResult {
	return &poolv1.DrainResult{
		Forced: r.Forced, GaveUp: r.GaveUp, RequestsCut: uint32(r.RequestsCut), Duration: durationpb.New(r.Duration),
		Killed: r.Killed, Pool: poolOf(r.Pool),
	}
}
