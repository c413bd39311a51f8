// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// DrainNode drains every pool.
func (s *Service) DrainNode(request *poolv1.DrainNodeRequest, stream poolv1.PoolManagerService_DrainNodeServer) error {
	options := lifecycle.DrainOptions{
		Deadline: drainDeadlineOf(request.GetDeadline()), GiveUp: givesUp(request.GetOnDeadline()), By: "drain node",
	}
	sum, err := s.pools.DrainNode(stream.Context(), options, int(request.GetParallel()), func(one lifecycle.PoolDrained) error {
		drained := &poolv1.PoolDrained{PoolId: string(one.Pool)}
		if one.Failure != nil {
			drained.Failure = failureOf(one.Failure)
		} else {
			drained.Result = drainResultOf(one.Result)
		}
		return stream.Send(&poolv1.DrainNodeResponse{Event: &poolv1.DrainNodeResponse_Pool{Pool: drained}})
	})
	if err != nil {
		return err
	}
	return stream.Send(&poolv1.DrainNodeResponse{Event: &poolv1.DrainNodeResponse_Result{Result: &poolv1.DrainNodeResult{
		Pools: uint32(sum.Pools), RequestsCut: uint32(sum.RequestsCut), GaveUp: uint32(sum.GaveUp), Duration: durationpb.New(sum.Duration),
	}}})
}

// ResetBreaker forgets that engines of a pool have failed.
func (s *Service) ResetBreaker(_ context.Context, request *poolv1.ResetBreakerRequest) (*poolv1.ResetBreakerResponse, error) {
	started, err := s.pools.ResetBreaker(registry.PoolID(request.GetPoolId()))
	if err != nil {
		return nil, err
	}
	return &poolv1.ResetBreakerResponse{Replicas: uint32(started)}, nil
}

// ListStarts tells how the starts of a pool's engines ended.
func (s *Service) ListStarts(_ context.Context, request *poolv1.ListStartsRequest) (*poolv1.ListStartsResponse, error) {
	starts, err := s.pools.Starts(registry.PoolID(request.GetPoolId()))
	if err != nil {
		return nil, err
	}
	response := &poolv1.ListStartsResponse{}
	for _, start := range starts {
		response.Starts = append(response.Starts, startOf(start))
	}
	return response, nil
}

func startOf(r state.StartRecord) *poolv1.Start {
	return &poolv1.Start{
		ReplicaId: string(registry.PoolID(r.PoolID).Replica(r.Replica)), Generation: r.Generation, PreparedId: r.PreparedID,
		Pid: int32(r.PID), Started: timeOf(r.StartedAt), Ready: timeOf(r.ReadyAt), StartedBy: r.StartedBy, EndedBy: r.EndedBy, Error: r.Error,
		Exit: &poolv1.Exit{
			Class: enginev1.ExitClass(enginev1.ExitClass_value["EXIT_CLASS_"+r.Class]), Code: int32(r.Code), Signal: r.Signal,
			Uptime: durationpb.New(r.Uptime), Ended: timeOf(r.EndedAt), LastLogLines: r.LastLines, RequestsCut: uint32(r.RequestsCut),
		},
	}
}
