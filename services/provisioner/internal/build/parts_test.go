// SPDX-License-Identifier: Apache-2.0

package build

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

func TestRecipeRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		spoil func(*Recipe)
		says  string
	}{
		{"relative source", func(r *Recipe) { r.SourceDir = "s" }, "absolute"},
		{"relative build", func(r *Recipe) { r.BuildDir = "b" }, "absolute"},
		{"relative ccache", func(r *Recipe) { r.CCacheDir = "c" }, "absolute"},
		{"source in build", func(r *Recipe) { r.SourceDir = "/b/s" }, "lies in"},
		{"source is build", func(r *Recipe) { r.SourceDir = "/b" }, "lies in"},
		{"definition like an option", func(r *Recipe) { r.Definitions = map[string]string{"X -P": "y"} }, "not allowed"},
		{"typed definition", func(r *Recipe) { r.Definitions = map[string]string{"X:BOOL": "y"} }, "not allowed"},
		{"definition of a compiler", func(r *Recipe) { r.Definitions = map[string]string{"CMAKE_C_COMPILER": "y"} }, "not allowed"},
		{"definition with a line break", func(r *Recipe) { r.Definitions = map[string]string{"X": "a\nb"} }, "line break"},
		{"target like an option", func(r *Recipe) { r.Targets = []string{"-t"} }, "not allowed"},
		{"target with a caret", func(r *Recipe) { r.Targets = []string{"main.c^"} }, "not allowed"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := Recipe{SourceDir: "/s", BuildDir: "/b", Definitions: map[string]string{"X": "a;b c"}, Targets: []string{"llama-server"}}
			if err := r.check(); err != nil {
				t.Fatalf("a good recipe: %v", err)
			}
			tt.spoil(&r)
			err := r.check()
			if reason.Of(err) != reason.InvalidParams || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("error is %v, want InvalidParams that says %q", err, tt.says)
			}
		})
	}
}

func TestConfigurationAndFingerprint(t *testing.T) {
	t.Parallel()
	k := kit{
		ninja: toolchain.Tool{Path: "/ninja"}, cc: toolchain.Tool{Path: "/cc", Identity: "gcc 1"}, cxx: toolchain.Tool{Path: "/c++"},
	}
	r := Recipe{SourceDir: "/s", BuildDir: "/b", Definitions: map[string]string{"Z": "1", "A": "x y"}}
	want := []string{
		"-S", "/s", "-B", "/b", "-G", "Ninja", "-DA=x y", "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_COMPILER=/c++",
		"-DCMAKE_C_COMPILER=/cc", "-DCMAKE_MAKE_PROGRAM=/ninja", "-DZ=1",
	}
	if diff := cmp.Diff(want, r.configuration(k)); diff != "" {
		t.Errorf("arguments (-want +got):\n%s", diff)
	}
	was := r.fingerprint(k)
	for name, change := range map[string]func(*Recipe, *kit){
		"definition": func(r *Recipe, _ *kit) { r.Definitions = nil },
		"compiler":   func(_ *Recipe, k *kit) { k.cc.Identity = "gcc 2" },
		"ccache":     func(_ *Recipe, k *kit) { k.ccache.Path = "/ccache" },
	} {
		r, k := r, k
		change(&r, &k)
		if r.fingerprint(k) == was {
			t.Errorf("another %s gives the same fingerprint", name)
		}
	}
	r.Targets, r.Jobs = []string{"x"}, 3
	if r.fingerprint(k) != was {
		t.Error("targets and jobs change the fingerprint")
	}
}

func TestJobs(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	tests := []struct {
		name   string
		asked  int
		cores  int
		memory int64
		want   int
	}{
		{"cores", 0, 4, 64 * gib, 4},
		{"memory", 0, 16, 4 * gib, 2},
		{"at least one", 0, 16, 0, 1},
		{"asked for fewer", 2, 16, 64 * gib, 2},
		{"asked for more", 32, 4, 64 * gib, 4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := Recipe{Jobs: tt.asked}.jobs(toolchain.Host{Cores: tt.cores, MemoryBytes: tt.memory})
			if got != tt.want {
				t.Errorf("jobs are %d, want %d", got, tt.want)
			}
		})
	}
}

