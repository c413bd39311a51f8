// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const head = "// " + licence + "\n\n"

// sound returns a small repository that breaks no rule: the modules, and one package in each folder that a rule names.
func sound() fstest.MapFS {
	repository := fstest.MapFS{}
	modules := []string{"cmd/roundhouse", "pkg", "proto", "services/pool-manager", "services/provisioner", "test"}
	var work strings.Builder
	fmt.Fprintf(&work, "go %s\n\nuse (\n", goVersion)
	for _, module := range modules {
		fmt.Fprintf(&work, "\t./%s\n", module)
		put(repository, module+"/go.mod", fmt.Sprintf("module %s/%s\n\ngo %s\n", prefix, module, goVersion))
	}
	put(repository, "go.work", work.String()+")\n")
	put(repository, "tools/lint/go.mod", fmt.Sprintf("module %s/tools/lint\n\ngo 1.26.7\n", prefix))

	for _, b := range bans() {
		for _, folder := range slices.Concat(b.in, b.except) {
			put(repository, folder+"/p.go", head+"// Package p is.\npackage p\n")
		}
	}
	delete(repository, "cmd/roundhouse/p.go")
	put(repository, "cmd/roundhouse/main.go", head+"// Command roundhouse is.\npackage main\n\nfunc main() {\n}\n")
	return repository
}

func put(repository fstest.MapFS, name, content string) {
	repository[name] = &fstest.MapFile{Data: []byte(content)}
}

// source is a file of package p with a licence line.
func source(body string) string { return head + "package p\n\n" + body }

// TestSoundTree proves that the crafted trees below break only the rule that they are for.
func TestSoundTree(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff([]string(nil), broken(t, sound())); diff != "" {
		t.Errorf("broken rules (-want +got):\n%s", diff)
	}
}

// TestEveryRuleGoesRed breaks each rule and nothing else.
func TestEveryRuleGoesRed(t *testing.T) {
	t.Parallel()
	covered := map[string]bool{}
	for _, test := range slices.Concat(banCases(), fileCases(), moduleCases()) {
		covered[test.rule] = true
		t.Run(test.rule+"/"+test.name, func(t *testing.T) {
			t.Parallel()
			repository := sound()
			for name, content := range test.files {
				put(repository, name, content)
			}
			for _, name := range test.removed {
				delete(repository, name)
			}
			if diff := cmp.Diff(test.want, broken(t, repository)); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
		})
	}
	for _, rule := range All() {
		if !covered[rule.Name] {
			t.Errorf("no case proves that rule %s can fail", rule.Name)
		}
	}
}

// broken returns "rule: violation" for every violation of every rule.
func broken(t *testing.T, repository fstest.MapFS) []string {
	t.Helper()
	tree, err := Load(repository)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, rule := range All() {
		for _, violation := range rule.Check(tree) {
			out = append(out, rule.Name+": "+violation.String())
		}
	}
	return out
}

// redCase is a change to the sound tree and all violations that it must cause; none proves an exemption.
type redCase struct {
	rule, name string
	files      map[string]string
	removed    []string
	want       []string
}

