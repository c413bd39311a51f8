// SPDX-License-Identifier: Apache-2.0

package serverkit_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func answer(context.Context, *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
	return &poolv1.GetPoolResponse{}, nil
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	service := func(to grpc.ServiceRegistrar) { poolv1.RegisterPoolManagerServiceServer(to, &pools{}) }
	unknown := func(to grpc.ServiceRegistrar) { to.RegisterService(&grpc.ServiceDesc{ServiceName: "not.there"}, nil) }
	listens := []serverkit.Listen{parse(t, "127.0.0.1:0")}
	tests := []struct {
		name string
		cfg  serverkit.Config
	}{
		{"no address", serverkit.Config{Services: []serverkit.Registration{service}}},
		{"no service", serverkit.Config{Listens: listens}},
		{"a service that is not in the contract", serverkit.Config{Listens: listens, Services: []serverkit.Registration{unknown}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if s, err := serverkit.New(tt.cfg); err == nil {
				t.Errorf("New = %v, want an error", s)
			}
		})
	}
}

func TestServesOnEveryAddress(t *testing.T) {
	t.Parallel()
	listens := []serverkit.Listen{socketListen(t), parse(t, "tcp://127.0.0.1:0")}
	r := serve(t, serverkit.Config{Listens: listens}, &pools{get: answer})
	addresses := r.Addresses()
	if len(addresses) != 2 || addresses[0] != listens[0].String() || strings.HasSuffix(addresses[1], ":0") {
		t.Fatalf("addresses = %v, want the socket and a real port", addresses)
	}
	for _, address := range addresses {
		if _, err := poolv1.NewPoolManagerServiceClient(dial(t, address)).GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "p"}); err != nil {
			t.Errorf("call over %s: %v", address, err)
		}
	}
	if err := r.Run(t.Context()); err == nil {
		t.Error("a second Run has no error")
	}
}

func TestRunOpensAllAddressesOrNone(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	socket, port := socketListen(t), parse(t, taken.Addr().String())
	s, err := serverkit.New(serverkit.Config{
		Listens:  []serverkit.Listen{socket, port},
		Services: []serverkit.Registration{func(to grpc.ServiceRegistrar) { poolv1.RegisterPoolManagerServiceServer(to, &pools{}) }},
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Run(t.Context())
	failed, ok := errors.AsType[*serverkit.ListenError](err)
	if !ok || failed.Listen != port || reason.Of(err) != reason.PortInUse {
		t.Errorf("Run = %v, want a *ListenError of %v with PORT_IN_USE", err, port)
	}
	if _, err := os.Lstat(socket.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if got := s.Addresses(); got != nil {
		t.Errorf("addresses = %v, want none", got)
	}
}

func TestStopWaitsForCallsInFlight(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	r := serve(t, serverkit.Config{StopGrace: patience}, &pools{get: func(ctx context.Context, _ *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
		close(begun)
		<-serverkit.Stopping(ctx)
		<-finish
		return &poolv1.GetPoolResponse{Pool: &poolv1.Pool{PoolId: "p"}}, ctx.Err()
	}})
	result := make(chan error, 1)
	client := r.client(t)
	go func() {
		got, err := client.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "p"})
		if err == nil && got.GetPool().GetPoolId() != "p" {
			err = errors.New("empty answer")
		}
		result <- err
	}()
	<-begun
	r.stop()
	select {
	case err := <-r.done:
		t.Fatalf("Run returned with a call in flight: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(finish)
	if err := <-result; err != nil {
		t.Errorf("the call in flight: %v", err)
	}
	if err := r.wait(t); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStopCutsWhatGoesOn(t *testing.T) {
	t.Parallel()
	r := serve(t, serverkit.Config{StopGrace: 20 * time.Millisecond}, &pools{
		watch: func(_ *poolv1.WatchRequest, s grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
			if err := s.Send(&poolv1.WatchResponse{ResumeToken: "1"}); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		},
	})
	stream, err := r.client(t).Watch(t.Context(), &poolv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	if _, err = stream.Recv(); reason.Of(err) != reason.ShuttingDown {
		t.Errorf("the stream ended with %v, want SHUTTING_DOWN", err)
	}
	if err := r.wait(t); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStopTellsHealthWatchersAndDoesNotWaitForThem(t *testing.T) {
	t.Parallel()
	r := serve(t, serverkit.Config{StopGrace: time.Hour}, &pools{})
	stream, err := healthv1.NewHealthClient(dial(t, r.Addresses()[0])).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := stream.Recv(); err != nil || got.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Fatalf("health = %v, %v", got, err)
	}
	r.stop()
	if got, err := stream.Recv(); err != nil || got.GetStatus() != healthv1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("health of a server that stops = %v, %v; want NOT_SERVING", got, err)
	}
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream goes on")
	}
	if err := r.wait(t); err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestStopAbandonsADeafHandler(t *testing.T) {
	t.Parallel()
	begun, release := make(chan struct{}), make(chan struct{})
	r := serve(t, serverkit.Config{StopGrace: time.Millisecond}, &pools{
		get: func(context.Context, *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
			close(begun)
			<-release
			return nil, errors.New("late")
		},
	})
	t.Cleanup(func() { close(release) })
	client := r.client(t)
	go func() { _, _ = client.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "p"}) }()
	<-begun
	if err := r.wait(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	if lines := r.logs.Lines("handlers ignore the end of their context"); len(lines) != 1 {
		t.Errorf("the log tells %d times of the handler, want once", len(lines))
	}
}

//nolint:paralleltest // the leak check looks at the whole process
func TestStopLeavesNothing(t *testing.T) {
	testkit.LeakCheck(t)
	socket := socketListen(t)
	r := serve(t, serverkit.Config{Listens: []serverkit.Listen{socket, parse(t, "127.0.0.1:0")}}, &pools{get: answer})
	if _, err := r.client(t).GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "p"}); err != nil {
		t.Fatal(err)
	}
	if err := r.wait(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Lstat(socket.Name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
