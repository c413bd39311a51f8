// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// buildVariable makes the test binary a provisioner that builds in the folders it names, until it is killed.
const buildVariable = "BUILD_TEST_ROOT"

func TestMain(m *testing.M) {
	root := os.Getenv(buildVariable)
	if root == "" {
		os.Exit(m.Run())
	}
	tools, err := toolchain.New(toolchain.Config{})
	if err != nil {
		panic(err)
	}
	b, err := New(Config{Tools: tools})
	if err != nil {
		panic(err)
	}
	_, err = b.Build(context.Background(), Recipe{
		SourceDir: filepath.Join(root, "source"), BuildDir: filepath.Join(root, "build"), Targets: []string{"slow"},
	}, Observer{})
	panic(err)
}

func TestBuildThenNothingThenAChange(t *testing.T) {
	t.Parallel()
	p, b := newProject(t), newTestBuilder(t)
	res, s := p.must(b)
	if res.Configured <= 0 || res.Compiled <= 0 || res.Jobs < 1 || res.CCache {
		t.Errorf("result is %+v", res)
	}
	last := s.progress[len(s.progress)-1]
	if last.Done != 4 || last.Total != 4 || !s.has("[4/4] Linking C executable tiny") {
		t.Errorf("last progress is %+v, lines are %q; want 4 actions", last, s.lines)
	}
	if !strings.Contains(p.log.String(), "[4/4] Linking C executable tiny") || !strings.Contains(p.log.String(), "-- Configuring done") {
		t.Errorf("log is %q", p.log)
	}
	if err := unix.Access(filepath.Join(p.recipe.BuildDir, "tiny"), unix.X_OK); err != nil {
		t.Error(err)
	}

	res, s = p.must(b)
	if res.Configured != 0 || s.has("Building") {
		t.Errorf("second build: result %+v, lines %q; want nothing done", res, s.lines)
	}

	p.write("a.c", strings.Replace(aC, "1", "2", 1))
	res, s = p.must(b)
	if res.Configured != 0 || !s.has("a.c.o") || s.has("b.c.o") {
		t.Errorf("build after a change: result %+v, lines %q; want a.c alone compiled", res, s.lines)
	}
}

func TestRerunOfCMakeIsNotTheWholeBuild(t *testing.T) {
	t.Parallel()
	p, b := newProject(t), newTestBuilder(t)
	p.must(b)
	p.write("CMakeLists.txt", cmakeLists+"add_compile_definitions(NEW)\ntarget_compile_definitions(tiny PRIVATE NEWER)\n")
	_, s := p.must(b)
	if !s.has("Re-running CMake") || !s.has("[4/4]") {
		t.Fatalf("lines are %q, want cmake and then 4 actions", s.lines)
	}
	early := 0
	for _, g := range s.progress {
		if g.Phase == Compile && g.Total == 4 && g.Percent < 99 {
			early++
		}
	}
	if early == 0 {
		t.Errorf("progress is %+v, want it to grow over the 4 actions", s.progress)
	}
}

