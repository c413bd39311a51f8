// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// testPatience is how long a test waits for what should take milliseconds.
const testPatience = 20 * time.Second

// node is a machine whose engines start at once, or when told to, and a service of it that is called over a socket.
type node struct {
	poolv1.PoolManagerServiceClient
	registry *registry.Registry
	// stop begins the shutdown of the service.
	stop context.CancelFunc
	// logs has a line for each call that has ended.
	logs *testkit.LogCapture

	// mu guards what follows.
	mu       sync.Mutex
	inFlight int
	killed   bool
	// refuse is what becomes of launches, if not nil.
	refuse error
	// hold, if not nil, keeps launches waiting until it is closed.
	hold chan struct{}
	// prepared counts the calls of Prepare.
	prepared int
	// engines are all that were launched.
	engines []*engine
	// stubborn is the replica whose engine does not let itself be stopped, if any.
	stubborn registry.ReplicaID
	// startsFail is why starts cannot be listed, if not nil.
	startsFail error
}

func newNode(t *testing.T, config Config) *node {
	t.Helper()
	n := &node{logs: testkit.NewLogCapture(t)}
	var err error
	if n.registry, err = registry.New(registry.Config{}); err != nil {
		t.Fatal(err)
	}
	pools, err := lifecycle.New(t.Context(), lifecycle.Config{
		Registry: n.registry, Preparer: n, Machine: n, Records: n, BootID: "boot", Random: func() float64 { return 0.5 },
	})
	if err != nil {
		t.Fatal(err)
	}
	config.Pools, config.Registry = pools, n.registry
	service, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	address := "unix://" + filepath.Join(testkit.ShortDir(t), "s")
	listen, err := serverkit.ParseListen(address)
	if err != nil {
		t.Fatal(err)
	}
	kit, err := serverkit.New(serverkit.Config{
		Logger:    n.logs.Logger,
		StopGrace: 3 * testPatience, // Who holds it up that long fails its test.
		Listens:   []serverkit.Listen{listen},
		Services:  []serverkit.Registration{func(r grpc.ServiceRegistrar) { poolv1.RegisterPoolManagerServiceServer(r, service) }},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	ended := make(chan error, 1)
	go func() { ended <- kit.Run(ctx) }()
	conn, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	n.PoolManagerServiceClient = poolv1.NewPoolManagerServiceClient(conn)
	t.Cleanup(func() {
		if err := pools.Close(context.Background(), 0); err != nil {
			t.Errorf("close the pools: %v", err)
		}
		_ = conn.Close()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case <-kit.Ready():
	case err := <-ended:
		t.Fatalf("serve: %v", err)
	}
	return n
}

func (n *node) Prepare(_ context.Context, spec *enginev1.PrepareSpec, _ registry.PoolID, report func(*enginev1.Progress)) (*enginev1.PreparedEngine, error) {
	n.be(func() { n.prepared++ })
	report(&enginev1.Progress{Event: &enginev1.Progress_Step{Step: &enginev1.Step{Id: "build", State: enginev1.StepState_STEP_STATE_RUNNING}}})
	return &enginev1.PreparedEngine{PreparedId: "prepared", Spec: spec}, nil
}

func (n *node) Prepared(_ context.Context, id string) (*enginev1.PreparedEngine, error) {
	return nil, reason.New(reason.PreparedNotFound, "never prepared", reason.Field("prepared_id"), reason.Meta("prepared_id", id))
}

func (n *node) Launch(ctx context.Context, request launch.Request, stage func(launch.Stage)) (lifecycle.Engine, error) {
	n.mu.Lock()
	refuse, hold := n.refuse, n.hold
	n.mu.Unlock()
	stage(launch.Stage{Phase: registry.PhaseLoading, PID: 7, Started: time.Now()})
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, &launch.Error{Exit: &registry.Exit{}, Err: context.Cause(ctx)}
		}
	}
	if refuse != nil {
		return nil, &launch.Error{Exit: &registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_ERROR, Code: 3, LastLines: []string{"boom"}}, Err: refuse}
	}
	stage(launch.Stage{Phase: registry.PhaseVerifying, PID: 7, Started: time.Now()})
	started := &engine{node: n, replica: request.Replica, done: make(chan struct{})}
	n.be(func() { n.engines = append(n.engines, started) })
	return started, nil
}

func (n *node) Adopt(context.Context, launch.Leftover, launch.Request, func(launch.Stage)) (lifecycle.Engine, error) {
	return nil, errors.New("nothing is left")
}

