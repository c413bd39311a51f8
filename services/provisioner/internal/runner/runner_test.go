// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// modeVariable makes the test binary behave as one of the tools below.
const modeVariable = "RUNNER_TEST_MODE="

func TestMain(m *testing.M) {
	if mode, ok := os.LookupEnv(strings.TrimSuffix(modeVariable, "=")); ok {
		// Straight out of the process: the race detector would keep it for a second, the coverage tool would print.
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(tool(mode)), 0, 0)
	}
	os.Exit(m.Run())
}

// tool is a program under test. The variable FIFO names a pipe that it and its children hold open while they live.
func tool(mode string) int {
	if fifo := os.Getenv("FIFO"); fifo != "" {
		f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
		if err != nil {
			panic(err)
		}
		if _, err := fmt.Fprintf(f, "%s\n", mode); err != nil {
			panic(err)
		}
	}
	switch mode {
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
		in, _ := io.ReadAll(os.Stdin)
		fmt.Fprintf(os.Stderr, "stdin %d bytes\n", len(in))
	case "nice":
		n, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
		fmt.Println(20 - n)
	case "exit3":
		fmt.Println("first")
		fmt.Println("last")
		return 3
	case "flood":
		fmt.Println(strings.Repeat("x", 100_000))
		fmt.Print("\x1b[31mred\x1b[0m \x00\xff\tend\r 42%\r 43%\r\nno newline")
	case "suicide":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		wait()
	case "wait":
		wait()
	case "parent", "leaver":
		// As ninja does: a child in a group of its own; and one that leaves the session.
		for i, attr := range []*syscall.SysProcAttr{{Setpgid: true}, {Setsid: true}} {
			env := []string{"FIFO=" + os.Getenv("FIFO"), modeVariable + []string{"stubborn", "wait"}[i]}
			if attr.Setsid || mode == "parent" { // the others are found by their session
				env = append(env, markVariable+os.Getenv(strings.TrimSuffix(markVariable, "=")))
			}
			if _, err := os.StartProcess(os.Args[0], os.Args[:1], &os.ProcAttr{
				Env: env, Files: []*os.File{nil, os.Stdout, os.Stderr}, Sys: attr,
			}); err != nil {
				panic(err)
			}
		}
		if mode == "parent" {
			wait()
		}
	case "provisioner":
		// A provisioner that runs a tool and waits to be killed.
		c := command("parent", "FIFO="+os.Getenv("FIFO"))
		c.Owner = os.Getenv("OWNER")
		c.DeathSignal = syscall.SIGKILL
		_, _ = Run(context.Background(), c)
	}
	return 0
}

// wait blocks until a signal ends the process; a program without a timer would be called deadlocked.
func wait() {
	for {
		<-time.After(time.Hour)
	}
}

func command(mode string, env ...string) Command {
	return Command{Path: os.Args[0], Env: append(env, modeVariable+mode)}
}

func TestRunGivesOnlyWhatTheCommandSays(t *testing.T) {
	t.Setenv("INHERITED", "1")
	var out, errs []string
	c := command("env", "GIVEN=yes")
	c.Lines = func(s Stream, line string) {
		if s == Stdout {
			out = append(out, line)
		} else {
			errs = append(errs, line)
		}
	}
	res, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != 3 || out[0] != "GIVEN=yes" || !strings.HasPrefix(out[2], markVariable) {
		t.Errorf("environment is %q, want GIVEN, the mode and the mark", out)
	}
	if diff := cmp.Diff([]string{"stdin 0 bytes"}, errs); diff != "" {
		t.Errorf("stderr (-want +got):\n%s", diff)
	}
	if res.ExitCode != 0 || res.Duration <= 0 || len(res.Tail) != 4 {
		t.Errorf("result is %+v", res)
	}
}

func TestRunEnds(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, mode string
		want       Result
	}{
		{"with a code", "exit3", Result{ExitCode: 3, Tail: []string{"first", "last"}}},
		{"by a signal", "suicide", Result{ExitCode: -1, Signal: syscall.SIGKILL}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := Run(t.Context(), command(tt.mode))
			var exit *ExitError
			if !errors.As(err, &exit) {
				t.Fatalf("error is %v, want an ExitError", err)
			}
			got := exit.Result
			got.Duration = 0
			if tt.want.Tail == nil {
				got.Tail = nil
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRunCleansAndCutsLines(t *testing.T) {
	t.Parallel()
	c := command("flood")
	c.MaxLineBytes = 1000
	var log bytes.Buffer
	c.Log = &log
	res, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{strings.Repeat("x", 1000), "red \uFFFD\tend", " 42%", " 43%", "no newline"}
	if diff := cmp.Diff(want, res.Tail); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if got := log.String(); got != strings.Join(want, "\n")+"\n" {
		t.Errorf("log is %d bytes, want the lines", len(got))
	}
}

func TestRunLowersPriority(t *testing.T) {
	t.Parallel()
	was, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := command("nice")
	c.Nice = 3
	res, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if want := strconv.Itoa(min(19, 20-was+3)); res.Tail[0] != want {
		t.Errorf("priority is %s, want %s", res.Tail[0], want)
	}
}

func TestRunRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		c    Command
		want string
	}{
		{"relative path", Command{Path: "ls"}, "not absolute"},
		{"relative folder", Command{Path: "/bin/ls", Dir: "x"}, "not absolute"},
		{"nice out of range", Command{Path: "/bin/ls", Nice: 20}, "0 to 19"},
		{"NUL", Command{Path: "/bin/ls", Args: []string{"a\x00b"}}, "NUL"},
		{"missing program", Command{Path: "/nowhere/ls"}, "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := Run(t.Context(), tt.c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one that says %q", err, tt.want)
			}
		})
	}
}

type brokenLog struct{}

func (brokenLog) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestRunStopsWhenTheLogBreaks(t *testing.T) {
	t.Parallel()
	fifo := newFIFO(t)
	c := command("parent", "FIFO="+fifo.path)
	c.Log = brokenLog{}
	c.Env = append(c.Env, "GODEBUG=inittrace=1") // prints before it waits
	if _, err := Run(t.Context(), c); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error is %v, want ENOSPC", err)
	}
}

func TestLookPath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"tool": 0o755, "data": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, tool, path, want string }{
		{"found", "tool", "/nowhere:" + dir, dir + "/tool"},
		{"not executable", "data", dir, ""},
		{"a path is not a name", "../tool", dir + "/x", ""},
		{"relative folder", "tool", ".", ""},
		{"a folder is not a program", filepath.Base(dir), filepath.Dir(dir), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := LookPath(tt.tool, tt.path)
			var missing *NotFoundError
			if got != tt.want || (tt.want == "") != errors.As(err, &missing) {
				t.Errorf("LookPath(%q, %q) = %q, %v; want %q", tt.tool, tt.path, got, err, tt.want)
			}
		})
	}
}
