// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

const patience = 20 * time.Second

// pools counts calls; each of the first failures calls is UNAVAILABLE.
type pools struct {
	poolv1.UnimplementedPoolManagerServiceServer
	calls    atomic.Int64
	failures int64
	agent    atomic.Value
}

func (p *pools) outcome() error {
	if p.calls.Add(1) <= p.failures {
		return reason.New(reason.ShuttingDown, "not now")
	}
	return nil
}

func (p *pools) GetPool(ctx context.Context, r *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
	p.agent.Store(strings.Join(metadata.ValueFromIncomingContext(ctx, "user-agent"), ","))
	return &poolv1.GetPoolResponse{Pool: &poolv1.Pool{PoolId: r.GetPoolId()}}, p.outcome()
}

func (p *pools) DeletePool(context.Context, *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
	return &poolv1.DeletePoolResponse{}, p.outcome()
}

// Watch says synced, and ends with the server or the caller, or at once for the token "end".
func (p *pools) Watch(r *poolv1.WatchRequest, s grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
	if err := s.Send(&poolv1.WatchResponse{ResumeToken: "1", Event: &poolv1.WatchResponse_Synced{Synced: &poolv1.Synced{}}}); err != nil {
		return err
	}
	if r.GetResumeToken() == "end" {
		return nil
	}
	select {
	case <-serverkit.Stopping(s.Context()):
		return reason.New(reason.ShuttingDown, "going", reason.Remedy("come back"))
	case <-s.Context().Done():
		return s.Context().Err()
	}
}

// serve runs a server on the target and returns its real address and what stops it.
func serve(t *testing.T, target string, impl poolv1.PoolManagerServiceServer) (address string, stop func()) {
	t.Helper()
	listen, err := serverkit.ParseListen(target)
	if err != nil {
		t.Fatal(err)
	}
	server, err := serverkit.New(serverkit.Config{
		Logger:   testkit.NewLogCapture(t).Logger,
		Listens:  []serverkit.Listen{listen},
		Services: []serverkit.Registration{func(to grpc.ServiceRegistrar) { poolv1.RegisterPoolManagerServiceServer(to, impl) }},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	stop = func() {
		cancel()
		err := <-done
		if err != nil {
			t.Errorf("Run: %v", err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	<-server.Ready()
	return server.Addresses()[0], stop
}

func socket(t *testing.T) string {
	t.Helper()
	return "unix://" + filepath.Join(testkit.ShortDir(t), "s.sock")
}

func dial(t *testing.T, target string, opts ...client.Option) *grpc.ClientConn {
	t.Helper()
	conn, err := client.Dial(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestDialReachesSocketsAndLoopback(t *testing.T) {
	t.Parallel()
	for _, target := range []string{socket(t), "unix://" + filepath.Join(testkit.ShortDir(t), "a b%20?#.sock"), "tcp://127.0.0.1:0"} {
		impl := &pools{}
		address, _ := serve(t, target, impl)
		conn := dial(t, address, client.WithUserAgent("tester/1"))
		got, err := poolv1.NewPoolManagerServiceClient(conn).GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "p"})
		if err != nil || got.GetPool().GetPoolId() != "p" {
			t.Errorf("call over %s = %v, %v", address, got, err)
		}
		if agent := fmt.Sprint(impl.agent.Load()); !strings.HasPrefix(agent, "tester/1 ") {
			t.Errorf("user agent = %q", agent)
		}
	}
}

func TestDialRefusesOtherTargets(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"", "example.com:80", "tcp://0.0.0.0:1", "dns:///localhost:1", "unix:relative"} {
		conn, err := client.Dial(target)
		if e, ok := reason.As(err); !ok || e.Reason != reason.InvalidParams || e.Fields[0].Name != "target" {
			t.Errorf("Dial(%q) = %v, %v; want INVALID_PARAMS for target", target, conn, err)
		}
	}
}

func TestWaitReady(t *testing.T) {
	t.Parallel()
	target := socket(t)
	conn := dial(t, target)
	gone := errors.New("no patience")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, gone)
	defer cancel()
	if err := client.WaitReady(ctx, conn); !errors.Is(err, gone) {
		t.Errorf("without a server: %v, want the context's cause", err)
	}
	serve(t, target, &pools{})
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := client.WaitReady(ctx, conn); err != nil {
		t.Errorf("with a server: %v", err)
	}
	_ = conn.Close()
	if err := client.WaitReady(ctx, conn); err == nil {
		t.Error("on a closed connection there is no error")
	}
}

func TestReadsAreRepeatedAndWorkIsNot(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		failures int64
		call     func(context.Context, poolv1.PoolManagerServiceClient) error
		calls    int64
		want     reason.Reason
	}{
		{"a read that heals", 2, getPool, 3, reason.Unspecified},
		{"a read that does not", 10, getPool, 4, reason.ShuttingDown},
		{"a deletion", 1, deletePool, 1, reason.ShuttingDown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			impl := &pools{failures: tt.failures}
			address, _ := serve(t, socket(t), impl)
			err := tt.call(t.Context(), poolv1.NewPoolManagerServiceClient(dial(t, address)))
			if got := impl.calls.Load(); got != tt.calls || reason.Of(err) != tt.want {
				t.Errorf("%d calls and %v, want %d and %v", got, err, tt.calls, tt.want)
			}
			if _, typed := reason.As(err); err != nil && !typed {
				t.Errorf("error is a %T, want a *reason.Error", err)
			}
		})
	}
}

func getPool(ctx context.Context, pools poolv1.PoolManagerServiceClient) error {
	_, err := pools.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: "p"})
	return err
}

