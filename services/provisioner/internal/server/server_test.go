// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/preflight"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/server"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

const id = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// preparer has one prepared engine and says two things on the way.
type preparer struct{}

func (preparer) Plan(spec *enginev1.PrepareSpec) (*plan.Plan, error) {
	p := &plan.Plan{Spec: spec}
	for work := plan.Fetch; work <= plan.Recording; work++ {
		p.Steps = append(p.Steps, plan.Step{ID: "step", Work: work})
	}
	p.Steps[0].Cached, p.Steps[0].SizeBytes, p.Steps[0].LastDuration = true, 7, time.Second
	return p, nil
}

func event(text string) *enginev1.Progress {
	return &enginev1.Progress{Event: &enginev1.Progress_Step{Step: &enginev1.Step{Id: text}}}
}

func (preparer) Prepare(_ context.Context, spec *enginev1.PrepareSpec, _ *enginev1.Consumer, send func(*enginev1.Progress) error) (*enginev1.PreparedEngine, error) {
	if err := errors.Join(send(event("a")), send(event("b"))); err != nil {
		return nil, err
	}
	if spec.GetModel().GetUri() == "file:/gone" {
		return nil, reason.New(reason.ModelNotFound, "no such model", reason.Field("spec.model.uri"))
	}
	return &enginev1.PreparedEngine{PreparedId: id}, nil
}

func (preparer) Cancel(_ context.Context, spec *enginev1.PrepareSpec, consumer *enginev1.Consumer) (bool, error) {
	if spec.GetModel().GetUri() == "file:/gone" {
		return false, reason.New(reason.ShuttingDown, "no time")
	}
	return consumer.GetPoolId() == "p", nil
}

func (preparer) Prepared(wanted string) (*enginev1.PreparedEngine, error) {
	if wanted != id {
		return nil, reason.New(reason.PreparedNotFound, "no such engine")
	}
	return &enginev1.PreparedEngine{PreparedId: id}, nil
}

func (preparer) List(_ context.Context, size int, token string) ([]*enginev1.PreparedEngine, string, error) {
	return make([]*enginev1.PreparedEngine, size), token + "+", nil
}

type checker struct{}

func (checker) Check(context.Context) (preflight.Report, error) {
	return preflight.Report{
		Tools: []toolchain.Tool{{Name: toolchain.CMake, NeededFor: "building", Optional: true, Problem: "not found", Remedy: "install it"}},
		Engines: []preflight.Engine{
			{Kind: "a", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_SOURCE, Missing: []toolchain.Name{toolchain.CMake}},
			{Kind: "b", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE},
		},
		Store: preflight.Store{Path: "/s", FreeBytes: 5, Roots: []string{"/r"}, Problem: "full"},
	}, nil
}

// dial serves on a socket and returns a client of it.
func dial(t *testing.T) provisionerv1.ProvisionerServiceClient {
	t.Helper()
	service, err := server.New(preparer{}, checker{})
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + filepath.Join(testkit.ShortDir(t), "s")
	listen, err := serverkit.ParseListen(address)
	if err != nil {
		t.Fatal(err)
	}
	kit, err := serverkit.New(serverkit.Config{Listens: []serverkit.Listen{listen}, Services: []serverkit.Registration{func(r grpc.ServiceRegistrar) {
		provisionerv1.RegisterProvisionerServiceServer(r, service)
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- kit.Run(ctx) }()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := conn.Close()
		stop()
		if err := errors.Join(err, <-ended); err != nil {
			t.Error(err)
		}
	})
	<-kit.Ready()
	return provisionerv1.NewProvisionerServiceClient(conn)
}

func spec(model string) *enginev1.PrepareSpec {
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: "/bin/x"}}},
		Model:  &enginev1.ModelSpec{Uri: model},
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	got, err := dial(t).Plan(t.Context(), &provisionerv1.PlanRequest{Spec: spec("file:/m")})
	if err != nil {
		t.Fatal(err)
	}
	want := &provisionerv1.PlannedStep{
		Id: "step", Kind: provisionerv1.StepKind_STEP_KIND_FETCH, Cached: true, SizeBytes: proto.Int64(7), LastDuration: durationpb.New(time.Second),
	}
	if diff := cmp.Diff(want, got.GetSteps()[0], protocmp.Transform()); diff != "" {
		t.Errorf("the first step (-want +got):\n%s", diff)
	}
	kinds := map[provisionerv1.StepKind]bool{}
	for _, step := range got.GetSteps() {
		kinds[step.GetKind()] = true
	}
	for number := range provisionerv1.StepKind_name {
		if kind := provisionerv1.StepKind(number); kinds[kind] == (kind == provisionerv1.StepKind_STEP_KIND_UNSPECIFIED) {
			t.Errorf("kind %v is among the steps: %t", kind, kinds[kind])
		}
	}
	if second := got.GetSteps()[1]; second.SizeBytes != nil || second.GetLastDuration() != nil {
		t.Errorf("what is not known is there: %v", second)
	}
}

