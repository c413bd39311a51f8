// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

func (f *fixture) packageSpec(t *testing.T) *enginev1.PrepareSpec {
	t.Helper()
	digest, _, err := hashFile(t.Context(), f.fetcher.files[wheelRef])
	if err != nil {
		t.Fatal(err)
	}
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_Package{Package: &enginev1.PackageArtifact{
			Uri: wheelRef, Sha256: digest.Hex(),
		}}},
		Model: &enginev1.ModelSpec{Uri: modelRef},
	}
}

func TestEngineFromSource(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	prepared, events, err := f.do(t.Context(), sourceSpec("v1"))
	if err != nil {
		t.Fatal(err)
	}
	if prepared.GetEngine().GetCommit() != f.sources.commit || prepared.GetEngine().GetMode() != enginev1.ProvisioningMode_PROVISIONING_MODE_SOURCE {
		t.Errorf("engine %v", prepared.GetEngine())
	}
	files := prepared.GetProcess().GetFiles()
	if len(files) != 1 || files[0].GetPath() != prepared.GetProcess().GetExecutable() || prepared.GetEngine().GetDigest() != "sha256:"+files[0].GetSha256() {
		t.Errorf("files %v of %s with digest %s", files, prepared.GetProcess().GetExecutable(), prepared.GetEngine().GetDigest())
	}
	if text, err := os.ReadFile(prepared.GetProcess().GetExecutable()); err != nil || string(text) != "a built server" {
		t.Errorf("executable %q, %v", text, err)
	}
	var percent, lines int
	for _, event := range events {
		if event.GetStatus().GetUnit() == enginev1.Unit_UNIT_PERCENT {
			percent++
		}
		if strings.Contains(string(event.GetLog().GetData()), "compiling\n") {
			lines++
		}
	}
	if percent == 0 || lines != 1 {
		t.Errorf("%d percents and %d lines of the build were seen", percent, lines)
	}
	if _, _, err := f.do(t.Context(), sourceSpec("v1")); err != nil || f.builder.builds != 1 || f.sources.checkouts != 1 {
		t.Errorf("again: %v, %d builds and %d checkouts", err, f.builder.builds, f.sources.checkouts)
	}
}

func TestABranchIsResolvedEachTime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first, _, err := f.do(t.Context(), sourceSpec("main"))
	if err != nil {
		t.Fatal(err)
	}
	f.sources.commit = strings.Repeat("b", 40)
	second, _, err := f.do(t.Context(), sourceSpec("main"))
	if err != nil {
		t.Fatal(err)
	}
	if second.GetEngine().GetCommit() != f.sources.commit || first.GetPreparedId() == second.GetPreparedId() || f.builder.builds != 2 {
		t.Errorf("after the branch moved: commit %s, %d builds", second.GetEngine().GetCommit(), f.builder.builds)
	}
	if text, err := os.ReadFile(filepath.Join(f.cfg.Store.Root(), "builds")); err == nil {
		t.Errorf("builds is a file: %s", text)
	}
}

func TestABuildThatFailsLeavesNothingVisible(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.builder.err = reason.New(reason.BuildFailed, "it does not compile", reason.Meta("first_error", "x.c:1: error"))
	_, events, err := f.do(t.Context(), sourceSpec("v1"))
	if found, ok := reason.As(err); !ok || found.Reason != reason.BuildFailed || found.Metadata["first_error"] != "x.c:1: error" {
		t.Fatalf("Prepare: %v, want BUILD_FAILED with the first error", err)
	}
	if step := ended(events)[plan.EngineBuild]; step.GetState() != enginev1.StepState_STEP_STATE_FAILED {
		t.Errorf("build step %v, want failed", step)
	}
	if entries, err := os.ReadDir(filepath.Join(f.cfg.Store.Root(), "engines")); err != nil || len(entries) != 0 {
		t.Errorf("engines has %v, %v", entries, err)
	}
	f.builder.err = nil
	if _, _, err := f.do(t.Context(), sourceSpec("v1")); err != nil || f.sources.checkouts != 2 {
		t.Errorf("again: %v after %d checkouts", err, f.sources.checkouts)
	}
}

func TestMissingToolsAreToldFirst(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(c *Config) { c.Tools = &fakeTools{missing: map[toolchain.Name]bool{toolchain.CMake: true}} })
	if _, _, err := f.do(t.Context(), sourceSpec("v1")); reason.Of(err) != reason.ToolMissing {
		t.Errorf("Prepare: %v, want TOOL_MISSING", err)
	}
	if f.sources.checkouts != 0 {
		t.Error("source was checked out without the tools to build it")
	}
}

func TestEngineFromPackage(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	prepared, _, err := f.do(t.Context(), f.packageSpec(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := prepared.GetProcess().GetWorkingDir()
	if want := filepath.Join(dir, "server/bin/llama-server"); prepared.GetProcess().GetExecutable() != want {
		t.Errorf("executable %s, want %s", prepared.GetProcess().GetExecutable(), want)
	}
	if got := prepared.GetProcess().GetLibraryPaths(); len(got) != 1 || got[0] != filepath.Join(dir, "server/bin") {
		t.Errorf("library paths %v", got)
	}
	var names []string
	for _, file := range prepared.GetProcess().GetFiles() {
		names = append(names, filepath.Base(file.GetPath()))
	}
	if got := strings.Join(names, " "); got != "libx.so llama-server" {
		t.Errorf("files of code: %s", got)
	}
}

func TestPackageWithoutTheExecutable(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	spec := f.packageSpec(t)
	spec.GetEngine().GetPackage().Executable = "bin/other"
	_, _, err := f.do(t.Context(), spec)
	if reason.Of(err) != reason.EngineNotFound {
		t.Fatalf("Prepare: %v, want ENGINE_NOT_FOUND", err)
	}
	if entries, err := os.ReadDir(filepath.Join(f.cfg.Store.Root(), "engines")); err != nil || len(entries) != 0 {
		t.Errorf("engines has %v, %v", entries, err)
	}
}

func TestAnExternalEngineThatChangesIsAnotherEngine(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first, _, err := f.do(t.Context(), f.externalSpec(modelRef))
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "llama-server", []byte("a newer server"))
	second, _, err := f.do(t.Context(), f.externalSpec(modelRef))
	if err != nil {
		t.Fatal(err)
	}
	if first.GetPreparedId() == second.GetPreparedId() || f.probes != 4 {
		t.Errorf("ids %s and %s after %d probes", first.GetPreparedId(), second.GetPreparedId(), f.probes)
	}
	if _, err := f.Prepared(first.GetPreparedId()); reason.Of(err) != reason.PreparedNotFound {
		t.Errorf("the engine that is gone: %v, want PREPARED_NOT_FOUND", err)
	}
}
