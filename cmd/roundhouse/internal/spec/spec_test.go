// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

const (
	digestA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	model   = "--model=file:/m/x.gguf"
)

// prepareFrom parses a command line as the commands do.
func prepareFrom(t *testing.T, stdin string, args ...string) (*provisionerv1.PrepareRequest, error) {
	t.Helper()
	var flags Flags
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.Register(set)
	if err := set.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	return flags.Prepare(strings.NewReader(stdin), set.Args())
}

func preloadFrom(t *testing.T, stdin string, args ...string) (*poolv1.PreloadRequest, error) {
	t.Helper()
	var flags PreloadFlags
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.Register(set)
	if err := set.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	return flags.Preload(strings.NewReader(stdin), set.Args())
}

func textProto[M proto.Message](t *testing.T, text string, message M) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), message); err != nil {
		t.Fatalf("parse wanted message: %v", err)
	}
	return message
}

func TestPrepareFlags(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		args []string
		want string
	}{
		{
			name: "package",
			args: []string{"--engine=xllamacpp", "--package=pypi:x==1", "--engine-sha256=" + digestA, "--executable=bin/x", model},
			want: `engine { kind: "xllamacpp" package { uri: "pypi:x==1" sha256: "` + digestA + `" executable: "bin/x" } }
				model { uri: "file:/m/x.gguf" }`,
		},
		{
			name: "git with defaults for the build",
			args: []string{"--engine=llamacpp", "--git=https://host/x.git", "--ref=v1", model},
			want: `engine { kind: "llamacpp" source_build { git { url: "https://host/x.git" ref: "v1" }
				accelerator: ACCELERATOR_CPU cpu_target: CPU_TARGET_PORTABLE } } model { uri: "file:/m/x.gguf" }`,
		},
		{
			name: "bundle for this processor",
			args: []string{"--engine=llamacpp", "--bundle=npm:a@1/b.bundle", "--ref=HEAD", "--engine-sha256=" + digestA, "--cpu-target=native", model},
			want: `engine { kind: "llamacpp" source_build { bundle { uri: "npm:a@1/b.bundle" ref: "HEAD" sha256: "` + digestA + `" }
				accelerator: ACCELERATOR_CPU cpu_target: CPU_TARGET_NATIVE } } model { uri: "file:/m/x.gguf" }`,
		},
		{
			name: "archive",
			args: []string{"--engine=llamacpp", "--archive=file:/s.tar.gz", "--engine-sha256=" + digestA, model},
			want: `engine { kind: "llamacpp" source_build { archive { uri: "file:/s.tar.gz" sha256: "` + digestA + `" }
				accelerator: ACCELERATOR_CPU cpu_target: CPU_TARGET_PORTABLE } } model { uri: "file:/m/x.gguf" }`,
		},
		{
			name: "external with a model's digest and id",
			args: []string{"--engine=llamacpp", "--external=/opt/llama-server", model, "--model-sha256=" + digestA, "--model-id=m"},
			want: `engine { kind: "llamacpp" external { path: "/opt/llama-server" } }
				model { uri: "file:/m/x.gguf" sha256: "` + digestA + `" id: "m" }`,
		},
		{
			name: "launch, with engine flags in their order",
			args: []string{"--engine=llamacpp", "--external=/opt/x", model, "--context=512", "--slots=3", "--flag=--threads", "--flag=2", "--", "--mlock", "-fa"},
			want: `engine { kind: "llamacpp" external { path: "/opt/x" } } model { uri: "file:/m/x.gguf" }
				launch { context_tokens: 512 slots: 3 flags: "--threads" flags: "2" flags: "--mlock" flags: "-fa" }`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := prepareFrom(t, "", test.args...)
			if err != nil {
				t.Fatalf("Prepare(%q) = %v", test.args, err)
			}
			want := textProto(t, test.want, &enginev1.PrepareSpec{})
			if diff := cmp.Diff(want, got.GetSpec(), protocmp.Transform()); diff != "" {
				t.Errorf("Prepare(%q) (-want +got):\n%s", test.args, diff)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		stdin string
		args  []string
		field string
		says  string
	}{
		{"nothing", "", nil, "--engine", "--preset"},
		{"model only", "", []string{model}, "--engine", "no engine"},
		{"kind without source", "", []string{"--engine=a", model}, "--engine", "no source"},
		{"source without kind", "", []string{"--external=/x", model}, "--engine", "no engine"},
		{"two sources", "", []string{"--engine=a", "--external=/x", "--git=u", model}, "--external", "--git, --external"},
		{"package without digest", "", []string{"--engine=a", "--package=pypi:x==1", model}, "--engine-sha256", "--package needs it"},
		{"git without ref", "", []string{"--engine=a", "--git=u", model}, "--ref", "--git needs it"},
		{"archive with ref", "", []string{"--engine=a", "--archive=u", "--ref=x", "--engine-sha256=" + digestA, model}, "--ref", "no meaning for --archive"},
		{"executable of git", "", []string{"--engine=a", "--git=u", "--ref=x", "--executable=y", model}, "--executable", "no meaning for --git"},
		{"unknown accelerator", "", []string{"--engine=a", "--git=u", "--ref=x", "--accelerator=abacus", model}, "--accelerator", "cpu"},
		{"unknown cpu target", "", []string{"--engine=a", "--git=u", "--ref=x", "--cpu-target=z80", model}, "--cpu-target", "native, portable"},
		{"no model", "", []string{"--engine=a", "--external=/x"}, "--model", "no model"},
		{"unknown preset", "", []string{"--preset=slow"}, "--preset", "quick or source"},
		{"preset and file", "", []string{"--preset=quick", "-f", "-"}, "--preset", "together with -f"},
		{"preset and engine", "", []string{"--preset=quick", "--engine=a"}, "--engine", "together with --preset"},
		{"file and engine", "spec: {engine: {kind: a, external: {path: /x}}}", []string{"-f", "-", "--engine=b"}, "--engine", "together with -f"},
		{"missing file", "", []string{"-f", "/nonexistent/x.yaml"}, "/nonexistent/x.yaml", "no such file"},
		{"digest without model", "spec: {engine: {kind: a, external: {path: /x}}}", []string{"-f", "-", "--model-sha256=" + digestA}, "--model", "no model"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := prepareFrom(t, test.stdin, test.args...)
			e, ok := reason.As(err)
			if !ok || e.Reason != reason.InvalidParams {
				t.Fatalf("Prepare(%q) = %v, %v, want INVALID_PARAMS", test.args, got, err)
			}
			if len(e.Fields) != 1 || e.Fields[0].Name != test.field {
				t.Errorf("Prepare(%q) names %v, want %s", test.args, e.Fields, test.field)
			}
			if !strings.Contains(e.Error(), test.says) {
				t.Errorf("Prepare(%q) says %q, want it to say %q", test.args, e.Error(), test.says)
			}
			if e.Remedy == "" {
				t.Errorf("Prepare(%q) has no remedy", test.args)
			}
		})
	}
}

