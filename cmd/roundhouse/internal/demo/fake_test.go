// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// The faults that the fakes have.
const (
	faultNone    = ""
	faultMissing = "missing" // a tool is not installed
	faultDies    = "dies"    // the pool manager ends at its start
	faultHangs   = "hangs"   // the engine never gets ready, and only a drain ends it
	faultWaits   = "waits"   // the engine is never started
	faultHurry   = "hurry"   // the person has no patience with the clean-up
	faultOrphan  = "orphan"  // the pool manager leaves a process behind
	faultCut     = "cut"     // the answer has no end
	faultForced  = "forced"  // the drain had to use force
	faultLitter  = "litter"  // the pool manager leaves a temporary file
)

// answerStream is a streamed chat completion.
const answerStream = `data: {"choices":[{"delta":{"role":"assistant"}}]}

data: {"choices":[{"delta":{"content":"Once"}}]}

data: {"choices":[{"delta":{"content":" upon"}}]}

data: {"choices":[],"usage":{"completion_tokens":2}}

`

// serveFake serves until the program is asked to end.
func serveFake(args []string, register func(*grpc.Server)) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	ctx := context.Background()
	path := strings.TrimPrefix(args[slices.Index(args, "--listen")+1], "unix://")
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 4
	}
	server := grpc.NewServer()
	register(server)
	go func() {
		<-signals
		if os.Getenv(faultVariable) == faultWaits && askedAgain(signals) {
			fmt.Println(askedTwice)
		}
		server.Stop()
	}()
	if err := server.Serve(listener); err != nil {
		return 1
	}
	return 0
}

// askedTwice is what a fake says if it was asked to end more than once.
const askedTwice = "asked twice"

// askedAgain tells whether a second request to end comes soon after the first.
func askedAgain(signals <-chan os.Signal) bool {
	select {
	case <-signals:
		return true
	case <-time.After(300 * time.Millisecond): // threads of one process die within a few
		return false
	}
}

type provisionerFake struct {
	provisionerv1.UnimplementedProvisionerServiceServer
}

func fakeProvisioner(args []string) int {
	return serveFake(args, func(s *grpc.Server) { provisionerv1.RegisterProvisionerServiceServer(s, provisionerFake{}) })
}

func (provisionerFake) Preflight(context.Context, *provisionerv1.PreflightRequest) (*provisionerv1.PreflightResponse, error) {
	check := &provisionerv1.EngineCheck{Kind: "xllamacpp", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE, Available: true}
	tool := &provisionerv1.ToolCheck{Name: "python3", Path: "/usr/bin/python3", Version: "3.11", NeededFor: "the engine"}
	if os.Getenv(faultVariable) == faultMissing {
		check.Available, check.MissingTools = false, []string{"python3"}
		tool = &provisionerv1.ToolCheck{Name: "python3", NeededFor: "the engine", Remedy: "apt install python3"}
	}
	return &provisionerv1.PreflightResponse{
		Tools: []*provisionerv1.ToolCheck{tool}, Engines: []*provisionerv1.EngineCheck{check}, Store: &provisionerv1.StoreCheck{FreeBytes: 1e9},
	}, nil
}

// poolsFake is a pool manager whose engine is a server in its own process.
type poolsFake struct {
	poolv1.UnimplementedPoolManagerServiceServer

	mu      sync.Mutex // guards what follows
	pool    *poolv1.Pool
	changed chan struct{}
	engine  *http.Server
	drained chan struct{}

	loads sync.WaitGroup // calls of Preload, which a drain ends.
}

func fakePoolManager(args []string) int {
	if os.Getenv(faultVariable) == faultDies {
		fmt.Fprintln(os.Stderr, "the state directory is on fire")
		return 3
	}
	fake := &poolsFake{pool: &poolv1.Pool{PoolId: poolID}, changed: make(chan struct{}), drained: make(chan struct{})}
	return serveFake(args, func(s *grpc.Server) { poolv1.RegisterPoolManagerServiceServer(s, fake) })
}

