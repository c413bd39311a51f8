// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// Reload makes a pool be what another spec says.
func (s *Service) Reload(request *poolv1.ReloadRequest, stream poolv1.PoolManagerService_ReloadServer) error {
	spec, err := specOf(request.GetSpec())
	if err := together(err, checkProof(request.GetProof())); err != nil {
		return err
	}
	options := lifecycle.ReloadOptions{
		Proof: proofOf(request.GetProof()), AcceptOutage: request.GetAcceptOutage(),
		DrainDeadline: drainDeadlineOf(request.GetDrainDeadline()), DryRun: request.GetDryRun(),
	}
	result, err := s.pools.Reload(stream.Context(), spec, options, func(event lifecycle.ReloadEvent) error {
		return stream.Send(reloadEventOf(event))
	})
	if err != nil {
		return err
	}
	return stream.Send(&poolv1.ReloadResponse{Event: &poolv1.ReloadResponse_Result{Result: reloadResultOf(result)}})
}

// proofOf leaves at 0 what is absent, which means to launch what it means in the contract.
func proofOf(p *poolv1.ReloadProof) launch.Proof {
	return launch.Proof{
		Prompt: p.GetPrompt(), MaxTokens: int(p.GetMaxTokens()), Contains: p.GetContains(),
		MinTokensPerSecond: p.GetMinTokensPerSecond(), Timeout: p.GetTimeout().AsDuration(),
	}
}

func reloadEventOf(event lifecycle.ReloadEvent) *poolv1.ReloadResponse {
	switch {
	case event.Progress != nil:
		return &poolv1.ReloadResponse{Event: &poolv1.ReloadResponse_Progress{Progress: event.Progress}}
	case event.Draining != nil:
		return &poolv1.ReloadResponse{Event: &poolv1.ReloadResponse_Draining{Draining: drainProgressOf(*event.Draining)}}
	default:
		return &poolv1.ReloadResponse{Event: &poolv1.ReloadResponse_Phase{Phase: poolv1.ReloadPhase(event.Phase)}}
	}
}

func reloadResultOf(r lifecycle.ReloadResult) *poolv1.ReloadResult {
	return &poolv1.ReloadResult{
		Action: poolv1.ReloadAction(r.Action), RestartFields: r.RestartFields, LiveFields: r.LiveFields, Outage: durationOf(r.Outage),
		RequestsCut: uint32(r.RequestsCut), Duration: durationpb.New(r.Duration), Pool: poolOf(r.Pool),
	}
}

// CancelReload cancels the reload of a pool.
func (s *Service) CancelReload(ctx context.Context, request *poolv1.CancelReloadRequest) (*poolv1.CancelReloadResponse, error) {
	cancelled, err := s.pools.CancelReload(ctx, registry.PoolID(request.GetPoolId()))
	if err != nil {
		return nil, err
	}
	return &poolv1.CancelReloadResponse{Cancelled: cancelled}, nil
}
