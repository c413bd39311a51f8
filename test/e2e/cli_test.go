// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// The demo, with a real engine: it ends well and leaves nothing.
func TestDemo(t *testing.T) {
	t.Parallel()
	stdout, stderr, code := harness.Roundhouse(t, "demo", "--cache", harness.SharedStore(t), "--output", "json").Wait(t)
	var report struct {
		Tokens    int            `json:"tokens"`
		Leftovers map[string]int `json:"left_behind"`
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 0 {
		t.Fatalf("exit code %d, report %v:\n%s%s", code, err, stdout, stderr)
	}
	if report.Tokens == 0 || len(report.Leftovers) != 3 {
		t.Errorf("report = %+v, want tokens, and the counts of what was left", report)
	}
	for what, count := range report.Leftovers {
		if count != 0 {
			t.Errorf("%d %s were left", count, what)
		}
	}
}

// A pool's life by the command line alone, and what its exit codes tell.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	spec := node.FakeEngine(t)
	preload := func(flags ...string) []string {
		args := []string{
			"preload", "--pool", "cli", "--engine", "llamacpp", "--external", spec.GetEngine().GetExternal().GetPath(),
			"--model", spec.GetModel().GetUri(), "--",
		}
		return append(args, flags...)
	}
	steps := []struct {
		args []string
		code int
		says string
	}{
		{[]string{"preflight"}, 0, "cmake"},
		{preload("--fake-exit", "9"), 1, "exit code 9"},
		{preload("--port", "1"), 2, "--port"},
		{preload("--fake-pause", "2ms"), 0, "http://127.0.0.1:"},
		{[]string{"pools"}, 0, "cli"},
		{[]string{"logs", "cli"}, 0, "listening on"},
		{[]string{"prepared"}, 0, "sha256:"},
		{[]string{"drain", "cli", "--output", "json"}, 0, "POOL_STATE_STOPPED"},
		{[]string{"delete", "cli"}, 0, "cli"},
		{[]string{"pools", "cli"}, 3, "cli"},
	}
	for _, step := range steps {
		stdout, stderr, code := node.Roundhouse(t, step.args...).Wait(t)
		if code != step.code || !strings.Contains(stdout+stderr, step.says) {
			t.Errorf("roundhouse %s: exit code %d, want %d and %q:\n%s%s", strings.Join(step.args, " "), code, step.code, step.says, stdout, stderr)
		}
	}
}

// Ctrl-C cancels a preload and leaves nothing.
func TestCommandLineIsInterrupted(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	spec := node.FakeEngine(t)
	watcher := node.Watch(t)
	command := node.Roundhouse(t, "preload", "--pool", "cut", "--engine", "llamacpp", "--external", spec.GetEngine().GetExternal().GetPath(),
		"--model", spec.GetModel().GetUri(), "--", "--fake-load-until", "/nonexistent/file")
	watcher.Until(t, "the engine loads", harness.InPhase(poolv1.LoadPhase_LOAD_PHASE_LOADING))
	command.Interrupt(t)
	stdout, stderr, code := command.Wait(t)
	if code != 7 {
		t.Errorf("exit code = %d, want 7:\n%s%s", code, stdout, stderr)
	}
	node.AssertNothingRuns(t)
	if ids := node.PoolIDs(t); len(ids) != 0 {
		t.Errorf("pools = %v, want none", ids)
	}
}
