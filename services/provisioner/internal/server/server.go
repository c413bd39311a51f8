// SPDX-License-Identifier: Apache-2.0

// Package server serves roundhouse.provisioner.v1.ProvisionerService. It translates between the contract and the packages
// that do the work, and decides nothing itself. What the contract promises about each call is in provisioner.proto.
package server

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/preflight"
)

// Preparer plans and prepares.
type Preparer interface {
	Plan(spec *enginev1.PrepareSpec) (*plan.Plan, error)
	Prepare(ctx context.Context, spec *enginev1.PrepareSpec, consumer *enginev1.Consumer, send func(*enginev1.Progress) error) (*enginev1.PreparedEngine, error)
	Cancel(ctx context.Context, spec *enginev1.PrepareSpec, consumer *enginev1.Consumer) (bool, error)
	Prepared(id string) (*enginev1.PreparedEngine, error)
	List(ctx context.Context, size int, token string) ([]*enginev1.PreparedEngine, string, error)
}

// Checker checks the machine.
type Checker interface {
	Check(ctx context.Context) (preflight.Report, error)
}

// Service is the gRPC service. Make it with New.
type Service struct {
	provisionerv1.UnimplementedProvisionerServiceServer

	preparer Preparer
	checker  Checker
}

// New returns the service of a preparer and a checker.
func New(preparer Preparer, checker Checker) (*Service, error) {
	if preparer == nil || checker == nil {
		return nil, errors.New("make service: a part is missing")
	}
	return &Service{preparer: preparer, checker: checker}, nil
}

// Plan implements the call.
func (s *Service) Plan(_ context.Context, request *provisionerv1.PlanRequest) (*provisionerv1.PlanResponse, error) {
	planned, err := s.preparer.Plan(request.GetSpec())
	if err != nil {
		return nil, err
	}
	response := &provisionerv1.PlanResponse{Spec: planned.Spec}
	for _, step := range planned.Steps {
		message := &provisionerv1.PlannedStep{Id: step.ID, Name: step.Name, Kind: stepKind(step.Work), Cached: step.Cached}
		if step.SizeBytes > 0 {
			message.SizeBytes = proto.Int64(step.SizeBytes)
		}
		if step.LastDuration > 0 {
			message.LastDuration = durationpb.New(step.LastDuration)
		}
		response.Steps = append(response.Steps, message)
	}
	return response, nil
}

func stepKind(work plan.Work) provisionerv1.StepKind {
	switch work {
	case plan.Fetch:
		return provisionerv1.StepKind_STEP_KIND_FETCH
	case plan.Checkout:
		return provisionerv1.StepKind_STEP_KIND_CHECKOUT
	case plan.Extract:
		return provisionerv1.StepKind_STEP_KIND_EXTRACT
	case plan.Build:
		return provisionerv1.StepKind_STEP_KIND_BUILD
	case plan.Probe:
		return provisionerv1.StepKind_STEP_KIND_PROBE
	case plan.Inspect:
		return provisionerv1.StepKind_STEP_KIND_INSPECT
	case plan.Recording:
		return provisionerv1.StepKind_STEP_KIND_RECORD
	case plan.WorkUnspecified:
	}
	return provisionerv1.StepKind_STEP_KIND_UNSPECIFIED
}

// Prepare implements the call.
func (s *Service) Prepare(request *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
	prepared, err := s.preparer.Prepare(stream.Context(), request.GetSpec(), request.GetConsumer(), func(event *enginev1.Progress) error {
		return stream.Send(&provisionerv1.PrepareResponse{Event: &provisionerv1.PrepareResponse_Progress{Progress: event}})
	})
	if err != nil {
		return err
	}
	answer := &enginev1.PreparedEngine{}
	proto.Merge(answer, prepared) // others wait for the same message
	answer.MadeFor = request.GetConsumer()
	if err := stream.Send(&provisionerv1.PrepareResponse{Event: &provisionerv1.PrepareResponse_Prepared{Prepared: answer}}); err != nil {
		return fmt.Errorf("send prepared engine: %w", err)
	}
	return nil
}

// CancelPrepare implements the call.
func (s *Service) CancelPrepare(ctx context.Context, request *provisionerv1.CancelPrepareRequest) (*provisionerv1.CancelPrepareResponse, error) {
	cancelled, err := s.preparer.Cancel(ctx, request.GetSpec(), request.GetConsumer())
	if err != nil {
		return nil, err
	}
	return &provisionerv1.CancelPrepareResponse{Cancelled: cancelled}, nil
}

// GetPrepared implements the call.
func (s *Service) GetPrepared(_ context.Context, request *provisionerv1.GetPreparedRequest) (*provisionerv1.GetPreparedResponse, error) {
	prepared, err := s.preparer.Prepared(request.GetPreparedId())
	if err != nil {
		return nil, err
	}
	return &provisionerv1.GetPreparedResponse{Prepared: prepared}, nil
}

// ListPrepared implements the call.
func (s *Service) ListPrepared(ctx context.Context, request *provisionerv1.ListPreparedRequest) (*provisionerv1.ListPreparedResponse, error) {
	page, next, err := s.preparer.List(ctx, int(request.GetPageSize()), request.GetPageToken())
	if err != nil {
		return nil, err
	}
	return &provisionerv1.ListPreparedResponse{Prepared: page, NextPageToken: next}, nil
}

// Preflight implements the call.
func (s *Service) Preflight(ctx context.Context, _ *provisionerv1.PreflightRequest) (*provisionerv1.PreflightResponse, error) {
	report, err := s.checker.Check(ctx)
	if err != nil {
		return nil, err
	}
	response := &provisionerv1.PreflightResponse{Store: &provisionerv1.StoreCheck{
		Path: report.Store.Path, FreeBytes: report.Store.FreeBytes, AllowedRoots: report.Store.Roots, Problem: report.Store.Problem,
	}}
	for _, tool := range report.Tools {
		response.Tools = append(response.Tools, &provisionerv1.ToolCheck{
			Name: string(tool.Name), Path: tool.Path, Version: tool.Version, NeededFor: tool.NeededFor, Optional: tool.Optional, Remedy: tool.Remedy,
		})
	}
	for _, engine := range report.Engines {
		check := &provisionerv1.EngineCheck{Kind: engine.Kind, Mode: engine.Mode, Available: len(engine.Missing) == 0}
		for _, name := range engine.Missing {
			check.MissingTools = append(check.MissingTools, string(name))
		}
		response.Engines = append(response.Engines, check)
	}
	return response, nil
}
