// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// script puts a shell script called name into dir; it also writes a line to dir/asked each time it runs.
func script(t *testing.T, dir, name, body string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	text := "#!/bin/sh\necho " + name + " >>" + dir + "/asked\n" + body + "\n"
	if err := os.WriteFile(path+".new", []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

func asked(t *testing.T, dir string) int {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "asked"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Count(string(raw), "\n")
}

func detector(t *testing.T, path string) *Detector {
	t.Helper()
	d, err := New(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRealToolsOfThisMachine(t *testing.T) {
	t.Parallel()
	d := detector(t, DefaultPath)
	tools, err := d.Require(t.Context(), Git, CMake, Ninja, CC, CXX, Python)
	if err != nil {
		t.Fatal(err)
	}
	for _, tool := range tools {
		if !tool.Usable() || tool.Version == "" || tool.Identity == "" || !filepath.IsAbs(tool.Path) {
			t.Errorf("tool is %+v, want a path, a version and an identity", tool)
		}
	}
	id, err := d.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := detector(t, DefaultPath).Identity(t.Context())
	if err != nil || id != again || strings.Count(id, " | ") != 6 {
		t.Errorf("identity is %q, then %q (%v); want the same with version, target and linker of both", id, again, err)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		tool    Name
		scripts map[string]string
		want    Tool // Path is a file name
		problem string
	}{
		{
			name: "version", tool: Ninja, scripts: map[string]string{"ninja": "echo 1.12.1"},
			want: Tool{Path: "ninja", Version: "1.12.1", Identity: "1.12.1"},
		},
		{
			name: "second name", tool: CMake, scripts: map[string]string{"cmake3": "echo cmake3 version 3.14.0-rc1"},
			want: Tool{Path: "cmake3", Version: "3.14.0", Identity: "cmake3 version 3.14.0-rc1"},
		},
		{
			name: "a usable one after one too old", tool: CMake,
			scripts: map[string]string{"cmake": "echo cmake version 3.13.9", "cmake3": "echo cmake3 version 3.31.2"},
			want:    Tool{Path: "cmake3", Version: "3.31.2", Identity: "cmake3 version 3.31.2"},
		},
		{name: "missing", tool: Git, problem: "not found in "},
		{
			name: "too old", tool: CMake, scripts: map[string]string{"cmake": "echo cmake version 3.5.1"},
			problem: "version 3.5.1 is older than 3.14",
		},
		{name: "broken", tool: Git, scripts: map[string]string{"git": "exit 7"}, problem: "exit code 7"},
		{name: "no version", tool: Git, scripts: map[string]string{"git": "echo hello"}, problem: `no version in "hello"`},
		{name: "silent", tool: Git, scripts: map[string]string{"git": ""}, problem: "prints nothing"},
		{
			name: "compiler without headers", tool: CC,
			scripts: map[string]string{"cc": `case "$1" in
--version) echo "cc (Test) 9.1.0";; -dumpmachine) echo m68k;; *) echo "stdio.h: no such file" >&2; exit 1;; esac`},
			problem: "cannot compile with <stdio.h>",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, body := range tt.scripts {
				script(t, dir, name, body)
			}
			got, err := detector(t, dir).Find(t.Context(), tt.tool)
			if tt.problem != "" {
				e, ok := reason.As(err)
				if !ok || e.Reason != reason.ToolMissing || e.Metadata["tools"] != string(tt.tool) ||
					!strings.Contains(e.Message, tt.problem) || !strings.Contains(e.Remedy, "apt-get install") ||
					!strings.Contains(e.Remedy, "dnf install") {
					t.Errorf("error is %v, want ToolMissing with %q and the remedies", err, tt.problem)
				}
				if got.Usable() || !strings.Contains(got.Problem, tt.problem) {
					t.Errorf("tool is %+v, want the problem", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.want.Name, tt.want.NeededFor, tt.want.Path = tt.tool, got.NeededFor, filepath.Join(dir, tt.want.Path)
			if diff := cmp.Diff(tt.want, got); diff != "" || got.NeededFor == "" {
				t.Errorf("tool (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRequireNamesEveryMissingTool(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script(t, dir, "git", "echo git version 2.39.5")
	_, err := detector(t, dir).Require(t.Context(), Git, CMake, Ninja)
	e, ok := reason.As(err)
	if !ok || e.Metadata["tools"] != "cmake,ninja" {
		t.Fatalf("error is %v, want cmake and ninja", err)
	}
	for _, want := range []string{"apt-get install cmake", "dnf install ninja-build"} {
		if !strings.Contains(e.Remedy, want) {
			t.Errorf("remedy is %q, want it to have %q", e.Remedy, want)
		}
	}
}

func TestFindRemembersUntilTheFileChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := detector(t, dir)
	find := func(want string, wantAsked int) {
		t.Helper()
		got, err := d.Find(t.Context(), Git)
		if err != nil || got.Version != want || asked(t, dir) != wantAsked {
			t.Errorf("version %q after %d questions (%v), want %q after %d", got.Version, asked(t, dir), err, want, wantAsked)
		}
	}
	script(t, dir, "git", "echo git version 2.30.0")
	find("2.30.0", 1)
	find("2.30.0", 1)
	path := script(t, dir, "git", "echo git version 2.31.0")
	find("2.31.0", 2)
	// Same size, other time.
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	find("2.31.0", 3)
}

func TestBrokenCandidateIsPassedOverUntilReport(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := detector(t, dir)
	script(t, dir, "ninja", "test -e "+dir+"/repaired || exit 1; echo 9.9")
	script(t, dir, "ninja-build", "echo 1.11")
	find := func(want string, wantAsked int) {
		t.Helper()
		got, err := d.Find(t.Context(), Ninja)
		if err != nil || got.Version != want || asked(t, dir) != wantAsked {
			t.Errorf("version %q after %d questions (%v), want %q after %d", got.Version, asked(t, dir), err, want, wantAsked)
		}
	}
	find("1.11", 2)
	if err := os.WriteFile(filepath.Join(dir, "repaired"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	find("1.11", 2)
	if _, err := d.Report(t.Context()); err != nil {
		t.Fatal(err)
	}
	find("9.9", 3)
}

func TestPythonIsTheInterpreterItself(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	real := script(t, dir, "python-real", "")
	script(t, dir, "python3", "echo 3.12.1; echo "+real+"; echo '3.12.1 (main)'")
	got, err := detector(t, dir).Find(t.Context(), Python)
	if err != nil || got.Path != real || got.Version != "3.12.1" {
		t.Errorf("tool is %+v (%v), want the path that the script names", got, err)
	}
}

func TestReportListsEveryTool(t *testing.T) {
	t.Parallel()
	report, err := detector(t, t.TempDir()).Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []Name
	for _, tool := range report.Tools {
		names = append(names, tool.Name)
		if tool.Usable() || tool.Remedy == "" || tool.NeededFor == "" {
			t.Errorf("tool is %+v, want what needs it and a remedy", tool)
		}
	}
	if diff := cmp.Diff([]Name{Git, CMake, Ninja, CCache, CC, CXX, Python}, names); diff != "" {
		t.Errorf("tools (-want +got):\n%s", diff)
	}
	if report.Host.Cores < 1 || report.Host.MemoryBytes < 1<<20 || report.Host.CPUFingerprint == "" {
		t.Errorf("host is %+v", report.Host)
	}
}

func TestCancelledLookIsNotAMissingTool(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	script(t, dir, "git", "echo git version 2.39.5")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := detector(t, dir).Find(ctx, Git)
	if _, typed := reason.As(err); typed || !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v, want the cancel", err)
	}
}

func TestNewRefusesRelativeFolders(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Path: "/bin:bin"}); err == nil {
		t.Error("a relative folder was accepted")
	}
}

func TestOlder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, version, minimum string
		want                   bool
	}{
		{"equal", "3.14", "3.14", false},
		{"shorter", "3", "3.14", true},
		{"numbers, not text", "3.9", "3.14", true},
		{"longer", "3.14.1", "3.14", false},
		{"no minimum", "0.1", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := older(tt.version, tt.minimum); got != tt.want {
				t.Errorf("older(%q, %q) = %t", tt.version, tt.minimum, got)
			}
		})
	}
}

func BenchmarkIdentity(b *testing.B) {
	d, err := New(Config{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := d.Identity(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Identity(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
