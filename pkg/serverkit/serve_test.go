// SPDX-License-Identifier: Apache-2.0

package serverkit_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// patience is how long anything in these tests may take on a busy machine.
const patience = 20 * time.Second

// pools is a service whose methods a test gives.
type pools struct {
	poolv1.UnimplementedPoolManagerServiceServer
	get    func(context.Context, *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error)
	delete func(context.Context, *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error)
	watch  func(*poolv1.WatchRequest, grpc.ServerStreamingServer[poolv1.WatchResponse]) error
}

func (p *pools) GetPool(ctx context.Context, r *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
	return p.get(ctx, r)
}

func (p *pools) DeletePool(ctx context.Context, r *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
	return p.delete(ctx, r)
}

func (p *pools) Watch(r *poolv1.WatchRequest, s grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
	return p.watch(r, s)
}

// running is a server under test.
type running struct {
	*serverkit.Server
	stop func() // ends the server's context
	done chan error
	logs *testkit.LogCapture
}

// wait ends the server and returns the error of its Run.
func (r *running) wait(t *testing.T) error {
	t.Helper()
	r.stop()
	select {
	case err := <-r.done:
		r.done <- err
		return err
	case <-time.After(patience):
		t.Fatal("the server does not stop")
		return nil
	}
}

// socketListen is a new socket.
func socketListen(t *testing.T) serverkit.Listen {
	t.Helper()
	return parse(t, "unix://"+filepath.Join(testkit.ShortDir(t), "s.sock"))
}

func parse(t *testing.T, text string) serverkit.Listen {
	t.Helper()
	listen, err := serverkit.ParseListen(text)
	if err != nil {
		t.Fatal(err)
	}
	return listen
}

// serve runs a server until the test ends. Without listens in cfg it is on a socket of its own.
func serve(t *testing.T, cfg serverkit.Config, impl poolv1.PoolManagerServiceServer) *running {
	t.Helper()
	r := &running{done: make(chan error, 1), logs: testkit.NewLogCapture(t)}
	cfg.Logger = r.logs.Logger
	if cfg.Listens == nil {
		cfg.Listens = []serverkit.Listen{socketListen(t)}
	}
	cfg.Services = []serverkit.Registration{func(to grpc.ServiceRegistrar) { poolv1.RegisterPoolManagerServiceServer(to, impl) }}
	var err error
	if r.Server, err = serverkit.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.stop = cancel
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() {
		if err := r.wait(t); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-r.Ready():
	case err := <-r.done:
		r.done <- err
		t.Fatalf("Run: %v", err)
	}
	return r
}

// dial is a plain connection, without what package client adds, to one of the server's addresses.
func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	network, name, _ := strings.Cut(address, "://")
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, name)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// client is a client on the server's first address.
func (r *running) client(t *testing.T) poolv1.PoolManagerServiceClient {
	t.Helper()
	return poolv1.NewPoolManagerServiceClient(dial(t, r.Addresses()[0]))
}
