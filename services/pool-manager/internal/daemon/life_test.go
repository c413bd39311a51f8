// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// spec passes the rules of the contract; what it says does not matter here.
func spec(pool string) *poolv1.PoolSpec {
	return &poolv1.PoolSpec{PoolId: pool, Workload: &poolv1.PoolSpec_Prepare{Prepare: &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "some", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: "/bin/engine"}}},
		Model:  &enginev1.ModelSpec{Uri: "file:/m.gguf"},
	}}}
}

// provisioner has prepared one engine.
type provisioner struct {
	provisionerv1.UnimplementedProvisionerServiceServer
	prepared *enginev1.PreparedEngine
}

func (p *provisioner) Prepare(_ *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
	return stream.Send(&provisionerv1.PrepareResponse{Event: &provisionerv1.PrepareResponse_Prepared{Prepared: p.prepared}})
}

// serveProvisioner serves an engine that has inFlight requests, always, and returns its address and the engine's folder.
func serveProvisioner(t *testing.T, inFlight int) (address, root string) {
	t.Helper()
	executable, words, err := processtest.Command(processtest.Script{
		Listen:   "127.0.0.1:0",
		Answers:  map[string]string{"/models": `{"id":"m"}`, "/metrics": "running " + strconv.Itoa(inFlight) + "\n"},
		Children: []processtest.Child{{Detach: processtest.Daemon, Script: processtest.Script{Lines: []string{"daemon up"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(executable)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	prepared := &enginev1.PreparedEngine{
		PreparedId: "sha256:" + strings.Repeat("1", 64),
		Process: &enginev1.ProcessLaunch{
			Executable: executable, Env: map[string]string{"GORACE": "atexit_sleep_ms=0"},
			Files: []*enginev1.ExecutedFile{{Path: executable, Sha256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content))}},
		},
		Model: &enginev1.PreparedModel{Id: "m"},
		Contract: &enginev1.RunContract{
			Ready:    &enginev1.HttpProbe{Path: "/health"},
			Identity: &enginev1.IdentityCheck{Field: &enginev1.JsonField{Path: "/models", Field: "id"}, Expected: "m"},
			Activity: &enginev1.ActivitySource{Path: "/metrics", Gauges: []string{"running"}},
			Stop:     []*enginev1.StopStep{{Signal: "SIGTERM", Wait: durationpb.New(200_000_000)}},
		},
	}
	for _, word := range words {
		prepared.Process.Args = append(prepared.Process.Args, &enginev1.Argument{Value: &enginev1.Argument_Literal{Literal: word}})
	}
	address = "unix://" + filepath.Join(testkit.ShortDir(t), "p")
	listens, err := daemonkit.ParseListens([]string{address})
	if err != nil {
		t.Fatal(err)
	}
	kit, err := serverkit.New(serverkit.Config{Listens: listens, Services: []serverkit.Registration{func(r grpc.ServiceRegistrar) {
		provisionerv1.RegisterProvisionerServiceServer(r, &provisioner{prepared: prepared})
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- kit.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve the provisioner: %v", err)
		}
	})
	<-kit.Ready()
	return address, filepath.Dir(executable)
}

// mustPreload makes pool a READY and returns the pid of its engine.
func mustPreload(t *testing.T, c poolv1.PoolManagerServiceClient) int {
	t.Helper()
	stream, err := c.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec("a")})
	for err == nil {
		var message *poolv1.PreloadResponse
		if message, err = stream.Recv(); message.GetPool() != nil {
			return int(message.GetPool().GetReplicas()[0].GetPid())
		}
	}
	t.Fatalf("Preload: %v", err)
	return 0
}

// alive tells whether there is a process and it is no zombie.
func alive(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	_, after, _ := strings.Cut(string(text), ") ")
	return err == nil && !strings.HasPrefix(after, "Z")
}

// with returns what tells the pids of living processes that have the nonce of this one. Those that are there at the end of
// the test are killed.
func with(t *testing.T, pid int) func() []int {
	t.Helper()
	environ := func(pid string) []string {
		text, _ := os.ReadFile(filepath.Join("/proc", pid, "environ"))
		return strings.Split(string(text), "\x00")
	}
	nonce := ""
	for _, entry := range environ(strconv.Itoa(pid)) {
		if strings.HasPrefix(entry, "ROUNDHOUSE_NONCE=") {
			nonce = entry
		}
		if strings.HasPrefix(entry, "SECRET=") {
			t.Errorf("the engine was given %q", entry)
		}
	}
	if nonce == "" {
		t.Fatalf("process %d has no nonce", pid)
	}
	family := func() (pids []int) {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			pid, err := strconv.Atoi(entry.Name())
			if err == nil && strings.Contains(strings.Join(environ(entry.Name()), "\x00"), nonce) && alive(pid) {
				pids = append(pids, pid)
			}
		}
		return pids
	}
	t.Cleanup(func() {
		for _, pid := range family() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	return family
}

// wantTwo waits until the engine and its daemon are up and all that there is.
func wantTwo(t *testing.T, state string, family func() []int) {
	t.Helper()
	testkit.Eventually(t, testPatience, "an engine and its daemon", func() (bool, string) {
		log, err := os.ReadFile(filepath.Join(state, "logs/a/0-1.log"))
		found := family()
		return err == nil && strings.Contains(string(log), "daemon up") && len(found) == 2, fmt.Sprint(found)
	})
}

func wantEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("%s holds %v, %v, want nothing", dir, entries, err)
	}
}

// At TERM the node is drained in the sight of its watchers, and then all is gone.
func TestTermDrainsTheNode(t *testing.T) {
	t.Parallel()
	provisioner, root := serveProvisioner(t, 0)
	socket, state := filepath.Join(testkit.ShortDir(t), "s"), t.TempDir()
	p := start(t, "--listen", "unix://"+socket, "--listen", "127.0.0.1:0", "--state-dir", state, "--provisioner", provisioner, "--store-root", root)
	c := connect(t, p, "unix://"+socket)
	watch, err := c.Watch(t.Context(), &poolv1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pid := mustPreload(t, c)
	family := with(t, pid)
	wantTwo(t, state, family)
	for _, name := range []string{"replicas/a-0-g1.json", "handoff/a-0.json", "logs/a/0-1.log"} {
		if _, err := os.Stat(filepath.Join(state, name)); err != nil {
			t.Errorf("while it runs: %v", err)
		}
	}

	p.signal(t, syscall.SIGTERM)
	var states []string
	for err == nil {
		var message *poolv1.WatchResponse
		message, err = watch.Recv()
		if pool := message.GetUpsert(); pool != nil {
			states = append(states, strings.TrimPrefix(pool.GetState().String(), "POOL_STATE_"))
		}
	}
	if reason.Of(err) != reason.ShuttingDown {
		t.Errorf("the watch ended with %v, want SHUTTING_DOWN", err)
	}
	if told := strings.Join(states, " "); !strings.Contains(told, "DRAINING") || !strings.HasSuffix(told, " STOPPED") {
		t.Errorf("watchers saw %s", told)
	}
	if code := p.code(t); code != daemonkit.ExitOK {
		t.Errorf("exit code %d, want %d", code, daemonkit.ExitOK)
	}
	if found := family(); len(found) > 0 {
		t.Errorf("processes of the engine are left: %v", found)
	}
	wantEmpty(t, filepath.Join(state, "replicas"))
	wantEmpty(t, filepath.Join(state, "handoff"))
	wantEmpty(t, filepath.Dir(socket))
}

// A second signal leaves the engines to the next start, which takes them over.
func TestSecondSignalEndsItAtOnce(t *testing.T) {
	t.Parallel()
	provisioner, root := serveProvisioner(t, 1)
	socket, state := filepath.Join(testkit.ShortDir(t), "s"), t.TempDir()
	config := file(t, "shutdown:\n  drain_deadline: 1h\n")
	args := []string{"--config", config, "--listen", "unix://" + socket, "--state-dir", state, "--provisioner", provisioner, "--store-root", root}
	first := start(t, args...)
	pid := mustPreload(t, connect(t, first, "unix://"+socket))
	family := with(t, pid)
	wantTwo(t, state, family)
	first.signal(t, syscall.SIGTERM)
	first.says(t, "draining the node")
	first.signal(t, syscall.SIGTERM)
	if code := first.code(t); code != -1 {
		t.Errorf("exit code %d, want the end by a signal", code)
	}
	if found := family(); len(found) != 2 {
		t.Errorf("processes of the engine: %v, want both", found)
	}
	second := start(t, args...)
	c := connect(t, second, "unix://"+socket)
	response, err := c.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "a"})
	if err != nil {
		t.Fatalf("GetPool: %v", err)
	}
	if pool := response.GetPool(); pool.GetState() != poolv1.PoolState_POOL_STATE_READY || !pool.GetReplicas()[0].GetAdopted() || int(pool.GetReplicas()[0].GetPid()) != pid {
		t.Errorf("pool is %v, want it READY with process %d taken over", pool, pid)
	}
	if found := family(); len(found) != 2 {
		t.Errorf("processes of the engine: %v, want both", found)
	}
	stream, err := c.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "a", Deadline: durationpb.New(0)})
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("Drain: %v", err)
	}
	if found := family(); len(found) > 0 {
		t.Errorf("processes of the engine are left: %v", found)
	}
	wantEmpty(t, filepath.Join(state, "replicas"))
	wantEmpty(t, filepath.Join(state, "handoff"))
	second.signal(t, syscall.SIGTERM)
	if code := second.code(t); code != daemonkit.ExitOK {
		t.Errorf("exit code %d, want %d", code, daemonkit.ExitOK)
	}
}

// While requests are in flight the node waits for its deadline and no longer.
func TestTermCutsRequestsAtTheDeadline(t *testing.T) {
	t.Parallel()
	provisioner, root := serveProvisioner(t, 1)
	socket := filepath.Join(testkit.ShortDir(t), "s")
	p := start(t, "--config", file(t, "shutdown:\n  drain_deadline: 300ms\n"), "--listen", "unix://"+socket, "--state-dir", t.TempDir(),
		"--provisioner", provisioner, "--store-root", root)
	family := with(t, mustPreload(t, connect(t, p, "unix://"+socket)))
	p.signal(t, syscall.SIGTERM)
	if code := p.code(t); code != daemonkit.ExitOK {
		t.Errorf("exit code %d, want %d", code, daemonkit.ExitOK)
	}
	if !strings.Contains(p.stderr.String(), `"requests_cut":1`) {
		t.Errorf("it does not say that a request was cut:\n%s", &p.stderr)
	}
	if found := family(); len(found) > 0 {
		t.Errorf("processes of the engine are left: %v", found)
	}
}
