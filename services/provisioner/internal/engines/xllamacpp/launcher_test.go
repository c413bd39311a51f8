// SPDX-License-Identifier: Apache-2.0

package xllamacpp_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
)

// launcher returns the launcher with arguments, over a wheel whose server is a fake.
func launcher(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	text, err := os.ReadFile("launcher.py")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(wheel(t), "launcher.py")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return exec.CommandContext(t.Context(), "python3", append([]string{"-s", "-S", "-B", path}, args...)...)
}

func launcherFlags(t *testing.T) []engines.Flag {
	t.Helper()
	out, err := launcher(t, "--help").CombinedOutput()
	if err != nil {
		t.Fatalf("--help: %v\n%s", err, out)
	}
	return engines.ParseHelp(string(out))
}

// serving starts the launcher on a fake server that has busy requests in flight, and returns its output up to ready.
func serving(t *testing.T, busy string, flags ...string) (cmd *exec.Cmd, folder string, lines []string) {
	t.Helper()
	folder = t.TempDir()
	setBusy(t, folder, busy)
	model := filepath.Join(folder, "m.gguf")
	if err := os.WriteFile(model, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd = launcher(t, append([]string{"--host", "127.0.0.1", "--port", "0", "--model", model, "--alias", "small"}, flags...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	scanner := bufio.NewScanner(out)
	for scanner.Scan() {
		lines = append(lines, scanner.Text())
		if strings.HasPrefix(scanner.Text(), "ready: ") {
			return cmd, folder, lines
		}
	}
	t.Fatalf("the launcher ended before it was ready: %v\n%s", cmd.Wait(), strings.Join(lines, "\n"))
	return nil, "", nil
}

// setBusy says how many requests are in flight, at once for whoever reads it.
func setBusy(t *testing.T, folder, busy string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, "next"), []byte(busy), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(folder, "next"), filepath.Join(folder, "busy")); err != nil {
		t.Fatal(err)
	}
}

func TestLauncherListsItsFlags(t *testing.T) {
	t.Parallel()
	var names []string
	for _, flag := range launcherFlags(t) {
		names = append(names, flag.Names...)
	}
	for _, want := range []string{"--host", "--port", "--model", "--alias", "--ctx-size", "--parallel", "--metrics", "--threads", "-t"} {
		if !slices.Contains(names, want) {
			t.Errorf("--help lists no %s: %v", want, names)
		}
	}
}

func TestLauncherPassesFlagsOn(t *testing.T) {
	t.Parallel()
	_, _, lines := serving(t, "0", "--ctx-size", "4096", "--parallel", "2", "--metrics", "--fit", "off", "--no-ui", "--offline",
		"-t", "3", "--flash-attn", "off", "--cache-ram", "16")
	for _, want := range []string{
		"param n_ctx=4096", "param n_parallel=2", "param endpoint_metrics=True", "param fit_params=False", "param ui=False",
		"param offline=True", "param threads=3", "param flash_attn_type=0", "param cache_ram_mib=16", "param warmup=True",
		"param model_alias={'small'}", "param hostnames=['127.0.0.1']", "param port=0",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("the server did not get %q:\n%s", want, strings.Join(lines, "\n"))
		}
	}
}

func TestLauncherRefusesBadFlags(t *testing.T) {
	t.Parallel()
	address := []string{"--host", "h", "--port", "1", "--alias", "a"}
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{name: "unknown", args: []string{"--nope"}, want: "error: invalid argument: --nope"},
		{name: "no value", args: []string{"--model"}, want: "error: invalid argument: --model wants a value"},
		{name: "not a number", args: append(address, "--model", "m", "--threads", "two"), want: "error: invalid argument: --threads two is not a number"},
		{name: "not a choice", args: append(address, "--model", "m", "--fit", "maybe"), want: "error: invalid argument: --fit maybe is none of on, off"},
		{name: "no model", args: address, want: "error: invalid argument: --model is missing"},
		{name: "a model that cannot be loaded", args: append(address, "--model", "/nowhere"), want: "error: server did not start: no such model"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cmd := launcher(t, tt.args...)
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != 1 || !bytes.Contains(out, []byte(tt.want)) {
				t.Errorf("%q: code %d, %v, output %s, want code 1 and %q", tt.args, code, err, out, tt.want)
			}
		})
	}
}

// ended waits until cmd has ended and returns its exit code.
func ended(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	select {
	case err := <-waited:
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		t.Fatal("the launcher does not end")
		return 0
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func signal(t *testing.T, cmd *exec.Cmd, s syscall.Signal) {
	t.Helper()
	if err := cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func TestLauncherEndsWhenIdle(t *testing.T) {
	t.Parallel()
	cmd, _, _ := serving(t, "0")
	signal(t, cmd, syscall.SIGTERM)
	if code := ended(t, cmd); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestLauncherLetsRequestsEnd(t *testing.T) {
	t.Parallel()
	cmd, folder, _ := serving(t, "1")
	signal(t, cmd, syscall.SIGTERM)
	testkit.Eventually(t, 10*time.Second, "the launcher has counted requests in flight twice", func() (bool, string) {
		asked, err := os.ReadFile(filepath.Join(folder, "asked"))
		return len(asked) >= 2, string(asked) + " " + errorText(err)
	})
	if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
		t.Fatalf("the launcher ended with a request in flight: %v", err)
	}
	setBusy(t, folder, "0")
	if code := ended(t, cmd); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestLauncherEndsAtTheSecondSignal(t *testing.T) {
	t.Parallel()
	cmd, _, _ := serving(t, "1")
	signal(t, cmd, syscall.SIGTERM)
	testkit.Eventually(t, 20*time.Second, "the second signal ends it", func() (bool, string) {
		_ = cmd.Process.Signal(syscall.SIGTERM) // one that comes before the first was handled is merged with it
		state, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "stat"))
		return err != nil || bytes.Contains(state, []byte(") Z ")), string(state)
	})
	if code := ended(t, cmd); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
}