func TestOtherRecipeStartsFromNothing(t *testing.T) {
	t.Parallel()
	p, b := newProject(t), newTestBuilder(t)
	p.must(b)
	stale := filepath.Join(p.recipe.BuildDir, "stale")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.recipe.Definitions = map[string]string{"OTHER_OPTION": "1"}
	if res, _ := p.must(b); res.Configured == 0 {
		t.Error("cmake did not run")
	}
	cache, err := os.ReadFile(filepath.Join(p.recipe.BuildDir, "CMakeCache.txt"))
	if err != nil || strings.Contains(string(cache), "TINY_OPTION") || !strings.Contains(string(cache), "OTHER_OPTION") {
		t.Errorf("cache has the old definition (%v)", err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file of the old build is left: %v", err)
	}
}

func TestBuildFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		files  map[string]string
		reason reason.Reason
		phase  string
		first  string
	}{
		{
			name: "compiler", files: map[string]string{"a.c": "int a(void) {\n  return x;\n}\n"},
			reason: reason.BuildFailed, phase: "compile", first: "a.c:2:10: error: ",
		},
		{
			name: "header", files: map[string]string{"b.c": "#include <nowhere.h>\n"},
			reason: reason.BuildFailed, phase: "compile", first: "b.c:1:10: fatal error: nowhere.h",
		},
		{
			name: "linker", files: map[string]string{"b.c": "int other;\n"},
			reason: reason.BuildFailed, phase: "compile", first: "undefined reference to `b'",
		},
		{
			name: "cmake", files: map[string]string{"CMakeLists.txt": cmakeLists + "message(FATAL_ERROR \"no\\nway\")\n"},
			reason: reason.BuildFailed, phase: "configure", first: "CMake Error at CMakeLists.txt:4 (message): no",
		},
		{
			name: "no target", files: map[string]string{"CMakeLists.txt": "cmake_minimum_required(VERSION 3.14)\nproject(x C)\n"},
			reason: reason.BuildFailed, phase: "compile", first: "ninja: error: unknown target 'tiny'",
		},
		{
			name: "action without a word", files: map[string]string{
				"CMakeLists.txt": cmakeLists + "add_custom_command(OUTPUT c.c COMMAND false)\ntarget_sources(tiny PRIVATE c.c)\n",
			},
			reason: reason.BuildFailed, phase: "compile", first: "FAILED: ",
		},
		{
			name: "full disk", files: map[string]string{
				"CMakeLists.txt": cmakeLists + "add_custom_command(OUTPUT c.c COMMAND ${CMAKE_SOURCE_DIR}/full)\ntarget_sources(tiny PRIVATE c.c)\n",
				"full":           "#!/bin/sh\necho 'x.s: No space left on device' >&2\nexit 1\n",
			},
			reason: reason.DiskFull,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, b := newProject(t), newTestBuilder(t)
			good := map[string]string{"CMakeLists.txt": cmakeLists, "a.c": aC, "b.c": bC}
			for name, text := range tt.files {
				p.write(name, text)
			}
			_, _, err := p.build(t.Context(), b)
			e, ok := reason.As(err)
			if !ok || e.Reason != tt.reason || e.Metadata["phase"] != tt.phase || !strings.Contains(e.Metadata["first_error"], tt.first) {
				t.Fatalf("error is %v, want %v with first error %q\n%s", err, tt.reason, tt.first, p.log)
			}
			if e.Remedy == "" || !strings.Contains(e.Message, e.Metadata["first_error"]) {
				t.Errorf("error is %v, want the line and a remedy", err)
			}
			for name, text := range good {
				p.write(name, text)
			}
			p.must(b)
		})
	}
}

func TestMissingToolsAreAllNamed(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	b, err := New(Config{Tools: newTools(t, t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Build(t.Context(), p.recipe, Observer{})
	e, ok := reason.As(err)
	if !ok || e.Reason != reason.ToolMissing || e.Metadata["tools"] != "cmake,ninja,cc,c++" {
		t.Errorf("error is %v, want all four tools", err)
	}
	if _, err := os.Stat(p.recipe.BuildDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("build folder was made: %v", err)
	}
}

// withSlow adds a target that compiles main.c, then blocks in a script that holds the pipe open and ignores SIGTERM.
func (p project) withSlow(fifo string) {
	p.t.Helper()
	p.write("CMakeLists.txt", cmakeLists+`add_custom_command(OUTPUT slow.out COMMAND ${CMAKE_SOURCE_DIR}/slow DEPENDS tiny)
add_custom_target(slow DEPENDS slow.out)
`)
	p.write("slow", "#!/bin/sh\ntrap '' TERM\nexec 3>"+fifo+"\necho here >&3\nwhile :; do sleep 100; done\n")
}

// newFIFO makes a named pipe and returns its reading end, and a writing end that keeps it from ending early.
func newFIFO(t *testing.T) (path string, r, hold *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	hold, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err = os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(hold.Close(), r.Close()) })
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return path, r, hold
}

func await(t *testing.T, r io.Reader) {
	t.Helper()
	if _, err := io.ReadFull(r, make([]byte, len("here\n"))); err != nil {
		t.Fatalf("the slow action did not start: %v", err)
	}
}

func TestCancelLeavesNoCompilerAndTheBuildGoesOn(t *testing.T) {
	t.Parallel()
	fifo, r, hold := newFIFO(t)
	p, b := newProject(t), newTestBuilder(t)
	p.withSlow(fifo)
	p.recipe.Targets = []string{"slow"}
	cause := errors.New("nobody waits")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := b.Build(ctx, p.recipe, Observer{})
		done <- err
	}()
	await(t, r)
	cancel(cause)
	err := <-done
	if _, typed := reason.As(err); typed || !errors.Is(err, cause) {
		t.Errorf("error is %v, want the cause", err)
	}
	// The build has returned, so the end of the pipe must be there without waiting.
	now, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	_ = hold.Close()
	if n, err := now.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("a process of the build is still there: %d, %v", n, err)
	}
	p.write("slow", "#!/bin/sh\ntouch slow.out\n")
	res, s := p.must(b)
	if res.Configured != 0 || s.has("main.c.o") || !s.has("slow.out") {
		t.Errorf("result %+v, lines %q; want the rest alone", res, s.lines)
	}
}

