// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

func TestMain(m *testing.M) {
	processtest.Main()
	os.Exit(m.Run())
}

// testPatience is how long a test waits for what should take milliseconds.
const testPatience = 20 * time.Second

// theHost returns the one Host of this program.
var theHost = sync.OnceValues(process.New)

// world is a Launcher on this machine, with folders of its own.
type world struct {
	config     Config
	launcher   *Launcher
	logs       *testkit.LogCapture
	stateDir   string
	handoffDir string
	logDir     string
	host       *process.Host
	records    *state.Store
	// extra is a trusted folder besides that of the engine.
	extra string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		logs: testkit.NewLogCapture(t), stateDir: filepath.Join(dir, "state"), handoffDir: filepath.Join(dir, "handoff"),
		extra: filepath.Join(dir, "store"),
	}
	if err := os.Mkdir(w.extra, 0o700); err != nil {
		t.Fatal(err)
	}
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host, err := theHost()
	if err != nil {
		t.Fatal(err)
	}
	records, err := state.Open(state.Config{Dir: w.stateDir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = records.Close() })
	files, err := handoff.Open(handoff.Config{Dir: w.handoffDir})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := trust.New(trust.Config{Roots: []string{filepath.Dir(executable), w.extra}})
	if err != nil {
		t.Fatal(err)
	}
	prober, err := probe.New(probe.Config{Limit: testPatience})
	if err != nil {
		t.Fatal(err)
	}
	w.logDir = filepath.Join(dir, "logs [0-9")
	logs, err := NewFileLogs(w.logDir)
	if err != nil {
		t.Fatal(err)
	}
	w.host, w.records = host, records
	w.config = Config{
		Host: HostOf(host), Records: records, Handoff: files, Trust: verifier, Prober: prober,
		Logs: logs, Env: process.BaseEnv(os.Environ()), Logger: w.logs.Logger,
	}
	if w.launcher, err = New(w.config); err != nil {
		t.Fatal(err)
	}
	return w
}

// ready is an engine as it should be: it serves model "m" on a port of its choice, in 3 slots.
func ready() processtest.Script {
	return processtest.Script{
		Listen: "127.0.0.1:0", ReadyLine: "listening on %s",
		Answers: map[string]string{
			"/models":  `{"data":[{"id":"m"}]}`,
			"/props":   `{"total_slots":3}`,
			"/metrics": "running 2\nwaiting 1\n",
		},
	}
}

// hash returns a file as a prepared engine records it.
func hash(t testing.TB, path string) *enginev1.ExecutedFile {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	return &enginev1.ExecutedFile{Path: path, Sha256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content))}
}

// request asks for the first start of replica 0 of pool p, which plays the script.
func request(t testing.TB, s processtest.Script) Request {
	t.Helper()
	executable, words, err := processtest.Command(s)
	if err != nil {
		t.Fatal(err)
	}
	args := make([]*enginev1.Argument, 0, len(words)+2)
	for _, word := range words {
		args = append(args, &enginev1.Argument{Value: &enginev1.Argument_Literal{Literal: word}})
	}
	for _, p := range []enginev1.Placeholder{enginev1.Placeholder_PLACEHOLDER_HOST, enginev1.Placeholder_PLACEHOLDER_PORT} {
		args = append(args, &enginev1.Argument{Value: &enginev1.Argument_Placeholder{Placeholder: p}})
	}
	return Request{
		Pool: "p", Replica: "p-0", Generation: 1,
		Prepared: &enginev1.PreparedEngine{
			PreparedId: "sha256:1",
			Engine:     &enginev1.EngineIdentity{Kind: "some", Version: "v7", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE},
			Process: &enginev1.ProcessLaunch{
				Executable: executable, Args: args, Env: map[string]string{"SOME": "value"},
				Files: []*enginev1.ExecutedFile{hash(t, executable)},
			},
			Model: &enginev1.PreparedModel{Id: "m", Files: []*enginev1.ModelFile{{Path: "/models/m.gguf", SizeBytes: 1 << 30}}},
			Contract: &enginev1.RunContract{
				Ready:        &enginev1.HttpProbe{Path: "/health", Status: 200},
				ReadyLogHint: "listening",
				Identity: &enginev1.IdentityCheck{
					Field: &enginev1.JsonField{Path: "/models", Field: "data[0].id"}, Expected: "m",
				},
				Slots:          &enginev1.JsonField{Path: "/props", Field: "total_slots"},
				Activity:       &enginev1.ActivitySource{Path: "/metrics", Gauges: []string{"running", "waiting"}},
				Stop:           []*enginev1.StopStep{{Signal: "SIGTERM", Wait: durationpb.New(testPatience)}},
				StartupTimeout: durationpb.New(testPatience),
			},
		},
	}
}

func ignoreStage(Stage) {}

// mustLaunch launches an engine that is gone when the test ends.
func (w *world) mustLaunch(t testing.TB, r Request) *Engine {
	t.Helper()
	e, err := w.launcher.Launch(t.Context(), r, ignoreStage)
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	t.Cleanup(func() {
		if _, err := e.Stop(context.Background(), Ending{By: "test"}); err != nil {
			t.Errorf("Stop at the end: %v", err)
		}
	})
	return e
}

// loaded returns the records on disk.
func (w *world) loaded(t *testing.T) []state.Record {
	t.Helper()
	loaded, err := w.config.Records.Load()
	if err != nil {
		t.Fatal(err)
	}
	return loaded.Records
}

// starts returns what is on record of the starts of pool p that have ended, newest first.
func (w *world) starts(t *testing.T) []state.StartRecord {
	t.Helper()
	starts, err := w.records.Starts("p")
	if err != nil {
		t.Fatal(err)
	}
	return starts
}

// onlyStart returns the one start that has ended.
func (w *world) onlyStart(t *testing.T) state.StartRecord {
	t.Helper()
	starts := w.starts(t)
	if len(starts) != 1 {
		t.Fatalf("%d starts are on record, want one: %+v", len(starts), starts)
	}
	return starts[0]
}

// handoffs returns the names of the handoff files.
func (w *world) handoffs(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(w.handoffDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// audit fails if something stands for an engine, or if one of the processes lives.
func (w *world) audit(t *testing.T, pids ...int) {
	t.Helper()
	if records := w.loaded(t); len(records) > 0 {
		t.Errorf("records are left: %+v", records)
	}
	if files := w.handoffs(t); len(files) > 0 {
		t.Errorf("handoff files are left: %v", files)
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
}

// alive tells whether there is a process and it is no zombie.
func alive(pid int) bool {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(text), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

func wantReason(t *testing.T, err error, want reason.Reason) {
	t.Helper()
	if got := reason.Of(err); got != want {
		t.Errorf("reason of %v is %s, want %s", err, got, want)
	}
}

// kill ends a process and waits until it is gone.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, testPatience, "the killed process is gone", func() (bool, string) { return !alive(pid), "alive" })
}
