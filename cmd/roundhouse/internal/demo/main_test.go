// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// The test binary plays every program of the demo, told apart by the name under which it is started. That keeps the
// test process itself free of the demo's hold on descendants.
const (
	hostProgram    = "demo-host"    // runs the demo
	sleeperProgram = "demo-sleeper" // does nothing until it is killed
	leaverProgram  = "demo-leaver"  // leaves a sleeper behind
	orphanProgram  = "demo-orphan"  // audits a leaver
)

// The environment that the fakes obey.
const (
	faultVariable = "DEMO_TEST_FAULT"
	cacheVariable = "DEMO_TEST_CACHE"
)

func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case provisionerProgram:
		os.Exit(fakeProvisioner(os.Args[1:]))
	case poolManagerProgram:
		os.Exit(fakePoolManager(os.Args[1:]))
	case KeeperCommand:
		if err := Keep(os.Stdin); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case hostProgram:
		os.Exit(host())
	case sleeperProgram:
		select {}
	case leaverProgram:
		os.Exit(leave())
	case orphanProgram:
		os.Exit(auditLeaver())
	}
	os.Exit(m.Run())
}

// programs is a folder with the test binary under all its names.
func programs(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{provisionerProgram, poolManagerProgram, hostProgram, sleeperProgram, leaverProgram, orphanProgram} {
		if err := os.Symlink(self, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// outcome is what a host prints at its end.
type outcome struct {
	Report *Report
	Error  string
}

// host runs one demo with the fakes beside it, and prints its outcome as the last line. SIGINT interrupts it.
func host() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	demo, err := New(Config{BinDir: filepath.Dir(os.Args[0]), CacheDir: os.Getenv(cacheVariable), Out: os.Stdout})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cleanup, hurry := context.WithCancel(context.WithoutCancel(ctx))
	defer hurry()
	if os.Getenv(faultVariable) == faultHurry {
		hurry()
	}
	report, err := demo.Run(ctx, cleanup)
	result := outcome{Report: report}
	if err != nil {
		result.Error = err.Error()
	}
	if err := json.NewEncoder(os.Stderr).Encode(result); err != nil {
		return 1
	}
	return 0
}

// show is a host under way.
type shown struct {
	command        *exec.Cmd
	stdout, stderr *os.File
	temp           string
}

// startHost starts a demo in which the fakes have the fault.
func startHost(t *testing.T, fault string) *shown {
	t.Helper()
	return startHostIn(t, testkit.ShortDir(t), fault)
}

// startHostIn is startHost with a folder for temporary files.
func startHostIn(t *testing.T, temp, fault string) *shown {
	t.Helper()
	s := &shown{temp: temp, stdout: tempFile(t), stderr: tempFile(t)}
	s.command = exec.CommandContext(t.Context(), filepath.Join(programs(t), hostProgram))
	s.command.Env = append(os.Environ(), faultVariable+"="+fault, cacheVariable+"="+t.TempDir(), "TMPDIR="+temp,
		"GORACE=atexit_sleep_ms=0") // five programs in a row would sleep a second each
	s.command.Stdout, s.command.Stderr = s.stdout, s.stderr
	if err := s.command.Start(); err != nil {
		t.Fatalf("start host: %v", err)
	}
	return s
}

func tempFile(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// told is what the host has said so far.
func (s *shown) told(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(s.stdout.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// end waits for the host's end and checks that its folder for temporary files is as empty as before.
func (s *shown) end(t *testing.T) outcome {
	t.Helper()
	waitErr := s.command.Wait()
	text, err := os.ReadFile(s.stderr.Name())
	if err != nil {
		t.Fatal(err)
	}
	var got outcome
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatalf("the host ended with %v and said %q", waitErr, text)
	}
	for name := range names(s.temp) {
		t.Errorf("left behind: %s", name)
	}
	return got
}

// leave starts a sleeper in a session of its own and ends.
func leave() int {
	sleeper := exec.CommandContext(context.Background(), filepath.Join(filepath.Dir(os.Args[0]), sleeperProgram))
	sleeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := sleeper.Start(); err != nil {
		return 1
	}
	return 0
}

// auditLeaver prints what the audit calls the process that a leaver left, and how many live after it.
func auditLeaver() int {
	if err := adoptDescendants(); err != nil {
		return 1
	}
	leaver := exec.CommandContext(context.Background(), filepath.Join(filepath.Dir(os.Args[0]), leaverProgram))
	if err := leaver.Run(); err != nil {
		return 1
	}
	began := time.Now()
	named := (&stage{}).endDescendants()
	fmt.Printf("%d named, %d alive, quick: %v\n", len(named), len(descendants(os.Getpid())), time.Since(began) < settleTimeout)
	return 0
}
