// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// output is a buffer that a daemon writes while a test reads.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBadConfigurationRefusesToStart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		text string
		args []string
		want []string
	}{
		{name: "an unknown key", text: "state_dir: /s\nstore: /t\n", want: []string{"line 2", "store"}},
		{name: "an unknown key of a group", text: "registries:\n  pip: x\n", want: []string{"pip"}},
		{name: "a wrong type", text: "listen: 5\n", want: []string{"line 1"}},
		{name: "everything that is wrong", text: "listen: [\"0.0.0.0:1\"]\nstate_dir: s\nroots: [\"/\", r]\ntool_path: bin\ncancel_grace: -1s\nlog_level: loud\n",
			want: []string{"listen", "state_dir", `roots: "/"`, `roots: "r"`, "tool_path", "cancel_grace", "log_level"}},
		{name: "a registry without TLS", text: "state_dir: " + t.TempDir() + "\nlisten: [\"127.0.0.1:0\"]\nregistries:\n  pypi: http://pypi.example/simple\n", want: []string{"registries"}},
		{name: "a missing file", args: []string{"--config", "/nonexistent.yaml"}, want: []string{"/nonexistent.yaml"}},
		{name: "an unknown flag", args: []string{"--nope"}, want: []string{"nope"}},
		{name: "an argument", args: []string{"serve"}, want: []string{"serve"}},
		{name: "an address that is not local", args: []string{"--listen", "tcp://10.0.0.1:1"}, want: []string{"listen", "10.0.0.1"}},
		{name: "a root that does not exist", args: []string{"--root", "/nonexistent/models"}, want: []string{"--root", `"/nonexistent/models" does not exist`}},
		{name: "a root of the file that is a file", text: "roots: [\"/proc/self/status\"]\n", want: []string{"roots", `"/proc/self/status" is not a folder`}},
		{name: "a root below a file", args: []string{"--root", "/proc/self/status/x"}, want: []string{"--root", "/proc/self/status/x"}},
		{name: "a root that is not absolute", args: []string{"--root", "models"}, want: []string{`roots: "models"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := tt.args
			if tt.text != "" {
				args = append(args, "--config", file(t, tt.text))
			}
			var stdout, stderr output
			if code := Main(t.Context(), "v", args, &stdout, &stderr); code != daemonkit.ExitUsage {
				t.Errorf("exit code %d, want %d", code, daemonkit.ExitUsage)
			}
			for _, want := range tt.want {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("the message does not name %q:\n%s", want, &stderr)
				}
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	for flag, want := range map[string]string{"--help": "Exit codes:", "--version": "v1.2.3\n"} {
		var stdout, stderr output
		if code := Main(t.Context(), "v1.2.3", []string{flag}, &stdout, &stderr); code != daemonkit.ExitOK || !strings.Contains(stdout.String(), want) {
			t.Errorf("%s: code %d, %q, %q", flag, code, &stdout, &stderr)
		}
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	env := map[string]string{"PIP_INDEX_URL": "https://pip", "NPM_CONFIG_REGISTRY": "https://npm"}
	got := defaultConfig(daemonkit.Places{Run: "/r", State: "/s"}, func(name string) string { return env[name] })
	want := Config{
		Listen: []string{"unix:///r/engine-provisioner.sock"}, StateDir: "/s/provisioner", LogLevel: "info",
		Registries: Registries{PyPI: "https://pip", NPM: "https://npm"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
}

func TestFlagsOverruleTheFile(t *testing.T) {
	t.Parallel()
	a, b := t.TempDir(), t.TempDir()
	path := file(t, "state_dir: /file\nlisten: [\"127.0.0.1:1\"]\nroots: [\"/r\"]\ncancel_grace: 3s\nregistries:\n  pypi: https://p.example/simple\n")
	got, err := configure("v", []string{"--config", path, "--state-dir", "/flag", "--root", a, "--root", b}, &output{})
	if err != nil {
		t.Fatal(err)
	}
	got.Registries.NPM = "" // from the environment
	want := Config{
		StateDir: "/flag", Listen: []string{"127.0.0.1:1"}, Roots: []string{a, b}, CancelGrace: 3 * time.Second, LogLevel: "info",
		Registries: Registries{PyPI: "https://p.example/simple"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
}

func TestStateDirectoryThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	var stdout, stderr output
	code := Main(t.Context(), "v", []string{"--state-dir", filepath.Join(file(t, "x"), "s"), "--listen", "127.0.0.1:0"}, &stdout, &stderr)
	if code != daemonkit.ExitState || !strings.Contains(stderr.String(), "STORAGE_FAILED") && !strings.Contains(stderr.String(), "store") {
		t.Errorf("exit code %d, want %d\n%s", code, daemonkit.ExitState, &stderr)
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(testkit.ShortDir(t), "p.sock")
	store := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	var stdout, stderr output
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, "v", []string{"--listen", "unix://" + socket, "--state-dir", store, "--root", store}, &stdout, &stderr)
	}()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	client := provisionerv1.NewProvisionerServiceClient(conn)
	got, err := client.Preflight(t.Context(), &provisionerv1.PreflightRequest{}, grpc.WaitForReady(true))
	if err != nil || got.GetStore().GetPath() != store || len(got.GetEngines()) != 4 {
		t.Errorf("Preflight = %v, %v", got, err)
	}

	var out, second output
	if code := Main(t.Context(), "v", []string{"--listen", "unix://" + socket, "--state-dir", store}, &out, &second); code != daemonkit.ExitListen {
		t.Errorf("a second daemon on the same socket: code %d, want %d\n%s", code, daemonkit.ExitListen, &second)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	stop()
	if code := <-ended; code != daemonkit.ExitOK {
		t.Errorf("exit code %d, want %d\n%s", code, daemonkit.ExitOK, &stderr)
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(store, "tmp"))
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			t.Errorf("the temporary folder %s is left", entry.Name())
		}
	}
}

// A daemon that is asked to end does not wait for those who wait for its work.
func TestEndCancelsWork(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	engine, asked := filepath.Join(root, "engine"), filepath.Join(root, "asked")
	if err := os.WriteFile(engine, []byte("#!/bin/sh\necho $$ > "+asked+".new; mv "+asked+".new "+asked+"; sleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer silent.Close()
	socket := filepath.Join(testkit.ShortDir(t), "p.sock")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var stdout, stderr output
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, "v", []string{"--listen", "unix://" + socket, "--state-dir", filepath.Join(root, "store"), "--root", root}, &stdout, &stderr)
	}()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	stream, err := provisionerv1.NewProvisionerServiceClient(conn).Prepare(t.Context(), &provisionerv1.PrepareRequest{Spec: &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: engine}}},
		Model:  &enginev1.ModelSpec{Uri: silent.URL + "/m.gguf", Sha256: strings.Repeat("0", 64)},
	}}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, 10*time.Second, "the engine is asked", func() (bool, string) {
		_, err := os.Stat(asked)
		return err == nil, "nobody has asked it"
	})
	began := time.Now()
	stop()
	for err == nil {
		_, err = stream.Recv()
	}
	if reason.Of(err) != reason.ShuttingDown {
		t.Errorf("Prepare: %v, want SHUTTING_DOWN", err)
	}
	if code := <-ended; code != daemonkit.ExitOK {
		t.Errorf("exit code %d, want %d\n%s", code, daemonkit.ExitOK, &stderr)
	}
	if took := time.Since(began); took > 6*time.Second { // an idle machine takes milliseconds, and waiting for callers takes 10 s
		t.Errorf("it took %s to end", took)
	}
	pid, err := os.ReadFile(asked)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); err == nil {
		t.Errorf("process %s is left", pid)
	}
}

func TestNetworkEnvironment(t *testing.T) {
	t.Parallel()
	got := networkEnv([]string{"https_proxy=http://p", "HOME=/h", "GIT_SSL_CAINFO=/c", "GIT_SSH_COMMAND=evil", "LD_PRELOAD=x", "NO_PROXY=a"})
	want := []string{"https_proxy=http://p", "GIT_SSL_CAINFO=/c", "NO_PROXY=a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("networkEnv (-want +got):\n%s", diff)
	}
}