// become publishes the pool's next snapshot.
func (f *poolsFake) become(state poolv1.PoolState, replicas ...*poolv1.Replica) *poolv1.Pool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pool = &poolv1.Pool{PoolId: poolID, State: state, Replicas: replicas, Model: &poolv1.Model{Id: "m"}, Revision: f.pool.GetRevision() + 1}
	close(f.changed)
	f.changed = make(chan struct{})
	return f.pool
}

func (f *poolsFake) Preload(_ *poolv1.PreloadRequest, stream grpc.ServerStreamingServer[poolv1.PreloadResponse]) error {
	f.loads.Add(1)
	defer f.loads.Done()
	f.become(poolv1.PoolState_POOL_STATE_LOADING)
	for _, phase := range []poolv1.LoadPhase{
		poolv1.LoadPhase_LOAD_PHASE_PREPARING, poolv1.LoadPhase_LOAD_PHASE_STARTING, poolv1.LoadPhase_LOAD_PHASE_LOADING,
	} {
		if err := stream.Send(&poolv1.PreloadResponse{Event: &poolv1.PreloadResponse_Phase{Phase: phase}}); err != nil {
			return err
		}
	}
	switch os.Getenv(faultVariable) {
	case faultWaits:
		<-f.drained
		return reason.New(reason.Cancelled, "drained while loading")
	case faultHangs:
		engine := sleeper(context.WithoutCancel(stream.Context()), filepath.Dir(os.Args[0]))
		if err := engine.Start(); err != nil {
			return err
		}
		<-f.drained
		_ = engine.Process.Kill()
		_ = engine.Wait() // killed
		return reason.New(reason.Cancelled, "drained while loading")
	case faultOrphan:
		leave()
	case faultLitter:
		if err := os.WriteFile(filepath.Join(os.TempDir(), "litter"), nil, 0o600); err != nil {
			return err
		}
	}
	endpoint, err := f.startEngine(stream.Context())
	if err != nil {
		return err
	}
	pool := f.become(poolv1.PoolState_POOL_STATE_READY, &poolv1.Replica{
		ReplicaId: "demo-0", State: poolv1.ReplicaState_REPLICA_STATE_READY, Endpoint: endpoint, SlotsTotal: 1,
	})
	return stream.Send(&poolv1.PreloadResponse{Event: &poolv1.PreloadResponse_Pool{Pool: pool}})
}

func (f *poolsFake) startEngine(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.engine = &http.Server{ReadHeaderTimeout: chatTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		text := answerStream
		if os.Getenv(faultVariable) != faultCut {
			text += "data: [DONE]\n\n"
		}
		_, _ = w.Write([]byte(text)) // the demo tells what it misses
	})}
	go func() { _ = f.engine.Serve(listener) }() // ended by Drain
	return "http://" + listener.Addr().String(), nil
}

func (f *poolsFake) Drain(_ *poolv1.DrainRequest, stream grpc.ServerStreamingServer[poolv1.DrainResponse]) error {
	f.mu.Lock()
	if f.engine != nil {
		_ = f.engine.Close() // it has nothing to lose
	}
	f.mu.Unlock()
	close(f.drained)
	f.loads.Wait() // As the real one: a drain ends when nothing is left.
	result := &poolv1.DrainResult{
		Forced:   os.Getenv(faultVariable) == faultForced,
		Duration: durationpb.New(0), Pool: f.become(poolv1.PoolState_POOL_STATE_STOPPED),
	}
	return stream.Send(&poolv1.DrainResponse{Event: &poolv1.DrainResponse_Result{Result: result}})
}

func (f *poolsFake) Watch(_ *poolv1.WatchRequest, stream grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
	for {
		f.mu.Lock()
		pool, changed := f.pool, f.changed
		f.mu.Unlock()
		if err := stream.Send(&poolv1.WatchResponse{Event: &poolv1.WatchResponse_Upsert{Upsert: pool}}); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// sleeper is a process that only a signal ends.
func sleeper(ctx context.Context, dir string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(dir, sleeperProgram))
}