func TestKilledProvisionerLeavesNoCompiler(t *testing.T) {
	t.Parallel()
	fifo, r, hold := newFIFO(t)
	p := newProject(t)
	p.withSlow(fifo)
	p.write("slow", strings.Replace("#!/bin/sh\nexec 3>FIFO\necho here >&3\nexec sleep 100\n", "FIFO", fifo, 1))
	prov, err := os.StartProcess(os.Args[0], os.Args[:1], &os.ProcAttr{
		Env: []string{buildVariable + "=" + filepath.Dir(p.recipe.SourceDir)}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	await(t, r)
	if err := prov.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := prov.Wait(); err != nil {
		t.Fatal(err)
	}
	// Nobody cleans up after it, and yet the pipe ends.
	_ = hold.Close()
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("an action of the build is still there: %v", err)
	}
}

func TestCCacheLaunchesCompilersWhenItIsThere(t *testing.T) {
	t.Parallel()
	bin := t.TempDir()
	script := "#!/bin/sh\nif [ \"$1\" = --version ]; then echo ccache version 9.9; exit; fi\n" +
		"echo \"$*\" >>\"$CCACHE_DIR/used\"\nexec \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "ccache"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	p := newProject(t)
	p.recipe.CCacheDir = filepath.Join(t.TempDir(), "cache")
	b, err := New(Config{Tools: newTools(t, bin+":"+toolchain.DefaultPath)})
	if err != nil {
		t.Fatal(err)
	}
	if res, _ := p.must(b); !res.CCache {
		t.Error("result says that ccache was not used")
	}
	used, err := os.ReadFile(filepath.Join(p.recipe.CCacheDir, "used"))
	if err != nil || !strings.Contains(string(used), "main.c") {
		t.Errorf("ccache saw %q (%v)", used, err)
	}
}

func TestForeignFolderIsRefused(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	p.recipe.BuildDir = t.TempDir()
	file := filepath.Join(p.recipe.BuildDir, "somebody's")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := newTestBuilder(t).Build(t.Context(), p.recipe, Observer{})
	if reason.Of(err) != reason.StorageFailed {
		t.Errorf("error is %v, want StorageFailed", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

type fullLog struct{}

func (fullLog) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestLogOnAFullDisk(t *testing.T) {
	t.Parallel()
	p := newProject(t)
	p.recipe.Log = fullLog{}
	_, err := newTestBuilder(t).Build(t.Context(), p.recipe, Observer{})
	if reason.Of(err) != reason.DiskFull {
		t.Errorf("error is %v, want DiskFull", err)
	}
}

func TestObserverMayBeEmpty(t *testing.T) {
	t.Parallel()
	m := meter{}
	m.start(Compile)
	m.see(runner.Stdout, statusMark+"[1/2] x")
	m.finish()
	if m.last != (Progress{Compile, 100, 2, 2}) {
		t.Errorf("last is %+v", m.last)
	}
}
