// SPDX-License-Identifier: Apache-2.0

package serverkit_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func TestRequestID(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	r := serve(t, serverkit.Config{}, &pools{get: func(ctx context.Context, _ *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
		seen <- serverkit.RequestID(ctx)
		return &poolv1.GetPoolResponse{}, nil
	}})
	client := r.client(t)
	tests := []struct {
		name  string
		given []string
		kept  bool
	}{
		{"a fit one", []string{"abc-123"}, true},
		{"the longest", []string{strings.Repeat("x", 128)}, true},
		{"none", nil, false},
		{"too long", []string{strings.Repeat("x", 129)}, false},
		{"with a space", []string{"a b"}, false},
		{"two", []string{"a", "b"}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var header metadata.MD
			ctx := metadata.NewOutgoingContext(t.Context(), metadata.MD{"x-request-id": tt.given})
			if _, err := client.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: "p"}, grpc.Header(&header)); err != nil {
				t.Fatal(err)
			}
			handler, returned := <-seen, header.Get("x-request-id")
			if len(returned) != 1 || returned[0] != handler {
				t.Fatalf("header has %q, the handler saw %q", returned, handler)
			}
			if tt.kept {
				if handler != tt.given[0] {
					t.Errorf("id = %q, want %q", handler, tt.given[0])
				}
				return
			}
			if id, err := uuid.Parse(handler); err != nil || id.Version() != 7 {
				t.Errorf("id = %q, want a UUID of version 7", handler)
			}
		})
	}
}

func TestHandlerErrorsAreTyped(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		err    error
		code   codes.Code
		reason reason.Reason
	}{
		{"typed", fmt.Errorf("look: %w", reason.New(reason.PoolNotFound, "no pool")), codes.NotFound, reason.PoolNotFound},
		{"status", status.Error(codes.Unimplemented, "x"), codes.Unimplemented, reason.Unspecified},
		{"any", errors.New("x"), codes.Internal, reason.Internal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, serverkit.Config{}, &pools{
				get: func(context.Context, *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) { return nil, tt.err },
				watch: func(*poolv1.WatchRequest, grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
					return tt.err
				},
			})
			_, unary := r.client(t).GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "p"})
			for kind, err := range map[string]error{"unary": unary, "stream": firstError(t, r.client(t), &poolv1.WatchRequest{})} {
				if status.Code(err) != tt.code || reason.Of(err) != tt.reason {
					t.Errorf("%s: got %v, want %v %v", kind, err, tt.code, tt.reason)
				}
			}
		})
	}
}

// A stream tells its id with its first message; a call that fails tells it at the end and sends no header before, for
// clients repeat only calls without one.
func TestRequestIDOfStreamsAndFailures(t *testing.T) {
	t.Parallel()
	r := serve(t, serverkit.Config{}, &pools{
		get: func(context.Context, *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
			return nil, reason.New(reason.ShuttingDown, "no")
		},
		watch: func(r *poolv1.WatchRequest, s grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
			if r.GetResumeToken() == "fail" {
				return reason.New(reason.ShuttingDown, "no")
			}
			return s.Send(&poolv1.WatchResponse{})
		},
	})
	client := r.client(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "id-1")
	watch := func(token string) (header, trailer metadata.MD) {
		stream, err := client.Watch(ctx, &poolv1.WatchRequest{ResumeToken: token})
		if err != nil {
			t.Fatal(err)
		}
		_, _ = stream.Recv()
		_, _ = stream.Recv()
		if header, err = stream.Header(); err != nil {
			t.Fatal(err)
		}
		return header, stream.Trailer()
	}
	if header, _ := watch(""); !cmp.Equal(header.Get("x-request-id"), []string{"id-1"}) {
		t.Errorf("header of a stream = %v", header)
	}
	header, trailer := watch("fail")
	if len(header) != 0 || !cmp.Equal(trailer.Get("x-request-id"), []string{"id-1"}) {
		t.Errorf("a failed stream has header %v, trailer %v", header, trailer)
	}
	header, trailer = nil, nil
	_, _ = client.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: "p"}, grpc.Header(&header), grpc.Trailer(&trailer))
	if len(header) != 0 || !cmp.Equal(trailer.Get("x-request-id"), []string{"id-1"}) {
		t.Errorf("a failed call has header %v, trailer %v", header, trailer)
	}
}

// firstError is the error of the first receive of a Watch.
func firstError(t *testing.T, client poolv1.PoolManagerServiceClient, request *poolv1.WatchRequest) error {
	t.Helper()
	stream, err := client.Watch(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	return err
}

func TestPanicsEndTheirCallOnly(t *testing.T) {
	t.Parallel()
	r := serve(t, serverkit.Config{}, &pools{
		get: func(context.Context, *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) { panic("secret") },
		watch: func(*poolv1.WatchRequest, grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
			panic("secret")
		},
		delete: func(context.Context, *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
			return &poolv1.DeletePoolResponse{}, nil
		},
	})
	client := r.client(t)
	_, unary := client.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "p"})
	for kind, err := range map[string]error{"unary": unary, "stream": firstError(t, client, &poolv1.WatchRequest{})} {
		if reason.Of(err) != reason.Internal || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: got %v, want INTERNAL without the panic's text", kind, err)
		}
	}
	if _, err := client.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "p"}); err != nil {
		t.Errorf("the next call: %v", err)
	}
	lines := r.logs.Lines("handler panicked")
	if len(lines) != 2 || lines[0].Fields["panic"] != "secret" || !strings.Contains(fmt.Sprint(lines[0].Fields["stack"]), "call_test.go") {
		t.Errorf("logged %v, want the panics with their stacks", lines)
	}
}

