// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// daemonMark makes the test binary the program itself. The program must not run in the test's own process: it becomes the
// parent of orphans, and collects children.
const daemonMark = "daemon-test-pool-managerd"

func TestMain(m *testing.M) {
	processtest.Main()
	if len(os.Args) > 1 && os.Args[1] == daemonMark {
		os.Exit(Main(context.Background(), "v1.2.3", os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// testPatience is how long a test waits for what should take milliseconds.
const testPatience = 20 * time.Second

// output is what a program has written.
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

// program is one run of pool-managerd.
type program struct {
	cmd            *exec.Cmd
	stdout, stderr output
	// ended is closed when it has ended.
	ended chan struct{}
}

// start starts the program, which is killed at the end of the test if it still runs then.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: exec.Command(executable, append([]string{daemonMark}, args...)...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", "SECRET=do not pass on")
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("pool-managerd %v:\n%s%s", args, &p.stdout, &p.stderr)
		}
	})
	return p
}

// code waits for the end and returns the exit code, or -1 if a signal ended it.
func (p *program) code(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(testPatience):
		t.Fatalf("it does not end:\n%s", &p.stderr)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *program) signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// says waits until the program has logged the message.
func (p *program) says(t *testing.T, message string) {
	t.Helper()
	testkit.Eventually(t, testPatience, "it says "+message, func() (bool, string) {
		return strings.Contains(p.stderr.String(), message), p.stderr.String()
	})
}

// connect returns a client of the service at the address once it is there.
func connect(t *testing.T, p *program, address string) poolv1.PoolManagerServiceClient {
	t.Helper()
	conn, err := client.Dial(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	if err := client.WaitReady(ctx, conn); err != nil {
		t.Fatalf("%v:\n%s", err, &p.stderr)
	}
	return poolv1.NewPoolManagerServiceClient(conn)
}

func TestWhatKeepsItFromStarting(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	dir := testkit.ShortDir(t)
	blocked := filepath.Join(dir, "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want int
		says []string
	}{
		{"a bad flag", []string{"--nope"}, daemonkit.ExitUsage, []string{"pool-managerd: ", "nope"}},
		{"an address of the network", []string{"--listen", "0.0.0.0:9200"}, daemonkit.ExitUsage, []string{"listen: ", "0.0.0.0"}},
		{"a state directory below a file", []string{"--state-dir", blocked + "/s"}, daemonkit.ExitState, []string{"state_dir", "give a directory"}},
		{"a handoff directory below a file", []string{"--config", file(t, "handoff_dir: "+blocked+"/h\n")}, daemonkit.ExitState, []string{"handoff directory"}},
		{"a port of another", []string{"--listen", taken.Addr().String()}, daemonkit.ExitListen, []string{"listen on tcp://" + taken.Addr().String()}},
		{"a socket below a file", []string{"--listen", "unix://" + blocked + "/s"}, daemonkit.ExitListen, []string{"listen on unix://" + blocked}},
		{"a socket that is a file", []string{"--listen", "unix://" + blocked}, daemonkit.ExitListen, []string{blocked}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, append([]string{"--state-dir", t.TempDir(), "--listen", "unix://" + filepath.Join(testkit.ShortDir(t), "s")}, tt.args...)...)
			if code := p.code(t); code != tt.want {
				t.Errorf("exit code %d, want %d", code, tt.want)
			}
			for _, words := range tt.says {
				if !strings.Contains(p.stderr.String(), words) {
					t.Errorf("it does not say %q:\n%s", words, &p.stderr)
				}
			}
		})
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	t.Parallel()
	for flag, says := range map[string]string{"--help": "Exit codes:", "--version": "v1.2.3\n"} {
		p := start(t, flag)
		if code := p.code(t); code != daemonkit.ExitOK || !strings.Contains(p.stdout.String(), says) || p.stderr.String() != "" {
			t.Errorf("%s: code %d, %q, %q", flag, code, &p.stdout, &p.stderr)
		}
	}
}

func TestSecondDaemonOnOneStateDirectory(t *testing.T) {
	t.Parallel()
	dir, state := testkit.ShortDir(t), t.TempDir()
	first := start(t, "--state-dir", state, "--listen", "unix://"+dir+"/a")
	connect(t, first, "unix://"+dir+"/a")
	second := start(t, "--state-dir", state, "--listen", "unix://"+dir+"/b")
	if code := second.code(t); code != daemonkit.ExitState {
		t.Errorf("exit code %d, want %d", code, daemonkit.ExitState)
	}
	if holder := "locked by pid " + strconv.Itoa(first.cmd.Process.Pid); !strings.Contains(second.stderr.String(), holder) {
		t.Errorf("it does not say %q:\n%s", holder, &second.stderr)
	}
	first.signal(t, syscall.SIGTERM)
	if code := first.code(t); code != daemonkit.ExitOK {
		t.Errorf("exit code %d, want %d", code, daemonkit.ExitOK)
	}
	if _, err := os.Stat(dir + "/a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestWithoutProvisioner(t *testing.T) {
	t.Parallel()
	dir := testkit.ShortDir(t)
	p := start(t, "--state-dir", t.TempDir(), "--listen", "unix://"+dir+"/s", "--provisioner", "unix://"+dir+"/p")
	stream, err := connect(t, p, "unix://"+dir+"/s").Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec("a")})
	for err == nil {
		_, err = stream.Recv()
	}
	typed, ok := reason.As(err)
	if !ok || typed.Reason != reason.ProvisionerUnavailable || typed.Remedy == "" || typed.Metadata["target"] != "unix://"+dir+"/p" {
		t.Errorf("Preload = %v, want PROVISIONER_UNAVAILABLE with target and remedy", err)
	}
	p.signal(t, syscall.SIGINT)
	if code := p.code(t); code != daemonkit.ExitOK {
		t.Errorf("exit code %d, want %d", code, daemonkit.ExitOK)
	}
}