func (n *node) Leftovers(context.Context) (launch.Found, error) { return launch.Found{}, nil }

func (n *node) End(context.Context, launch.Leftover, string) error { return nil }

func (n *node) EndStray(context.Context, launch.Stray) error { return nil }

func (n *node) DeleteLogs(registry.PoolID) error { return nil }

func (n *node) KeepOnly(map[registry.PoolID]bool) {}

func (n *node) SavePool(state.PoolRecord) error { return nil }

func (n *node) RemovePool(string) error { return nil }

func (n *node) LoadPools() (state.LoadedPools, error) { return state.LoadedPools{}, nil }

func (n *node) Starts(pool string) ([]state.StartRecord, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.startsFail != nil {
		return nil, n.startsFail
	}
	return []state.StartRecord{
		{
			PoolID: pool, Replica: 1, Generation: 3, Edition: 2, PreparedID: "prepared", PID: 7, StartedAt: time.Unix(1, 0), ReadyAt: time.Unix(2, 0),
			StartedBy: "restart", EndedBy: "hung", Class: "OOM_HOST", Code: 4, Signal: "SIGKILL", Uptime: time.Minute, EndedAt: time.Unix(61, 0),
			LastLines: []string{"boom"}, RequestsCut: 2,
		},
		{PoolID: pool, Generation: 1, StartedBy: "preload", Error: "no such file", Class: "OF_TOMORROW"},
	}, nil
}

func (n *node) Generations(string) (map[int]uint64, error) { return nil, nil }

func (n *node) RemoveStarts(string) error { return nil }

// be changes the node, or looks at it.
func (n *node) be(change func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	change()
}

// prepares tells how often something was prepared.
func (n *node) prepares() (count int) {
	n.be(func() { count = n.prepared })
	return count
}

// engine is an engine of a node.
type engine struct {
	node    *node
	replica registry.ReplicaID
	done    chan struct{}
}

func (e *engine) Info() launch.Info {
	return launch.Info{Endpoint: "http://" + string(e.replica), PID: 7, Slots: 2, Started: time.Unix(1, 0), Ready: time.Unix(2, 0)}
}

func (e *engine) Done() <-chan struct{} { return e.done }

func (e *engine) Activity(context.Context) (launch.Activity, error) {
	e.node.mu.Lock()
	defer e.node.mu.Unlock()
	if e.node.inFlight < 0 {
		return launch.Activity{}, errors.New("it does not say")
	}
	return launch.Activity{InFlight: e.node.inFlight}, nil
}

func (e *engine) CPU() time.Duration { return 0 }

func (e *engine) HasCanary() bool { return false }

func (e *engine) Canary(context.Context) error { return nil }

func (e *engine) Prove(_ context.Context, proof launch.Proof) error {
	if proof.Contains == "nonsense" {
		return reason.New(reason.ProofFailed, "the answer is another", reason.Meta("check", "contains"), reason.Remedy("look at it"))
	}
	return nil
}

func (e *engine) Release() {}

func (e *engine) Withdraw() error { return nil }

func (e *engine) Offer() error { return nil }

func (e *engine) Stop(context.Context, launch.Ending) (launch.Stopped, error) {
	e.node.mu.Lock()
	defer e.node.mu.Unlock()
	if e.replica == e.node.stubborn {
		return launch.Stopped{}, reason.New(reason.StopFailed, "it hangs in the kernel")
	}
	return launch.Stopped{Killed: e.node.killed, Exit: registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_STOPPED}}, nil
}

func (e *engine) Bury(context.Context) (registry.Exit, error) {
	return registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_ERROR, Code: 1, Ended: e.Info().Ready.Add(time.Second)}, nil
}

// validSpec passes every rule of the contract.
func validSpec(id string) *poolv1.PoolSpec {
	return &poolv1.PoolSpec{PoolId: id, Workload: &poolv1.PoolSpec_Prepare{Prepare: &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "some", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: "/bin/engine"}}},
		Model:  &enginev1.ModelSpec{Uri: "file:/m.gguf"},
	}}}
}

