// SPDX-License-Identifier: Apache-2.0

package command

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// fakeServices answers as a test says. A nil function means that the call is not expected.
type fakeServices struct {
	provisionerv1.UnimplementedProvisionerServiceServer
	poolv1.UnimplementedPoolManagerServiceServer

	plan      func(*provisionerv1.PlanRequest) (*provisionerv1.PlanResponse, error)
	prepare   func(*provisionerv1.PrepareRequest, grpc.ServerStreamingServer[provisionerv1.PrepareResponse]) error
	prepared  func(*provisionerv1.ListPreparedRequest) (*provisionerv1.ListPreparedResponse, error)
	preflight func() (*provisionerv1.PreflightResponse, error)
	preload   func(*poolv1.PreloadRequest, grpc.ServerStreamingServer[poolv1.PreloadResponse]) error
	cancel    func(*poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error)
	drain     func(*poolv1.DrainRequest, grpc.ServerStreamingServer[poolv1.DrainResponse]) error
	drainNode func(*poolv1.DrainNodeRequest, grpc.ServerStreamingServer[poolv1.DrainNodeResponse]) error
	reload    func(*poolv1.ReloadRequest, grpc.ServerStreamingServer[poolv1.ReloadResponse]) error
	unreload  func(*poolv1.CancelReloadRequest) (*poolv1.CancelReloadResponse, error)
	starts    func(*poolv1.ListStartsRequest) (*poolv1.ListStartsResponse, error)
	reset     func(*poolv1.ResetBreakerRequest) (*poolv1.ResetBreakerResponse, error)
	watch     func(*poolv1.WatchRequest, grpc.ServerStreamingServer[poolv1.WatchResponse]) error
	get       func(*poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error)
	list      func(*poolv1.ListPoolsRequest) (*poolv1.ListPoolsResponse, error)
	remove    func(*poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error)
	logs      func(*poolv1.LogsRequest, grpc.ServerStreamingServer[poolv1.LogsResponse]) error
}

func unexpected(call string) error { return reason.New(reason.Internal, "unexpected call of "+call) }

func (f *fakeServices) Plan(_ context.Context, request *provisionerv1.PlanRequest) (*provisionerv1.PlanResponse, error) {
	if f.plan == nil {
		return nil, unexpected("Plan")
	}
	return f.plan(request)
}

func (f *fakeServices) Prepare(request *provisionerv1.PrepareRequest, stream grpc.ServerStreamingServer[provisionerv1.PrepareResponse]) error {
	if f.prepare == nil {
		return unexpected("Prepare")
	}
	return f.prepare(request, stream)
}

func (f *fakeServices) ListPrepared(_ context.Context, request *provisionerv1.ListPreparedRequest) (*provisionerv1.ListPreparedResponse, error) {
	if f.prepared == nil {
		return nil, unexpected("ListPrepared")
	}
	return f.prepared(request)
}

func (f *fakeServices) Preflight(context.Context, *provisionerv1.PreflightRequest) (*provisionerv1.PreflightResponse, error) {
	if f.preflight == nil {
		return nil, unexpected("Preflight")
	}
	return f.preflight()
}

func (f *fakeServices) Preload(request *poolv1.PreloadRequest, stream grpc.ServerStreamingServer[poolv1.PreloadResponse]) error {
	if f.preload == nil {
		return unexpected("Preload")
	}
	return f.preload(request, stream)
}

func (f *fakeServices) CancelPreload(_ context.Context, request *poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error) {
	if f.cancel == nil {
		return nil, unexpected("CancelPreload")
	}
	return f.cancel(request)
}

func (f *fakeServices) Drain(request *poolv1.DrainRequest, stream grpc.ServerStreamingServer[poolv1.DrainResponse]) error {
	if f.drain == nil {
		return unexpected("Drain")
	}
	return f.drain(request, stream)
}