func TestRequestLog(t *testing.T) {
	t.Parallel()
	r := serve(t, serverkit.Config{}, &pools{
		get: answer,
		delete: func(_ context.Context, r *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
			if r.GetPoolId() == "broken" {
				return nil, errors.New("disk on fire")
			}
			return nil, reason.New(reason.PoolBusy, "still running")
		},
	})
	client := r.client(t)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "id-1")
	_, _ = client.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: "p1"})
	_, _ = client.DeletePool(ctx, &poolv1.DeletePoolRequest{PoolId: "p2"})
	_, _ = client.DeletePool(ctx, &poolv1.DeletePoolRequest{PoolId: "broken"})
	_ = firstError(t, client, &poolv1.WatchRequest{ResumeToken: strings.Repeat("x", 257)})
	_, _ = healthv1.NewHealthClient(dial(t, r.Addresses()[0])).Check(ctx, &healthv1.HealthCheckRequest{})

	want := []testkit.LogLine{
		{Level: zapcore.InfoLevel, Fields: map[string]any{"method": poolv1.PoolManagerService_GetPool_FullMethodName, "code": "OK", "pool_id": "p1"}},
		{Level: zapcore.InfoLevel, Fields: map[string]any{
			"method": poolv1.PoolManagerService_DeletePool_FullMethodName, "code": "Aborted", "pool_id": "p2", "reason": "POOL_BUSY",
			"error": "still running",
		}},
		{Level: zapcore.ErrorLevel, Fields: map[string]any{
			"method": poolv1.PoolManagerService_DeletePool_FullMethodName, "code": "Internal", "pool_id": "broken", "reason": "INTERNAL",
			"error": "disk on fire",
		}},
		{Level: zapcore.InfoLevel, Fields: map[string]any{
			"method": poolv1.PoolManagerService_Watch_FullMethodName, "code": "InvalidArgument", "reason": "INVALID_PARAMS",
		}},
		{Level: zapcore.DebugLevel, Fields: map[string]any{"method": healthv1.Health_Check_FullMethodName, "code": "OK"}},
	}
	testkit.Eventually(t, patience, "one line for each call", func() (bool, string) {
		n := len(r.logs.Lines("request"))
		return n >= len(want), fmt.Sprint(n)
	})
	got := r.logs.Lines("request")
	if len(got) != len(want) {
		t.Fatalf("%d lines, want %d", len(got), len(want))
	}
	for i, line := range got {
		want[i].Message = "request"
		if line.Fields["peer_uid"] != uint32(os.Geteuid()) || line.Fields["peer_pid"] != int32(os.Getpid()) || line.Fields["duration"] == nil {
			t.Errorf("line %d: no peer or duration: %v", i, line.Fields)
		}
		if id := line.Fields["request_id"]; i != 3 && id != "id-1" {
			t.Errorf("line %d: request_id = %v", i, id)
		}
		for _, key := range []string{"peer_uid", "peer_pid", "duration", "request_id"} {
			delete(line.Fields, key)
		}
		if i == 3 {
			delete(line.Fields, "error")
		}
		if diff := cmp.Diff(want[i], line); diff != "" {
			t.Errorf("line %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestHealthAndReflection(t *testing.T) {
	t.Parallel()
	const channelz = "grpc.channelz.v1.Channelz"
	tests := []struct {
		name    string
		listens []serverkit.Listen
		extra   []string
	}{
		{"sockets only", []serverkit.Listen{socketListen(t)}, []string{channelz}},
		{"with loopback", []serverkit.Listen{parse(t, "127.0.0.1:0"), socketListen(t)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := serve(t, serverkit.Config{Listens: tt.listens}, &pools{})
			conn := dial(t, r.Addresses()[0])
			for _, service := range []string{"", "roundhouse.pool.v1.PoolManagerService"} {
				got, err := healthv1.NewHealthClient(conn).Check(t.Context(), &healthv1.HealthCheckRequest{Service: service})
				if err != nil || got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
					t.Errorf("health of %q = %v, %v", service, got, err)
				}
			}
			want := slices.Concat(tt.extra, []string{
				"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection",
				"roundhouse.pool.v1.PoolManagerService",
			})
			if diff := cmp.Diff(want, services(t, conn)); diff != "" {
				t.Errorf("services (-want +got):\n%s", diff)
			}
		})
	}
}

// services lists what reflection tells.
func services(t *testing.T, conn *grpc.ClientConn) []string {
	t.Helper()
	stream, err := reflectionv1.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{
		MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{},
	}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		names = append(names, service.GetName())
	}
	return names
}