func TestPreload(t *testing.T) {
	t.Parallel()
	const prepared = "sha256:" + digestA
	tests := []struct {
		name  string
		stdin string
		args  []string
		want  string
	}{
		{
			name: "prepared before",
			args: []string{"--pool=p", "--prepared-id=" + prepared, "--replicas=2", "--port=8080", "--startup-timeout=90s", "--request-id=r"},
			want: `spec { pool_id: "p" prepared_id: "` + prepared + `" replicas: 2 port: 8080 startup_timeout { seconds: 90 } } request_id: "r"`,
		},
		{
			name: "flags",
			args: []string{"--pool=p", "--engine=a", "--external=/x", model},
			want: `spec { pool_id: "p" prepare { engine { kind: "a" external { path: "/x" } } model { uri: "file:/m/x.gguf" } } }`,
		},
		{
			name:  "file completed by flags",
			stdin: "spec:\n  poolId: a\n  startupTimeout: 5s\n  prepare:\n    engine: {kind: a, external: {path: /x}}\n    model: {uri: 'file:/m', sha256: '" + digestA + "'}\n",
			args:  []string{"-f", "-", "--pool=b", model, "--slots=2"},
			want: `spec { pool_id: "b" startup_timeout { seconds: 5 } prepare { engine { kind: "a" external { path: "/x" } }
				model { uri: "file:/m/x.gguf" } launch { slots: 2 } } }`,
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := preloadFrom(t, test.stdin, test.args...)
			if err != nil {
				t.Fatalf("Preload(%q) = %v", test.args, err)
			}
			want := textProto(t, test.want, &poolv1.PreloadRequest{})
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("Preload(%q) (-want +got):\n%s", test.args, diff)
			}
		})
	}
}

func TestPreloadRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		stdin string
		args  []string
		field string
	}{
		{"no name", "", []string{"--preset=quick"}, "--pool"},
		{"nothing to run", "", []string{"--pool=p"}, "--engine"},
		{"prepared and described", "", []string{"--pool=p", "--prepared-id=sha256:x", "--preset=quick"}, "--prepared-id"},
		{"prepared in the file and described", `{"spec":{"preparedId":"x"}}`, []string{"-f", "-", "--pool=p", "--engine=a", "--external=/x", model}, "spec.preparedId"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := preloadFrom(t, test.stdin, test.args...)
			e, ok := reason.As(err)
			if !ok || len(e.Fields) != 1 || e.Fields[0].Name != test.field {
				t.Errorf("Preload(%q) = %v, %v, want an error that names %s", test.args, got, err, test.field)
			}
		})
	}
}

func TestPresetsAreFiles(t *testing.T) {
	t.Parallel()
	for _, arch := range []string{"amd64", "arm64"} {
		for _, name := range PresetNames() {
			t.Run(name+"/"+arch, func(t *testing.T) {
				t.Parallel()
				got, err := presetFor(name, arch)
				if err != nil {
					t.Fatalf("presetFor(%q, %q) = %v", name, arch, err)
				}
				if digest := got.GetModel().GetSha256(); len(digest) != 64 {
					t.Errorf("model's sha256 is %q, want 64 digits", digest)
				}
				engine := got.GetEngine()
				digest := engine.GetPackage().GetSha256() + engine.GetSourceBuild().GetBundle().GetSha256()
				if len(digest) != 64 {
					t.Errorf("engine's sha256 is %q, want 64 digits", digest)
				}
			})
		}
	}
	if _, err := presetFor("quick", "riscv64"); err == nil {
		t.Error("presetFor(quick, riscv64) succeeded, want an error: there is no such package")
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "request.json")
	text := `{"spec": {"engine": {"kind": "a", "external": {"path": "/x"}}, "model": {"uri": "file:/m"}}}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := prepareFrom(t, "", "-f", path)
	if err != nil {
		t.Fatalf("Prepare(-f %s) = %v", path, err)
	}
	if kind := got.GetSpec().GetEngine().GetKind(); kind != "a" {
		t.Errorf("engine kind is %q, want a", kind)
	}
}