func banCases() []redCase {
	const kill = "import \"syscall\"\n\nvar _ = syscall.Kill\n"
	return []redCase{
		{
			rule: "pool-manager-without-provisioner", name: "import",
			files: map[string]string{
				"services/pool-manager/q.go": source("import _ \"" + prefix + "/services/provisioner/internal/plan\"\n"),
			},
			want: []string{"pool-manager-without-provisioner: services/pool-manager/q.go:5: imports " +
				prefix + "/services/provisioner/internal/plan"},
		},
		{
			rule: "provisioner-without-pool-manager", name: "import in a test",
			files: map[string]string{
				"services/provisioner/q_test.go": source("import _ \"" + prefix + "/services/pool-manager/x\"\n"),
			},
			want: []string{"provisioner-without-pool-manager: services/provisioner/q_test.go:5: imports " +
				prefix + "/services/pool-manager/x"},
		},
		{
			rule: "shared-without-services", name: "import",
			files: map[string]string{
				"pkg/client/dial.go": source("import _ \"" + prefix + "/services/pool-manager/x\"\n"),
			},
			want: []string{"shared-without-services: pkg/client/dial.go:5: imports " + prefix + "/services/pool-manager/x"},
		},
		{
			rule: "proto-alone", name: "import",
			files: map[string]string{"proto/q.go": source("import _ \"" + prefix + "/pkg/reason\"\n")},
			want:  []string{"proto-alone: proto/q.go:5: imports " + prefix + "/pkg/reason"},
		},
		{
			rule: "processes-in-one-place", name: "import",
			files: map[string]string{"pkg/client/dial.go": source("import _ \"os/exec\"\n")},
			want:  []string{"processes-in-one-place: pkg/client/dial.go:5: imports os/exec"},
		},
		{
			rule: "processes-in-one-place", name: "symbol",
			files: map[string]string{"services/provisioner/internal/server/kill.go": source(kill)},
			want:  []string{"processes-in-one-place: services/provisioner/internal/server/kill.go:7: uses syscall.Kill"},
		},
		{
			rule: "processes-in-one-place", name: "symbol under another name",
			files: map[string]string{
				"pkg/client/kill.go": source("import sys \"golang.org/x/sys/unix\"\n\nvar _ = sys.PidfdSendSignal\n"),
			},
			want: []string{"processes-in-one-place: pkg/client/kill.go:7: uses golang.org/x/sys/unix.PidfdSendSignal"},
		},
		{
			rule: "processes-in-one-place", name: "dot import",
			files: map[string]string{"pkg/client/kill.go": source("import . \"syscall\"\n\nvar _ = Kill\n")},
			want:  []string{"processes-in-one-place: pkg/client/kill.go:5: imports syscall with a dot"},
		},
		{
			rule: "processes-in-one-place", name: "leave and tests",
			files: map[string]string{
				"services/pool-manager/internal/process/kill.go": source(kill),
				"pkg/client/kill_test.go":                        source(kill),
			},
		},
		{
			rule: "processes-in-one-place", name: "folder gone",
			removed: []string{"services/provisioner/internal/runner/p.go"},
			want: []string{"processes-in-one-place: services/provisioner/internal/runner: " +
				"the rule names a folder without Go files; correct the rule"},
		},
		{
			rule: "wire-at-the-edge", name: "grpc",
			files: map[string]string{
				"services/pool-manager/internal/process/q.go": source("import _ \"google.golang.org/grpc/codes\"\n"),
			},
			want: []string{"wire-at-the-edge: services/pool-manager/internal/process/q.go:5: imports google.golang.org/grpc/codes"},
		},
		{
			rule: "wire-at-the-edge", name: "messages of a service",
			files: map[string]string{
				"services/pool-manager/internal/process/q.go": source("import (\n\t_ \"" + prefix +
					"/proto/gen/go/roundhouse/engine/v1\"\n\t_ \"" + prefix + "/proto/gen/go/roundhouse/pool/v1\"\n)\n"),
			},
			want: []string{"wire-at-the-edge: services/pool-manager/internal/process/q.go:7: imports " +
				prefix + "/proto/gen/go/roundhouse/pool/v1"},
		},
		{
			rule: "no-sleep", name: "in a test",
			files: map[string]string{"test/q_test.go": source("import \"time\"\n\nvar _ = time.Sleep\n")},
			want:  []string{"no-sleep: test/q_test.go:7: uses time.Sleep"},
		},
		{
			rule: "no-sleep", name: "generated",
			files: map[string]string{
				"proto/gen.go": "// " + licence + "\n\n// Code generated by x. DO NOT EDIT.\n\npackage p\n\nfunc init() {}\n",
			},
		},
	}
}