func TestMeter(t *testing.T) {
	t.Parallel()
	var got []Progress
	var lines []string
	m := meter{
		report: func(p Progress) { got = append(got, p) },
		line:   func(_ runner.Stream, line string) { lines = append(lines, line) },
	}
	m.start(Compile)
	for _, line := range []string{
		statusMark + "[0/1] Re-running CMake...", "-- Configuring done", statusMark + "[1/4] a", statusMark + "[1/4] a",
		"[9/9] a compiler's own", statusMark + "[2/10] grown", statusMark + "[10/10] last", statusMark + "[x/10] torn",
	} {
		m.see(runner.Stdout, line)
	}
	m.finish()
	want := []Progress{{Compile, 0, 0, 0}, {Compile, 25, 1, 4}, {Compile, 25, 2, 10}, {Compile, 99, 10, 10}, {Compile, 100, 10, 10}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if len(lines) != 8 || lines[0] != "[0/1] Re-running CMake..." {
		t.Errorf("lines are %q", lines)
	}
}

func TestFirstError(t *testing.T) {
	t.Parallel()
	const failed = "FAILED: x.o\nc++ -DX='a: error: b' x.c\n"
	tests := []struct{ name, output, want, remedy string }{
		{"gcc", failed + "In file included from x.c:1:\nx.h:3:1: error: unknown type\nx.h:4:1: error: second\n", "x.h:3:1: error: unknown type", ""},
		{"warning first", "x.c:1:1: warning: w\nx.c:2:1: fatal error: y.h: No such file\n", "x.c:2:1: fatal error: y.h: No such file", ""},
		{"msvc-like words in a command", failed, "FAILED: x.o", ""},
		{"linker", failed + "/usr/bin/ld: x.o: in function `main':\nx.c:(.text+0x5): undefined reference to `b'\n", "x.c:(.text+0x5): undefined reference to `b'", ""},
		{"library", "/usr/bin/ld: cannot find -lfoo: No such file\ncollect2: error: ld returned 1\n", "/usr/bin/ld: cannot find -lfoo: No such file", ""},
		{"cmake", "CMake Error at a/CMakeLists.txt:7 (find_package):\n\n  By not providing \"FindX.cmake\"\n", "CMake Error at a/CMakeLists.txt:7 (find_package): By not providing \"FindX.cmake\"", ""},
		{"cmake without a message", "CMake Error at CMakeLists.txt:7 (x):\n", "CMake Error at CMakeLists.txt:7 (x):", ""},
		{"cmake without a place", "CMake Error: The source directory \"/x\" does not exist.\n", "CMake Error: The source directory \"/x\" does not exist.", ""},
		{"out of memory", "c++: fatal error: Killed signal terminated program cc1plus\n", "c++: fatal error: Killed signal terminated program cc1plus", "memory"},
		{"compiler broken", "x.c:1:1: internal compiler error: oops\n", "x.c:1:1: internal compiler error: oops", ""},
		{"ninja", "ninja: error: unknown target 'x'\n", "ninja: error: unknown target 'x'", ""},
		{"nothing", "-- all is well\n[1/1] x\n", "", ""},
		{"very long", "x: error: " + strings.Repeat("é", 600), "x: error: " + strings.Repeat("é", 245) + "...", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var f firstError
			for line := range strings.Lines(tt.output) {
				f.see(strings.TrimSuffix(line, "\n"))
			}
			if got := f.line(); got != tt.want {
				t.Errorf("line is %q, want %q", got, tt.want)
			}
			if !strings.Contains(f.remedy(), tt.remedy) {
				t.Errorf("remedy is %q, want it to say %q", f.remedy(), tt.remedy)
			}
		})
	}
}

func FuzzOutput(f *testing.F) {
	f.Add("roundhouse [1/2] x\nFAILED: x\ny\nx: error: z")
	f.Add("CMake Error at x:1 (y):\n\n z\nNo space left on device")
	f.Fuzz(func(t *testing.T, output string) {
		last := Progress{}
		m := meter{report: func(p Progress) {
			if p.Percent < last.Percent || p.Percent > 99 || p.Done < 0 || p.Done > p.Total {
				t.Errorf("progress %+v after %+v", p, last)
			}
			last = p
		}}
		var first firstError
		for line := range strings.Lines(strings.ToValidUTF8(output, "?")) {
			m.see(runner.Stdout, strings.TrimSuffix(line, "\n"))
			first.see(line)
		}
		if line := first.line(); len(line) > maxErrorBytes+3 || !utf8.ValidString(line) {
			t.Errorf("line is %q", line)
		}
	})
}
