// SPDX-License-Identifier: Apache-2.0

// Package plan turns a spec into the ordered steps that prepare it, and says what is wrong with a spec.
//
// Planning uses no network, runs no program and changes nothing: what is cached, resolved or installed it asks of Facts.
// The same spec and the same answers give the same plan. A Planner may be used by several goroutines at once.
package plan

import (
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/roots"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// The steps. Their ids are those in the progress of the work.
const (
	EngineFetch    = "engine/fetch"
	EngineCheckout = "engine/checkout"
	EngineExtract  = "engine/extract"
	EngineBuild    = "engine/build"
	EngineProbe    = "engine/probe"
	ModelFetch     = "model/fetch"
	ModelInspect   = "model/inspect"
	Record         = "record"
)

// Work is a kind of step.
type Work int

// The kinds of step.
const (
	WorkUnspecified Work = iota
	Fetch
	Checkout
	Extract
	Build
	Probe
	Inspect
	Recording
)

// Step is one part of a plan.
type Step struct {
	ID string
	// Name is for people.
	Name string
	Work Work
	// Cached is true if the store has its result.
	Cached bool
	// SizeBytes is what is fetched; 0 means not known.
	SizeBytes int64
	// LastDuration is what it took last on this machine; 0 means never.
	LastDuration time.Duration
	// DurationKey is the resolution under which its duration is kept.
	DurationKey string
}

// OfEngine tells whether the step is about the engine, and not about the model or the two together.
func (s Step) OfEngine() bool { return s.ID != ModelFetch && s.ID != ModelInspect && s.ID != Record }

// Plan is what is to be done for one spec.
type Plan struct {
	// Spec is the spec with its defaults filled in; the context stays 0 until the model's header was read once.
	Spec *enginev1.PrepareSpec
	// Key is equal for specs that mean the same.
	Key string
	// Kind is the engine's kind, and Mode how it is got.
	Kind engines.Kind
	Mode engines.Mode
	// EngineFile is the package, bundle or archive that the engine comes from, if it comes from a file.
	EngineFile fetch.Request
	// Model is the model file.
	Model fetch.Request
	// Steps are in the order in which they begin.
	Steps []Step
}

// Step returns the step of id.
func (p *Plan) Step(id string) Step {
	for _, step := range p.Steps {
		if step.ID == id {
			return step
		}
	}
	return Step{ID: id, Name: id}
}

// Facts are what a plan depends on besides the spec. No method uses the network or runs a program.
type Facts interface {
	// Fetched looks for a file in the store.
	Fetched(request fetch.Request) (digest store.Digest, sizeBytes int64, ok bool)
	// Engine tells whether the store has the engine of key.
	Engine(key string) bool
	// Resolved returns what was kept under key.
	Resolved(key string) (string, bool)
	// Probe returns what the engine of a ProbeKey said of itself.
	Probe(key string) (engines.Probe, bool)
	// Tool returns what tells an installed tool from every other, if it has been looked for; for a compiler that is the
	// whole toolchain.
	Tool(name toolchain.Name) (string, bool)
	// File returns the digest of a file outside the store, if the file was hashed and is still the same.
	File(path string) (store.Digest, bool)
}

// Planner makes plans. All fields are required but Roots.
type Planner struct {
	Catalog *engines.Catalog
	Facts   Facts
	// Roots are where file: references, external engines and local repositories may lie.
	Roots roots.Roots
	// Platform is the machine's architecture, as in amd64.
	Platform string
	// Processor tells this machine's processor from others; it is part of what a native build is.
	Processor string
}

// Plan checks spec and returns its plan; spec is not changed. Wrong fields are INVALID_PARAMS, an unknown kind or a missing
// engine is ENGINE_NOT_FOUND, and what lies outside the roots or has no digest where one is needed UNTRUSTED_ARTIFACT.
func (p Planner) Plan(spec *enginev1.PrepareSpec) (*Plan, error) {
	plan, err := p.check(spec)
	if err != nil {
		return nil, err
	}
	engineSteps, engineKey := p.engineSteps(plan)
	if err := p.checkKnownFlags(plan, engineKey); err != nil {
		return nil, err
	}
	modelSteps, err := p.modelSteps(plan)
	if err != nil {
		return nil, err
	}
	plan.Steps = append(interleave(engineSteps, modelSteps), p.recordStep(plan, engineSteps, modelSteps))
	for i := range plan.Steps {
		step := &plan.Steps[i]
		if text, ok := p.Facts.Resolved(step.DurationKey); ok {
			step.LastDuration, _ = time.ParseDuration(text)
		}
	}
	return plan, nil
}

// checkKnownFlags refuses flags that the engine is known not to have; an engine that is not there yet is asked later.
func (p Planner) checkKnownFlags(plan *Plan, engineKey string) error {
	traits := plan.Kind.Traits()
	flags := plan.Spec.GetLaunch().GetFlags()
	probe, ok := p.Facts.Probe(ProbeKey(traits, engineKey))
	if !ok {
		return engines.RefuseOwned(flags, traits.Owned)
	}
	_, err := engines.CheckFlags(flags, traits.Owned, probe.Flags)
	return err
}

func (p Planner) modelSteps(plan *Plan) ([]Step, error) {
	uri := plan.Model.Ref.String()
	digest, size, fetched := p.Facts.Fetched(plan.Model)
	text, inspected := "", false
	if fetched {
		text, inspected = p.Facts.Resolved(InspectKey(digest))
	}
	if inspected {
		var header struct {
			ContextLength int64
		}
		if err := json.Unmarshal([]byte(text), &header); err == nil {
			FillContext(plan.Spec.GetLaunch(), header.ContextLength)
		}
	}
	return []Step{
		{ID: ModelFetch, Name: "fetch model " + plan.Model.Ref.Base(), Work: Fetch, Cached: fetched, SizeBytes: size, DurationKey: durationKey(ModelFetch, uri)},
		{ID: ModelInspect, Name: "check model " + plan.Model.Ref.Base(), Work: Inspect, Cached: inspected, DurationKey: durationKey(ModelInspect, uri)},
	}, checkContext(plan.Spec.GetLaunch())
}

func (p Planner) recordStep(plan *Plan, chains ...[]Step) Step {
	_, recorded := p.Facts.Resolved(RecordKey(plan.Key))
	for _, chain := range chains {
		for _, step := range chain {
			recorded = recorded && step.Cached
		}
	}
	return Step{ID: Record, Name: "record the prepared engine", Work: Recording, Cached: recorded, DurationKey: durationKey(Record, plan.Kind.Traits().Name)}
}

// interleave puts two chains that run at once in the order in which their steps are likely to begin.
func interleave(a, b []Step) []Step {
	var steps []Step
	for i := range max(len(a), len(b)) {
		if i < len(a) {
			steps = append(steps, a[i])
		}
		if i < len(b) {
			steps = append(steps, b[i])
		}
	}
	return steps
}

// canonical returns bytes that are equal for equal messages of this build of the program.
func canonical(m proto.Message) ([]byte, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, reason.New(reason.InvalidParams, fmt.Sprintf("spec cannot be encoded: %v", err), reason.Field("spec"), reason.Cause(err),
			reason.Remedy("use valid UTF-8 in all texts"))
	}
	return data, nil
}
