// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
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

// poolOf returns nil for nil, which is what is left of a pool that was forgotten before the end of its operation was told.
func poolOf(p *registry.Pool) *poolv1.Pool {
	if p == nil {
		return nil
	}
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
		Wanted:     p.Wanted,
		Edition:    p.Edition,
		Retiring:   replicasOf(p.Retiring),
		Replicas:   replicasOf(p.Replicas),
	}
	if r := p.Reload; r != nil {
		pool.Reload = &poolv1.ReloadStatus{Phase: poolv1.ReloadPhase(r.Phase), Candidates: replicasOf(r.Candidates)}
	}
	if f := p.Failure; f != nil {
		pool.Failure = failureOf(f)
	}
	return pool
}

// failureOf makes the words of any error fit for the wire, as reason.Status does: what is not UTF-8 would end a Watch of all pools.
func failureOf(f *registry.Failure) *poolv1.Failure {
	return &poolv1.Failure{Reason: f.Reason, Message: reason.Redact(strings.ToValidUTF8(f.Message, "\uFFFD")), At: timeOf(f.At)}
}

func replicasOf(replicas []registry.Replica) []*poolv1.Replica {
	messages := make([]*poolv1.Replica, len(replicas))
	for i, r := range replicas {
		messages[i] = replicaOf(r)
	}
	return messages
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
		Adopted:    r.Adopted,
		Supervision: &poolv1.Supervision{
			Restarts: r.Supervision.Restarts, FailedStarts: uint32(r.Supervision.FailedStarts),
			NextAttempt: timeOf(r.Supervision.NextAttempt), Breaker: poolv1.BreakerState(r.Supervision.Breaker),
			BreakerCause: r.Supervision.BreakerCause,
		},
	}
	if l := r.Loading; l != nil {
		replica.Loading = &poolv1.LoadProgress{LoadedBytes: l.LoadedBytes, TotalBytes: l.TotalBytes, StillSince: timeOf(l.StillSince)}
		if l.Remaining > 0 {
			replica.Loading.Remaining = durationpb.New(l.Remaining)
		}
	}
	if e := r.Exit; e != nil {
		replica.Exit = exitOf(*e)
	}
	return replica
}

func exitOf(e registry.Exit) *poolv1.Exit {
	return &poolv1.Exit{
		Class: e.Class, Code: int32(e.Code), Signal: e.Signal, Uptime: durationpb.New(e.Uptime), Ended: timeOf(e.Ended),
		LastLogLines: e.LastLines, RequestsCut: uint32(e.RequestsCut),
	}
}

func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func drainOptionsOf(request *poolv1.DrainRequest) lifecycle.DrainOptions {
	return lifecycle.DrainOptions{Deadline: drainDeadlineOf(request.GetDeadline()), GiveUp: givesUp(request.GetOnDeadline())}
}

func drainDeadlineOf(deadline *durationpb.Duration) time.Duration {
	if deadline == nil {
		return defaultDrainDeadline
	}
	return deadline.AsDuration()
}

func givesUp(action poolv1.DrainDeadlineAction) bool {
	return action == poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP
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