// withDefaults is a copy of spec, which names no policy, with every default that the contract names.
func withDefaults(spec *poolv1.PoolSpec) *poolv1.PoolSpec {
	seconds := func(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }
	spec = proto.CloneOf(spec)
	spec.Replicas = max(spec.GetReplicas(), 1)
	spec.Residency = poolv1.Residency_RESIDENCY_PINNED
	spec.Restart = &poolv1.RestartPolicy{
		FirstDelay: seconds(1), MaxDelay: seconds(60), ImmediateAfter: seconds(60), ResetAfter: seconds(60),
		Breaker: &poolv1.BreakerPolicy{
			FailedStarts: 5, FailuresInWindow: 10, Window: seconds(600), OpenFor: seconds(300), MaxOpenFor: seconds(3600), CloseAfter: seconds(60),
		},
	}
	spec.Health = &poolv1.HealthPolicy{
		Interval: seconds(5), StallLimit: seconds(60), LoadStallLimit: seconds(120), CanaryInterval: seconds(300), CanaryTimeout: seconds(60),
	}
	return spec
}

// receiver is the reading end of a stream.
type receiver[M any] interface{ Recv() (*M, error) }

// all returns every message of a stream until it ends, and the error that it ends with, nil for a good end. It fails the
// test if the call itself failed.
func all[M any](t *testing.T, stream receiver[M], err error) ([]*M, error) {
	t.Helper()
	if err != nil {
		t.Fatalf("call: %v", err)
	}
	var messages []*M
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

// wantReason fails unless err came over the wire with this reason.
func wantReason(t *testing.T, err error, want reason.Reason) {
	t.Helper()
	_ = typedError(t, err, want)
}

// typedError is err, which must have come over the wire with this reason.
func typedError(t *testing.T, err error, want reason.Reason) *reason.Error {
	t.Helper()
	typed, ok := reason.As(err)
	if !ok || typed.Reason != want {
		t.Fatalf("error is %v, want %s", err, want)
	}
	return typed
}

func (n *node) preload(t *testing.T, spec *poolv1.PoolSpec) ([]*poolv1.PreloadResponse, error) {
	t.Helper()
	stream, err := n.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec})
	return all(t, stream, err)
}

func (n *node) mustPreload(t *testing.T, spec *poolv1.PoolSpec) *poolv1.Pool {
	t.Helper()
	messages, err := n.preload(t, spec)
	if err != nil {
		t.Fatalf("Preload(%v): %v", spec, err)
	}
	return messages[len(messages)-1].GetPool()
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	known, err := registry.New(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]Config{
		"nothing": {}, "no pools": {Registry: known}, "no registry": {Pools: &lifecycle.Pools{}},
		"negative heartbeat": {Registry: known, Pools: &lifecycle.Pools{}, Heartbeat: -1},
		"negative stall":     {Registry: known, Pools: &lifecycle.Pools{}, Stall: -1},
	} {
		if _, err := New(config); err == nil {
			t.Errorf("%s: New succeeded", name)
		}
	}
	s, err := New(Config{Registry: known, Pools: &lifecycle.Pools{}})
	if err != nil || s.heartbeat != 15*time.Second || s.stall != 30*time.Second {
		t.Errorf("New = %+v, %v, want what the contract says", s, err)
	}
}

func TestPreloadTellsItsWayAndEndsWithThePool(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	spec := validSpec("a")
	spec.Replicas = 2
	messages, err := n.preload(t, spec)
	if err != nil {
		t.Fatalf("Preload: %v", err)
	}
	var told []string
	for _, m := range messages[:len(messages)-1] {
		if step := m.GetProgress().GetStep(); step != nil {
			told = append(told, step.GetId()+" "+step.GetState().String())
		} else {
			told = append(told, m.GetPhase().String())
		}
	}
	want := []string{
		"LOAD_PHASE_PREPARING", "build STEP_STATE_RUNNING", "build STEP_STATE_DONE", "LOAD_PHASE_STARTING", "LOAD_PHASE_LOADING", "LOAD_PHASE_VERIFYING",
	}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	pool := messages[len(messages)-1].GetPool()
	if pool.GetState() != poolv1.PoolState_POOL_STATE_READY || len(pool.GetReplicas()) != 2 ||
		pool.GetReplicas()[1].GetEndpoint() != "http://a-1" || pool.GetReplicas()[1].GetSlotsTotal() != 2 {
		t.Errorf("pool is %v", pool)
	}
	if diff := cmp.Diff(withDefaults(spec), pool.GetSpec(), protocmp.Transform()); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	got, err := n.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "a"})
	if diff := cmp.Diff(pool, got.GetPool(), protocmp.Transform()); diff != "" || err != nil {
		t.Errorf("GetPool: %v (-preloaded +got):\n%s", err, diff)
	}
	if again := n.mustPreload(t, spec); again.GetRevision() != pool.GetRevision() {
		t.Errorf("an equal Preload made revision %d of %d", again.GetRevision(), pool.GetRevision())
	}
}