func (f *fakeServices) DrainNode(request *poolv1.DrainNodeRequest, stream grpc.ServerStreamingServer[poolv1.DrainNodeResponse]) error {
	if f.drainNode == nil {
		return unexpected("DrainNode")
	}
	return f.drainNode(request, stream)
}

func (f *fakeServices) Reload(request *poolv1.ReloadRequest, stream grpc.ServerStreamingServer[poolv1.ReloadResponse]) error {
	if f.reload == nil {
		return unexpected("Reload")
	}
	return f.reload(request, stream)
}

func (f *fakeServices) CancelReload(_ context.Context, request *poolv1.CancelReloadRequest) (*poolv1.CancelReloadResponse, error) {
	if f.unreload == nil {
		return nil, unexpected("CancelReload")
	}
	return f.unreload(request)
}

func (f *fakeServices) ListStarts(_ context.Context, request *poolv1.ListStartsRequest) (*poolv1.ListStartsResponse, error) {
	if f.starts == nil {
		return nil, unexpected("ListStarts")
	}
	return f.starts(request)
}

func (f *fakeServices) ResetBreaker(_ context.Context, request *poolv1.ResetBreakerRequest) (*poolv1.ResetBreakerResponse, error) {
	if f.reset == nil {
		return nil, unexpected("ResetBreaker")
	}
	return f.reset(request)
}

func (f *fakeServices) Watch(request *poolv1.WatchRequest, stream grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
	if f.watch == nil {
		return unexpected("Watch")
	}
	return f.watch(request, stream)
}

func (f *fakeServices) GetPool(_ context.Context, request *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
	if f.get == nil {
		return nil, unexpected("GetPool")
	}
	return f.get(request)
}

func (f *fakeServices) ListPools(_ context.Context, request *poolv1.ListPoolsRequest) (*poolv1.ListPoolsResponse, error) {
	if f.list == nil {
		return nil, unexpected("ListPools")
	}
	return f.list(request)
}

func (f *fakeServices) DeletePool(_ context.Context, request *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
	if f.remove == nil {
		return nil, unexpected("DeletePool")
	}
	return f.remove(request)
}

func (f *fakeServices) Logs(request *poolv1.LogsRequest, stream grpc.ServerStreamingServer[poolv1.LogsResponse]) error {
	if f.logs == nil {
		return unexpected("Logs")
	}
	return f.logs(request, stream)
}

// terminal is a person at the command line, with the fake as both services.
type terminal struct {
	stdout, stderr *screen
	out            io.Writer // in place of stdout, if it is not nil
	stdin          string
	interrupts     chan os.Signal
	target         string
}

// newTerminal serves the fake until the test ends.
func newTerminal(t *testing.T, fake *fakeServices) *terminal {
	t.Helper()
	path := filepath.Join(testkit.ShortDir(t), "s.sock")
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	server := grpc.NewServer()
	provisionerv1.RegisterProvisionerServiceServer(server, fake)
	poolv1.RegisterPoolManagerServiceServer(server, fake)
	done := make(chan error, 1)
	go func() { done <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
			t.Errorf("serve: %v", err)
		}
	})
	return &terminal{
		stdout: &screen{}, stderr: &screen{}, interrupts: make(chan os.Signal, 8), target: "unix://" + path,
	}
}

// run types a command and answers with its exit code.
func (x *terminal) run(t *testing.T, args ...string) int {
	t.Helper()
	var out io.Writer = x.stdout
	if x.out != nil {
		out = x.out
	}
	env := map[string]string{"ROUNDHOUSE_PROVISIONER": x.target, "ROUNDHOUSE_POOL_MANAGER": x.target}
	return Main(t.Context(), args, Env{
		Stdin: strings.NewReader(x.stdin), Stdout: out, Stderr: x.stderr,
		Getenv: func(name string) string { return env[name] }, Interrupts: x.interrupts, Version: "1.2.3",
	})
}

// interrupt is Ctrl-C.
func (x *terminal) interrupt() { x.interrupts <- os.Interrupt }

// screen is what was written, for several goroutines.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}
