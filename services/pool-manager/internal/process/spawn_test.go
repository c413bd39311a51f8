// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

func TestSpawnIsolatesTheEngine(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := command(t, processtest.Script{Lines: []string{"up"}})
	c.Env = []string{"ONE=1", NonceVar + "=forged", "TWO=2"}
	c.Dir = t.TempDir()
	c.OOMScoreAdj = 500
	if err := os.WriteFile(c.LogPath, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := spawn(t, h, c)
	eventually(t, "it is up", func() bool { return logText(t, c) == "before\nup\n" })

	pid := p.Identity().PID
	st, err := readStat(pid)
	if err != nil {
		t.Fatal(err)
	}
	if st.SID != pid || st.PGID != pid {
		t.Errorf("session %d and group %d, want its own %d", st.SID, st.PGID, pid)
	}
	for name, want := range map[string]string{
		"environ":       NonceVar + "=" + c.Nonce + "\x00ONE=1\x00TWO=2\x00",
		"oom_score_adj": "500\n",
	} {
		got, err := os.ReadFile(procPath(pid, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", name, got, err, want)
		}
	}
	limits, err := os.ReadFile(procPath(pid, "limits"))
	if err != nil || !strings.Contains(string(limits), "Max core file size        0                    0 ") {
		t.Errorf("limits: %s, %v; want no core file", limits, err)
	}
	links := map[string]string{}
	for _, name := range []string{"cwd", "fd/0", "fd/1", "fd/2"} {
		links[name], _ = os.Readlink(procPath(pid, name))
	}
	want := map[string]string{"cwd": c.Dir, "fd/0": os.DevNull, "fd/1": c.LogPath, "fd/2": c.LogPath}
	if diff := cmp.Diff(want, links); diff != "" {
		t.Errorf("what it has open (-want +got):\n%s", diff)
	}
}

func TestSpawnErrors(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, tt := range []struct {
		name   string
		change func(*Command)
		want   string
	}{
		{"no such program", func(c *Command) { c.Executable = "/nonexistent" }, "no such file"},
		{"relative program", func(c *Command) { c.Executable = "engine" }, "not an absolute path"},
		{"not executable", func(c *Command) { c.Executable = "/etc/passwd" }, "permission denied"},
		{"relative log", func(c *Command) { c.LogPath = "log" }, "not an absolute path"},
		{"no folder for the log", func(c *Command) { c.LogPath = "/nonexistent/log" }, "open log"},
		{"no folder to run in", func(c *Command) { c.Dir = "/nonexistent" }, "no such file"},
		{"no nonce", func(c *Command) { c.Nonce = "" }, "no nonce"},
		{"oom score out of range", func(c *Command) { c.OOMScoreAdj = 5000 }, "oom score"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := command(t, processtest.Script{})
			tt.change(&c)
			p, err := h.Spawn(c)
			if p != nil || err == nil || !strings.Contains(err.Error(), tt.want) || reason.Of(err) != reason.WorkerStartFailed {
				t.Fatalf("Spawn: %v, %v; want WorkerStartFailed with %q", p, err, tt.want)
			}
			if left, err := h.Find(c.Nonce); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

func TestSpawnOnFullDisk(t *testing.T) {
	t.Parallel()
	if got := reason.Of(startError(Command{}, &os.PathError{Err: unix.ENOSPC})); got != reason.DiskFull {
		t.Errorf("reason of a start without space: got %v, want DiskFull", got)
	}
}

func TestExitStatus(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, tt := range []struct {
		name string
		end  processtest.End
		want ExitStatus
		text string
	}{
		{"clean", processtest.End{}, ExitStatus{}, "exit 0"},
		{"code", processtest.End{Code: 3}, ExitStatus{Code: 3}, "exit 3"},
		{"term", processtest.End{Signal: syscall.SIGTERM}, ExitStatus{Code: CodeUnknown, Signal: syscall.SIGTERM}, "signal terminated"},
		{"kill", processtest.End{Signal: syscall.SIGKILL}, ExitStatus{Code: CodeUnknown, Signal: syscall.SIGKILL}, "signal killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := spawn(t, h, command(t, processtest.Script{End: &tt.end}))
			<-p.Done()
			got := p.Exit()
			if got.Uptime <= 0 || got.At.IsZero() {
				t.Errorf("uptime %v, at %v; want both set", got.Uptime, got.At)
			}
			got.Uptime, got.At = 0, tt.want.At
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("exit (-want +got):\n%s", diff)
			}
			if got.String() != tt.text {
				t.Errorf("text: got %q, want %q", got, tt.text)
			}
			if _, err := os.Stat(procPath(p.id.PID, "stat")); err == nil {
				if st, err := readStat(p.id.PID); err == nil && st.StartTicks == p.id.StartTicks {
					t.Errorf("pid %d is still there after Done: %v", p.id.PID, st.Member)
				}
			}
		})
	}
}

func TestExitBeforeDoneIsZero(t *testing.T) {
	t.Parallel()
	p, _ := play(t, newHost(t), processtest.Script{})
	if got := p.Exit(); got != (ExitStatus{}) {
		t.Errorf("exit of a living engine: got %+v", got)
	}
}

func TestIdentityFollowsExec(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	shell, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	target, _, err := processtest.Command(processtest.Script{})
	if err != nil {
		t.Fatal(err)
	}
	c := command(t, processtest.Script{Lines: []string{"up"}})
	c.Args = append([]string{"-c", `exec "$@"`, "sh", c.Executable}, c.Args...)
	c.Executable = "/bin/sh"
	p := spawn(t, h, c)
	eventually(t, "the launcher became the engine", func() bool { return p.Identity().Executable == target })
	if p.id.Executable != shell && p.id.Executable != target {
		t.Errorf("executable at the spawn: got %q, want %q", p.id.Executable, shell)
	}
	again, err := h.Attach(p.Identity())
	if err != nil {
		t.Fatalf("Attach with the newest identity: %v", err)
	}
	again.Release()
}

func TestReleaseLeavesTheEngine(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{})
	again, err := h.Attach(p.Identity())
	if err != nil {
		t.Fatal(err)
	}
	again.Release()
	again.Release()
	if tree := treeOf(t, p, 1); !alive(tree[0]) {
		t.Error("the engine died of a Release")
	}
	select {
	case <-again.Done():
		t.Error("Done was closed by a Release")
	default:
	}
}

func TestBaseEnv(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		environ []string
		want    []string
	}{
		{"secrets stay here", []string{"PATH=/bin", "AWS_SECRET=x", "LLM_ARG_MODEL=y", "LANG=C", "LD_PRELOAD=z"}, []string{"PATH=/bin", "LANG=C"}},
		{"a path is always there", []string{"PATHS=/bin"}, []string{"PATH=/usr/local/bin:/usr/bin:/bin"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := BaseEnv(tt.environ); !slices.Equal(got, tt.want) {
				t.Errorf("BaseEnv(%q): got %q, want %q", tt.environ, got, tt.want)
			}
		})
	}
}