func fileCases() []redCase {
	const long = "func main() {\n" +
		"\tprintln()\n\tprintln()\n\tprintln()\n\tprintln()\n\tprintln()\n\tprintln()\n\tprintln()\n\tprintln()\n\tprintln()\n\tprintln()\n}\n"
	return []redCase{
		{
			rule: "no-engine-name-in-pool-manager", name: "comment, test exempt",
			files: map[string]string{
				"services/pool-manager/internal/process/q.go":      source("// Starts Llama-server.\nvar _ = 1\n"),
				"services/pool-manager/internal/process/q_test.go": source("// Starts vLLM.\nvar _ = 1\n"),
			},
			want: []string{"no-engine-name-in-pool-manager: services/pool-manager/internal/process/q.go:5: names the engine llama"},
		},
		{
			rule: "package-comment", name: "none",
			files: map[string]string{"pkg/client/p.go": head + "package p\n"},
			want:  []string{"package-comment: pkg/client: package p has no comment; it belongs into p.go"},
		},
		{
			rule: "package-comment", name: "two",
			files: map[string]string{"pkg/client/dial.go": head + "// Package p is.\npackage p\n"},
			want:  []string{"package-comment: pkg/client: package p has comments in [dial.go p.go]"},
		},
		{
			rule: "package-comment", name: "elsewhere",
			files: map[string]string{
				"pkg/client/p.go":   head + "package p\n",
				"pkg/client/doc.go": head + "// Package p is.\npackage p\n",
			},
			want: []string{"package-comment: pkg/client: package p has its comment in doc.go; it belongs into p.go"},
		},
		{
			rule: "licence-line", name: "go, proto, shell, make",
			files: map[string]string{
				"pkg/client/dial.go": "package p\n",
				"proto/a.proto":      "syntax = \"proto3\";\n",
				".ci/run":            "#!/usr/bin/env bash\nset -e\n",
				"Makefile":           "all:\n",
			},
			want: []string{
				"licence-line: .ci/run:1: the licence line is missing: # " + licence,
				"licence-line: Makefile:1: the licence line is missing: # " + licence,
				"licence-line: pkg/client/dial.go:1: the licence line is missing: // " + licence,
				"licence-line: proto/a.proto:1: the licence line is missing: // " + licence,
			},
		},
		{
			rule: "licence-line", name: "below a shebang, other people's files",
			files: map[string]string{
				".ci/run":                   "#!/usr/bin/env bash\n# " + licence + "\n",
				"third_party/proto/a.proto": "syntax = \"proto3\";\n",
				"pkg/testdata/a.go":         "package a\n",
				"LICENSE":                   "Apache License\n",
			},
		},
		{
			rule: "no-init", name: "function",
			files: map[string]string{"pkg/client/dial.go": source("func init() {}\n")},
			want:  []string{"no-init: pkg/client/dial.go:5: has func init"},
		},
		{
			rule: "no-init", name: "method",
			files: map[string]string{"pkg/client/dial.go": source("type T int\n\nfunc (T) init() {}\n")},
		},
		{
			rule: "small-main", name: "long",
			files: map[string]string{"cmd/roundhouse/main.go": head + "// Command roundhouse is.\npackage main\n\n" + long},
			want:  []string{"small-main: cmd/roundhouse/main.go:6: main has 10 lines, want under 10"},
		},
		{
			rule: "small-main", name: "more than main",
			files: map[string]string{
				"cmd/roundhouse/main.go": head + "// Command roundhouse is.\npackage main\n\nfunc main() {}\n\nfunc other() {}\n",
				"cmd/roundhouse/more.go": head + "package main\n",
			},
			want: []string{
				"small-main: cmd/roundhouse/main.go:8: package main has func other besides main",
				"small-main: cmd/roundhouse/more.go: package main has another file than main.go",
			},
		},
		{
			rule: "file-length", name: "601 lines",
			files: map[string]string{"pkg/client/dial.go": source(strings.Repeat("\n", 601-4))},
			want:  []string{"file-length: pkg/client/dial.go: has 601 lines, want 600 at most"},
		},
	}
}

func moduleCases() []redCase {
	module := func(folder, rest string) string {
		return fmt.Sprintf("module %s/%s\n\ngo %s\n\n%s", prefix, folder, goVersion, rest)
	}
	return []redCase{
		{
			rule: "one-version", name: "block and line",
			files: map[string]string{
				"pkg/go.mod":  module("pkg", "require (\n\texample.org/a v1.0.0\n\texample.org/b v1.0.0 // indirect\n)\n"),
				"test/go.mod": module("test", "require example.org/b v1.1.0\n"),
				"tools/lint/go.mod": fmt.Sprintf("module %s/tools/lint\n\ngo 1.26.7\n\nrequire example.org/a v1.2.0\n",
					prefix),
			},
			want: []string{"one-version: go.work: example.org/b is required at v1.0.0 in pkg, v1.1.0 in test; run make fix-tidy"},
		},
		{
			rule: "go-directive", name: "newer",
			files: map[string]string{"pkg/go.mod": fmt.Sprintf("module %s/pkg\n\ngo 1.27.0\n", prefix)},
			want:  []string{"go-directive: pkg/go.mod: says go 1.27.0, want go 1.26.0"},
		},
		{
			rule: "workspace-members", name: "forgotten",
			files: map[string]string{"extra/go.mod": module("extra", "")},
			want:  []string{"workspace-members: extra/go.mod: go.work uses every module except those of tools"},
		},
		{
			rule: "workspace-members", name: "tool inside, module gone",
			files: map[string]string{"go.work": string(sound()["go.work"].Data) + "use ./tools/lint\nuse ./gone\n"},
			want: []string{
				"workspace-members: go.work: uses gone, which is no module",
				"workspace-members: tools/lint/go.mod: go.work uses every module except those of tools",
			},
		},
		{
			rule: "workspace-members", name: "path and replace",
			files: map[string]string{
				"pkg/go.mod":  module("other", "require "+prefix+"/proto v0.0.0\n\nreplace "+prefix+"/proto => ../protos\n"),
				"test/go.mod": module("test", "require "+prefix+"/proto v0.0.0\n\nreplace "+prefix+"/proto => ../proto\n"),
			},
			want: []string{
				"workspace-members: pkg/go.mod: is module " + prefix + "/other, want " + prefix + "/pkg",
				"workspace-members: pkg/go.mod: requires " + prefix + "/proto without a replace by its folder",
			},
		},
	}
}