func deletePool(ctx context.Context, pools poolv1.PoolManagerServiceClient) error {
	_, err := pools.DeletePool(ctx, &poolv1.DeletePoolRequest{PoolId: "p"})
	return err
}

func TestErrorsOfTheConnectionAreTyped(t *testing.T) {
	t.Parallel()
	nobody := poolv1.NewPoolManagerServiceClient(dial(t, socket(t)))
	address, _ := serve(t, socket(t), &pools{})
	served := poolv1.NewPoolManagerServiceClient(dial(t, address))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		err  error
		code codes.Code
		want reason.Reason
	}{
		{"nobody there", deletePool(t.Context(), nobody), codes.Unavailable, reason.Unspecified},
		{"cancelled here", getPool(cancelled, served), codes.Canceled, reason.Cancelled},
		{"too large to send", getLarge(t.Context(), served), codes.ResourceExhausted, reason.LimitExceeded},
		{"invalid", getNone(t.Context(), served), codes.InvalidArgument, reason.InvalidParams},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, ok := reason.As(tt.err)
			if !ok || e.Reason != tt.want || status.Code(tt.err) != tt.code {
				t.Errorf("got %T %v, want a *reason.Error with %v, %v", tt.err, tt.err, tt.want, tt.code)
			}
		})
	}
}

func TestUnreachableServicesAreExplained(t *testing.T) {
	t.Parallel()
	folder := testkit.ShortDir(t)
	mute, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(folder, "mute.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	go func() { // ended by the listener's end
		for {
			conn, err := mute.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	tests := []struct {
		name, path string
		call       func(context.Context, poolv1.PoolManagerServiceClient) error
		cause      error
		says       string
	}{
		{"no socket", "none.sock", deletePool, syscall.ENOENT, "connect: no such file or directory"},
		{"no socket, tried again and again", "none.sock", getPool, syscall.ENOENT, "connect: no such file or directory"},
		{"a service that hangs up", "mute.sock", deletePool, nil, "the service ended the connection"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, "unix://"+filepath.Join(folder, tt.path))
			err := tt.call(t.Context(), poolv1.NewPoolManagerServiceClient(conn))
			if err == nil || err.Error() != tt.says || status.Code(err) != codes.Unavailable || reason.Of(err) != reason.Unspecified {
				t.Errorf("got %v, want %q and no reason", err, tt.says)
			}
			if tt.cause != nil && !errors.Is(err, tt.cause) {
				t.Errorf("%v is not %v", err, tt.cause)
			}
		})
	}
}

func TestStreamsEndTypedOrWithEOF(t *testing.T) {
	t.Parallel()
	address, stop := serve(t, socket(t), &pools{})
	pools := poolv1.NewPoolManagerServiceClient(dial(t, address))
	watch := func(token string) (first, second error) {
		stream, err := pools.Watch(t.Context(), &poolv1.WatchRequest{ResumeToken: token})
		if err != nil {
			t.Fatal(err)
		}
		_, first = stream.Recv()
		if token == "" {
			stop()
		}
		_, second = stream.Recv()
		return first, second
	}
	if first, second := watch("end"); first != nil || second != io.EOF { //nolint:errorlint // as gRPC promises it
		t.Errorf("a stream that ends well: %v, %v; want nil, EOF", first, second)
	}
	if first, _ := watch(strings.Repeat("x", 257)); !isTyped(first, reason.InvalidParams) {
		t.Errorf("a stream that is refused: %v, want a *reason.Error with INVALID_PARAMS", first)
	}
	if first, second := watch(""); first != nil || !isTyped(second, reason.ShuttingDown) {
		t.Errorf("a stream that is ended: %v, %v; want nil, a *reason.Error with SHUTTING_DOWN", first, second)
	}
}

func isTyped(err error, want reason.Reason) bool {
	e, ok := reason.As(err)
	return ok && e.Reason == want
}

func getLarge(ctx context.Context, pools poolv1.PoolManagerServiceClient) error {
	_, err := pools.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: strings.Repeat("x", wire.MaxRequestBytes)})
	return err
}

func getNone(ctx context.Context, pools poolv1.PoolManagerServiceClient) error {
	_, err := pools.GetPool(ctx, &poolv1.GetPoolRequest{})
	return err
}

// A Watch goes on over a server that ends and another that takes its place, and nothing is left of it.
//
//nolint:paralleltest // the leak check looks at the whole process
func TestWatchOutlivesItsServer(t *testing.T) {
	testkit.LeakCheck(t)
	target := socket(t)
	_, stop := serve(t, target, &pools{})
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan client.Event)
	ended := make(chan error, 1)
	conn := dial(t, target)
	go func() {
		ended <- client.Watch(ctx, poolv1.NewPoolManagerServiceClient(conn), nil, func(e client.Event) error {
			events <- e
			return nil
		})
	}()
	next := func(want client.EventKind) client.Event {
		t.Helper()
		select {
		case e := <-events:
			if e.Kind != want {
				t.Fatalf("event = %+v, want kind %v", e, want)
			}
			return e
		case <-time.After(patience):
			t.Fatalf("no event of kind %v", want)
		}
		return client.Event{}
	}
	next(client.KindSynced)
	stop()
	if e := next(client.KindInterrupted); reason.Of(e.Err) != reason.ShuttingDown {
		t.Errorf("interrupted by %v, want SHUTTING_DOWN", e.Err)
	}
	serve(t, target, &pools{})
	for e := range events {
		if e.Kind == client.KindSynced {
			break
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v, want the end of its context", err)
	}
}
