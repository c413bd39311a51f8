// SPDX-License-Identifier: Apache-2.0

package xllamacpp_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/xllamacpp"
)

func prefix(context.Context, engines.Program, map[string]string, ...string) (string, error) {
	return "/opt/python\n", nil
}

// wheel returns a folder with the files of a wheel whose server is a fake.
func wheel(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("testdata/fake_xllamacpp.py")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "xllamacpp"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "xllamacpp", "__init__.py"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestComplete(t *testing.T) {
	t.Parallel()
	dir := wheel(t)
	python := filepath.Join(t.TempDir(), "python3.99")
	if err := os.WriteFile(python, []byte("an interpreter"), 0o755); err != nil {
		t.Fatal(err)
	}
	got, err := xllamacpp.Kind{}.Complete(t.Context(), dir, "", python, prefix)
	if err != nil {
		t.Fatal(err)
	}
	want := engines.Layout{Executable: "bin/python3", Args: []string{"-s", "-S", "-B"}, Script: "launcher.py", Env: map[string]string{
		"PYTHONHOME": "/opt/python", "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1",
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Complete (-want +got):\n%s", diff)
	}
	copied, err := os.ReadFile(filepath.Join(dir, got.Executable))
	if err != nil || string(copied) != "an interpreter" {
		t.Errorf("the interpreter's copy is %q, %v", copied, err)
	}
	if info, err := os.Stat(filepath.Join(dir, got.Executable)); err != nil || info.Mode()&0o111 == 0 {
		t.Errorf("the interpreter's copy has mode %v, %v", info.Mode(), err)
	}
}

func TestCompleteRefuses(t *testing.T) {
	t.Parallel()
	if _, err := (xllamacpp.Kind{}).Complete(t.Context(), t.TempDir(), "", "/bin/true", prefix); reason.Of(err) != reason.EngineNotFound {
		t.Errorf("another package: %v, want ENGINE_NOT_FOUND", err)
	}
	if _, err := (xllamacpp.Kind{}).Complete(t.Context(), wheel(t), "bin/x", "/bin/true", prefix); reason.Of(err) != reason.InvalidParams {
		t.Errorf("an executable: %v, want INVALID_PARAMS", err)
	}
}

func TestLaunch(t *testing.T) {
	t.Parallel()
	probe := engines.Probe{Version: "1", Flags: launcherFlags(t)}
	program := engines.Program{
		Executable: "/e/bin/python3", Prefix: []string{"-B", "/e/launcher.py"}, Dir: "/e", Env: map[string]string{"PYTHONHOME": "/usr"},
	}
	launch, err := xllamacpp.Kind{}.Launch(program, probe, engines.Serving{
		Model:         &enginev1.PreparedModel{Id: "small", Files: []*enginev1.ModelFile{{Path: "/m/small.gguf"}}},
		ContextTokens: 100, Slots: 3, Flags: []string{"-t", "2"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, arg := range launch.Process.GetArgs() {
		words = append(words, strings.TrimPrefix(arg.GetPlaceholder().String(), "PLACEHOLDER_UNSPECIFIED")+arg.GetLiteral())
	}
	want := "-B /e/launcher.py --host PLACEHOLDER_HOST --port PLACEHOLDER_PORT --model /m/small.gguf --alias small --ctx-size 300 " +
		"--parallel 3 --metrics --fit off --no-ui --offline --batch-size 512 -t 2"
	if got := strings.Join(words, " "); got != want {
		t.Errorf("arguments\n got %s\nwant %s", got, want)
	}
	wantEnv := map[string]string{"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": "/nonexistent", "PYTHONHOME": "/usr"}
	if diff := cmp.Diff(wantEnv, launch.Process.GetEnv()); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
}
