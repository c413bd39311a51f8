// SPDX-License-Identifier: Apache-2.0

package llamacpp_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamaserver"
)

// answers is an engines.Ask that answers from a table, by the argument.
type answers map[string]string

func (a answers) ask(_ context.Context, _ engines.Program, env map[string]string, args ...string) (string, error) {
	for name := range env {
		if strings.HasPrefix(name, "LLAMA_") {
			return "", reason.New(reason.Internal, "a flag's variable in the environment: "+name)
		}
	}
	return a[strings.Join(args, " ")], nil
}

func realHelp(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("testdata/help-v0.5.0.txt")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func realProbe(t *testing.T) engines.Probe {
	t.Helper()
	probe, err := llamacpp.Kind{}.Probe(t.Context(), engines.Program{Executable: "/e/llama-server"}, answers{
		"--version": "version: 0.5.0-dev (build 1, commit de3ff81)\nbuilt with GNU 12.2.0 for Linux x86_64\n", "--help": realHelp(t),
	}.ask)
	if err != nil {
		t.Fatal(err)
	}
	return probe
}

func serving(flags ...string) engines.Serving {
	return engines.Serving{
		Model:         &enginev1.PreparedModel{Id: "small", Files: []*enginev1.ModelFile{{Path: "/m/small.gguf"}}},
		ContextTokens: 2048, Slots: 4, Flags: flags,
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	probe := realProbe(t)
	if want := "0.5.0-dev (build 1, commit de3ff81)"; probe.Version != want {
		t.Errorf("version %q, want %q", probe.Version, want)
	}
	if len(probe.Flags) < 200 {
		t.Errorf("%d flags, want all of the more than 200 in the list", len(probe.Flags))
	}
}

func TestProbeOfAnotherProgram(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		answers answers
	}{
		{name: "no version", answers: answers{"--version": "hello", "--help": realHelp(t)}},
		{name: "no flags", answers: answers{"--version": "version: 1", "--help": "usage: nothing"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := llamacpp.Kind{}.Probe(t.Context(), engines.Program{Executable: "/e/true"}, tt.answers.ask)
			if reason.Of(err) != reason.EngineNotFound {
				t.Errorf("Probe: %v, want ENGINE_NOT_FOUND", err)
			}
		})
	}
}

func TestLaunchGolden(t *testing.T) {
	t.Parallel()
	launch, err := llamacpp.Kind{}.Launch(engines.Program{
		Executable: "/e/bin/llama-server", Dir: "/e", LibraryDirs: []string{"/e/bin"},
		Files: []*enginev1.ExecutedFile{{Path: "/e/bin/llama-server", Sha256: strings.Repeat("0", 64), SizeBytes: 1}},
	}, realProbe(t), serving("--threads=2", "-b", "512", "--jinja"))
	if err != nil {
		t.Fatal(err)
	}
	text, err := protojson.Marshal(&enginev1.PreparedEngine{Process: launch.Process, Contract: launch.Contract})
	if err != nil {
		t.Fatal(err)
	}
	var indented any
	if err := json.Unmarshal(text, &indented); err != nil { // protojson's own spaces differ from run to run
		t.Fatal(err)
	}
	text, err = json.MarshalIndent(indented, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "launch.json", append(text, '\n'))
}

func TestLaunchWithAnOldServer(t *testing.T) {
	t.Parallel()
	probe := realProbe(t)
	probe.Flags = slices.DeleteFunc(probe.Flags, func(f engines.Flag) bool {
		return slices.Contains(f.Names, "--fit") || slices.Contains(f.Names, "--offline")
	})
	launch, err := llamacpp.Kind{}.Launch(engines.Program{}, probe, serving())
	if err != nil {
		t.Fatal(err)
	}
	for _, arg := range launch.Process.GetArgs() {
		if arg.GetLiteral() == "--fit" || arg.GetLiteral() == "--offline" || arg.GetLiteral() == "off" {
			t.Errorf("argument %s, which this server does not have", arg.GetLiteral())
		}
	}
	probe.Flags = slices.DeleteFunc(probe.Flags, func(f engines.Flag) bool { return slices.Contains(f.Names, "--metrics") })
	if _, err := (llamacpp.Kind{}).Launch(engines.Program{}, probe, serving()); reason.Of(err) != reason.EngineNotFound {
		t.Errorf("a server without --metrics: %v, want ENGINE_NOT_FOUND", err)
	}
}

// TestEveryDangerousFlagIsOwned walks what the real server lists: a flag whose text speaks of files, addresses or the
// network must be refused or be in the table of those that were looked at.
func TestEveryDangerousFlagIsOwned(t *testing.T) {
	t.Parallel()
	harmless := map[string]bool{
		"--embeddings":   false,
		"--json-schema":  false,
		"--override-kv":  false,
		"--threads-http": false,
	}
	suspicious := []string{"FNAME", "PATH", "FILE", "URL", "DIR", "download", "internet", "network", "http", "key", "tool", "port "}
	for _, line := range strings.Split(realHelp(t), "\n") {
		flags := engines.ParseHelp(line)
		if len(flags) == 0 || !slices.ContainsFunc(suspicious, func(s string) bool { return strings.Contains(line, s) }) {
			continue
		}
		names := flags[0].Names
		last := names[len(names)-1]
		if _, known := harmless[last]; known {
			harmless[last] = true
			continue
		}
		if engines.RefuseOwned(names, llamaserver.Owned()) == nil {
			t.Errorf("flag %v is neither owned nor known to be harmless: %s", names, line)
		}
	}
	for name, met := range harmless {
		if !met {
			t.Errorf("%s is called harmless for nothing", name)
		}
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name       string
		files      []string
		executable string
		want       engines.Layout
		fails      reason.Reason
	}{
		{name: "the only one", files: []string{"p/bin/llama-server", "p/bin/libggml.so.0", "p/lib/libx.so", "p/x.txt"},
			want: engines.Layout{Executable: "p/bin/llama-server", LibraryDirs: []string{"p/bin", "p/lib"}}},
		{name: "the one named", files: []string{"a/llama-server", "b/llama-server"}, executable: "b/llama-server",
			want: engines.Layout{Executable: "b/llama-server"}},
		{name: "none", files: []string{"a/server"}, fails: reason.EngineNotFound},
		{name: "two", files: []string{"a/llama-server", "b/llama-server"}, fails: reason.EngineNotFound},
		{name: "the one named is not there", files: []string{"a/llama-server"}, executable: "b/llama-server", fails: reason.EngineNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, name := range tt.files {
				path := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			got, err := llamacpp.Kind{}.Complete(t.Context(), dir, tt.executable, "", nil)
			if reason.Of(err) != tt.fails {
				t.Fatalf("Complete: %v, want %v", err, tt.fails)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("Complete (-want +got):\n%s", diff)
			}
			if err != nil {
				return
			}
			info, err := os.Stat(filepath.Join(dir, got.Executable))
			if err != nil || info.Mode()&0o111 == 0 {
				t.Errorf("executable has mode %v, %v", info.Mode(), err)
			}
		})
	}
}

func TestRecipe(t *testing.T) {
	t.Parallel()
	for target, want := range map[enginev1.CpuTarget]string{
		enginev1.CpuTarget_CPU_TARGET_PORTABLE: "OFF", enginev1.CpuTarget_CPU_TARGET_NATIVE: "ON",
	} {
		recipe := llamacpp.Kind{}.Recipe(&enginev1.SourceBuild{CpuTarget: target})
		if got := recipe.Definitions["GGML_NATIVE"]; got != want {
			t.Errorf("%v: GGML_NATIVE=%s, want %s", target, got, want)
		}
		for name, value := range map[string]string{"BUILD_SHARED_LIBS": "OFF", "LLAMA_OPENSSL": "OFF", "LLAMA_BUILD_UI": "OFF", "GGML_OPENMP": "OFF"} {
			if recipe.Definitions[name] != value {
				t.Errorf("%v: %s=%s, want %s", target, name, recipe.Definitions[name], value)
			}
		}
	}
}
