// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// engineFlags names the flags given that describe an engine, in the order of the help. The two that have defaults
// describe none by themselves.
func (f *Flags) engineFlags() []string {
	e := f.Engine
	return given([]flagValue{
		{"--engine", e.Kind},
		{"--package", e.Package},
		{"--git", e.Git},
		{"--bundle", e.Bundle},
		{"--archive", e.Archive},
		{"--external", e.External},
		{"--engine-sha256", e.SHA256},
		{"--ref", e.Ref},
		{"--executable", e.Executable},
	})
}

// engine builds the engine that the flags describe: a kind, exactly one source, and nothing that the source has no
// use for.
func (f *Flags) engine() (*enginev1.EngineSpec, error) {
	e := f.Engine
	if e.Kind == "" {
		return nil, noEngine()
	}
	sources := given([]flagValue{
		{"--package", e.Package},
		{"--git", e.Git},
		{"--bundle", e.Bundle},
		{"--archive", e.Archive},
		{"--external", e.External},
	})
	if len(sources) == 0 {
		return nil, reason.New(reason.InvalidParams, "the engine has no source", reason.Field("--engine"),
			reason.Remedy("give one of --package, --git, --bundle, --archive, --external"))
	}
	if len(sources) > 1 {
		return nil, reason.New(reason.InvalidParams, "more than one source: "+strings.Join(sources, ", "),
			reason.Field(sources[1]), reason.Remedy("give exactly one of them"))
	}
	if err := e.checkCompanions(sources[0]); err != nil {
		return nil, err
	}
	spec := &enginev1.EngineSpec{Kind: e.Kind}
	switch sources[0] {
	case "--package":
		spec.Source = &enginev1.EngineSpec_Package{Package: &enginev1.PackageArtifact{
			Uri: e.Package, Sha256: e.SHA256, Executable: e.Executable,
		}}
	case "--external":
		spec.Source = &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: e.External, Sha256: e.SHA256}}
	default:
		build, err := e.sourceBuild()
		if err != nil {
			return nil, err
		}
		spec.Source = &enginev1.EngineSpec_SourceBuild{SourceBuild: build}
	}
	return spec, nil
}

// checkCompanions refuses a flag that the source needs and lacks, or has no use for.
func (e EngineFlags) checkCompanions(source string) error {
	needs := map[string][]string{
		"--package": {"--engine-sha256"},
		"--git":     {"--ref"},
		"--bundle":  {"--ref"},
		"--archive": {"--engine-sha256"},
	}[source]
	takes := map[string][]string{
		"--package":  {"--engine-sha256", "--executable"},
		"--git":      {"--ref"},
		"--bundle":   {"--ref", "--engine-sha256"},
		"--archive":  {"--engine-sha256"},
		"--external": {"--engine-sha256"},
	}[source]
	companions := []flagValue{{"--engine-sha256", e.SHA256}, {"--ref", e.Ref}, {"--executable", e.Executable}}
	for _, companion := range companions {
		if companion.value == "" && contains(needs, companion.flag) {
			return reason.New(reason.InvalidParams, "missing, and "+source+" needs it", reason.Field(companion.flag),
				reason.Remedy("give "+companion.flag+" too"))
		}
		if companion.value != "" && !contains(takes, companion.flag) {
			return reason.New(reason.InvalidParams, "has no meaning for "+source, reason.Field(companion.flag),
				reason.Remedy("leave it out"))
		}
	}
	return nil
}

func (e EngineFlags) sourceBuild() (*enginev1.SourceBuild, error) {
	accelerator, err := enumValue("--accelerator", e.Accelerator, accelerators())
	if err != nil {
		return nil, err
	}
	target, err := enumValue("--cpu-target", e.CPUTarget, cpuTargets())
	if err != nil {
		return nil, err
	}
	build := &enginev1.SourceBuild{Accelerator: accelerator, CpuTarget: target}
	switch {
	case e.Git != "":
		build.Origin = &enginev1.SourceBuild_Git{Git: &enginev1.GitRepository{Url: e.Git, Ref: e.Ref}}
	case e.Bundle != "":
		build.Origin = &enginev1.SourceBuild_Bundle{Bundle: &enginev1.GitBundle{Uri: e.Bundle, Sha256: e.SHA256, Ref: e.Ref}}
	default:
		build.Origin = &enginev1.SourceBuild_Archive{Archive: &enginev1.SourceArchive{Uri: e.Archive, Sha256: e.SHA256}}
	}
	return build, nil
}

// accelerators are the values of --accelerator.
func accelerators() map[string]enginev1.Accelerator {
	return map[string]enginev1.Accelerator{"cpu": enginev1.Accelerator_ACCELERATOR_CPU}
}

// cpuTargets are the values of --cpu-target.
func cpuTargets() map[string]enginev1.CpuTarget {
	return map[string]enginev1.CpuTarget{
		"portable": enginev1.CpuTarget_CPU_TARGET_PORTABLE,
		"native":   enginev1.CpuTarget_CPU_TARGET_NATIVE,
	}
}