func TestPreloadRemembersItsRequestID(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.be(func() { n.refuse = reason.New(reason.WorkerStartFailed, "no") })
	for range 2 {
		stream, err := n.Preload(t.Context(), &poolv1.PreloadRequest{Spec: validSpec("a"), RequestId: "one"})
		_, err = all(t, stream, err)
		wantReason(t, err, reason.WorkerStartFailed)
	}
	if got := n.prepares(); got != 1 {
		t.Errorf("%d loads for one request id", got)
	}
}

func TestPreloadThatFails(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.be(func() {
		n.refuse = reason.New(reason.WorkerStartTimeout, "not ready", reason.Remedy("wait longer"), reason.Meta("last_answer", "503"))
	})
	_, err := n.preload(t, validSpec("a"))
	if typed := typedError(t, err, reason.WorkerStartTimeout); typed.Remedy == "" || typed.Metadata["last_answer"] != "503" {
		t.Errorf("error %+v has lost something", typed)
	}
	got, err := n.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "a"})
	if err != nil {
		t.Fatal(err)
	}
	pool := got.GetPool()
	if pool.GetState() != poolv1.PoolState_POOL_STATE_FAILED || pool.GetFailure().GetReason() != enginev1.Reason_REASON_WORKER_START_TIMEOUT {
		t.Errorf("pool is %v", pool)
	}
	if exit := pool.GetReplicas()[0].GetExit(); exit.GetCode() != 3 || len(exit.GetLastLogLines()) != 1 {
		t.Errorf("exit is %v", exit)
	}

	spec := validSpec("b")
	spec.Workload = &poolv1.PoolSpec_PreparedId{PreparedId: "sha256:" + string(make64('a'))}
	_, err = n.preload(t, spec)
	wantReason(t, err, reason.PreparedNotFound)
}

func make64(c byte) []byte {
	text := make([]byte, 64)
	for i := range text {
		text[i] = c
	}
	return text
}

func TestPreloadGoesOnWithoutItsCaller(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	hold := make(chan struct{})
	n.be(func() { n.hold = hold })
	ctx, leave := context.WithCancel(t.Context())
	stream, err := n.Preload(ctx, &poolv1.PreloadRequest{Spec: validSpec("a")})
	if err != nil {
		t.Fatal(err)
	}
	for phase := poolv1.LoadPhase(0); phase != poolv1.LoadPhase_LOAD_PHASE_LOADING; {
		message, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		phase = message.GetPhase()
	}
	leave()
	_, err = stream.Recv()
	wantReason(t, err, reason.Cancelled)
	close(hold)
	if pool := n.mustPreload(t, validSpec("a")); pool.GetState() != poolv1.PoolState_POOL_STATE_READY || n.prepares() != 1 {
		t.Errorf("pool is %s after %d loads, want READY after one", pool.GetState(), n.prepares())
	}
}

func TestCancelPreload(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	hold := make(chan struct{})
	n.be(func() { n.hold = hold })
	stream, err := n.Preload(t.Context(), &poolv1.PreloadRequest{Spec: validSpec("a")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancelled, err := n.CancelPreload(t.Context(), &poolv1.CancelPreloadRequest{PoolId: "a"})
	if err != nil || !cancelled.GetCancelled() {
		t.Errorf("CancelPreload = %v, %v, want true", cancelled, err)
	}
	_, err = all(t, stream, nil)
	wantReason(t, err, reason.Cancelled)
	_, err = n.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "a"})
	wantReason(t, err, reason.PoolNotFound)

	close(hold)
	n.mustPreload(t, validSpec("a"))
	cancelled, err = n.CancelPreload(t.Context(), &poolv1.CancelPreloadRequest{PoolId: "a"})
	if err != nil || cancelled.GetCancelled() {
		t.Errorf("CancelPreload of a pool that is READY = %v, %v, want false", cancelled, err)
	}
}

func TestDelete(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.mustPreload(t, validSpec("a"))
	_, err := n.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "a"})
	if typed := typedError(t, err, reason.PoolBusy); typed.Metadata["state"] != "READY" {
		t.Errorf("error %+v does not tell the state", typed)
	}
	stream, err := n.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "a"})
	if _, err := all(t, stream, err); err != nil {
		t.Fatalf("Drain: %v", err)
	}
	if _, err := n.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "a"}); err != nil {
		t.Errorf("DeletePool: %v", err)
	}
	_, err = n.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "a"})
	wantReason(t, err, reason.PoolNotFound)
}