func receive(stream grpc.ServerStreamingClient[provisionerv1.PrepareResponse]) (messages []*provisionerv1.PrepareResponse, err error) {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return messages, nil
		}
		if err != nil {
			return messages, err
		}
		messages = append(messages, message)
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	consumer := &enginev1.Consumer{PoolId: "p", ReplicaId: "p-0"}
	stream, err := dial(t).Prepare(t.Context(), &provisionerv1.PrepareRequest{Spec: spec("file:/m"), Consumer: consumer})
	if err != nil {
		t.Fatal(err)
	}
	got, err := receive(stream)
	if err != nil {
		t.Fatal(err)
	}
	want := []*provisionerv1.PrepareResponse{
		{Event: &provisionerv1.PrepareResponse_Progress{Progress: event("a")}},
		{Event: &provisionerv1.PrepareResponse_Progress{Progress: event("b")}},
		{Event: &provisionerv1.PrepareResponse_Prepared{Prepared: &enginev1.PreparedEngine{PreparedId: id, MadeFor: consumer}}},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Prepare (-want +got):\n%s", diff)
	}
}

func TestPrepareFailure(t *testing.T) {
	t.Parallel()
	stream, err := dial(t).Prepare(t.Context(), &provisionerv1.PrepareRequest{Spec: spec("file:/gone")})
	if err != nil {
		t.Fatal(err)
	}
	got, err := receive(stream)
	if len(got) != 2 || reason.Of(err) != reason.ModelNotFound {
		t.Errorf("Prepare: %d events, %v, want 2 and MODEL_NOT_FOUND", len(got), err)
	}
}

func TestCancelPrepare(t *testing.T) {
	t.Parallel()
	client := dial(t)
	for _, tt := range []struct {
		name, model string
		consumer    *enginev1.Consumer
		want        bool
		reason      reason.Reason
	}{
		{name: "one that waits", model: "file:/m", consumer: &enginev1.Consumer{PoolId: "p"}, want: true},
		{name: "another", model: "file:/m", consumer: &enginev1.Consumer{ReplicaId: "p"}},
		{name: "another request", model: "file:/m", consumer: &enginev1.Consumer{RequestId: "p"}},
		{name: "a failure", model: "file:/gone", consumer: &enginev1.Consumer{PoolId: "p"}, reason: reason.ShuttingDown},
		{name: "no consumer", model: "file:/m", reason: reason.InvalidParams},
		{name: "a consumer without a name", model: "file:/m", consumer: &enginev1.Consumer{}, reason: reason.InvalidParams},
		{name: "a spec that cannot be", consumer: &enginev1.Consumer{PoolId: "p"}, reason: reason.InvalidParams},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := client.CancelPrepare(t.Context(), &provisionerv1.CancelPrepareRequest{Spec: spec(tt.model), Consumer: tt.consumer})
			if got.GetCancelled() != tt.want || reason.Of(err) != tt.reason {
				t.Errorf("CancelPrepare = %v, %v, want %t, %v", got, err, tt.want, tt.reason)
			}
		})
	}
}

func TestGetPrepared(t *testing.T) {
	t.Parallel()
	client := dial(t)
	got, err := client.GetPrepared(t.Context(), &provisionerv1.GetPreparedRequest{PreparedId: id})
	if err != nil || got.GetPrepared().GetPreparedId() != id {
		t.Errorf("GetPrepared = %v, %v", got, err)
	}
	other := "sha256:" + strings.Repeat("0", 64)
	if _, err := client.GetPrepared(t.Context(), &provisionerv1.GetPreparedRequest{PreparedId: other}); reason.Of(err) != reason.PreparedNotFound {
		t.Errorf("another id: %v, want PREPARED_NOT_FOUND", err)
	}
	if _, err := client.GetPrepared(t.Context(), &provisionerv1.GetPreparedRequest{PreparedId: "x"}); reason.Of(err) != reason.InvalidParams {
		t.Errorf("no id: %v, want INVALID_PARAMS", err)
	}
}

func TestListPrepared(t *testing.T) {
	t.Parallel()
	got, err := dial(t).ListPrepared(t.Context(), &provisionerv1.ListPreparedRequest{PageSize: 3, PageToken: "t"})
	if err != nil || len(got.GetPrepared()) != 3 || got.GetNextPageToken() != "t+" {
		t.Errorf("ListPrepared = %v, %v", got, err)
	}
}

func TestPreflight(t *testing.T) {
	t.Parallel()
	got, err := dial(t).Preflight(t.Context(), &provisionerv1.PreflightRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &provisionerv1.PreflightResponse{
		Tools: []*provisionerv1.ToolCheck{{Name: "cmake", NeededFor: "building", Optional: true, Remedy: "install it"}},
		Engines: []*provisionerv1.EngineCheck{
			{Kind: "a", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_SOURCE, MissingTools: []string{"cmake"}},
			{Kind: "b", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE, Available: true},
		},
		Store: &provisionerv1.StoreCheck{Path: "/s", FreeBytes: 5, AllowedRoots: []string{"/r"}, Problem: "full"},
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("Preflight (-want +got):\n%s", diff)
	}
}
