// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"path/filepath"
	"regexp"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

var fullCommit = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)

// IsCommit tells whether ref is a full commit id, which never means something else later.
func IsCommit(ref string) bool { return fullCommit.MatchString(ref) }

// engineSteps returns the steps that get the engine, and the key of what is probed: that of the store, or the digest of an
// external executable. The key is empty while something that it is made of is not known.
func (p Planner) engineSteps(plan *Plan) (steps []Step, key string) {
	name := plan.Kind.Traits().Name
	var subject string
	switch source := plan.Spec.GetEngine().GetSource().(type) {
	case *enginev1.EngineSpec_Package:
		steps, key = p.packageSteps(plan, source.Package)
		subject = source.Package.GetUri()
	case *enginev1.EngineSpec_External:
		digest, _ := p.Facts.File(source.External.GetPath())
		key, subject = string(digest), source.External.GetPath()
	case *enginev1.EngineSpec_SourceBuild:
		steps, key = p.sourceSteps(plan, source.SourceBuild)
		subject = originOf(source.SourceBuild)
	}
	_, probed := p.Facts.Probe(ProbeKey(plan.Kind.Traits(), key))
	steps = append(steps, Step{ID: EngineProbe, Name: "ask " + name + " for its version and flags", Work: Probe, Cached: probed})
	for i := range steps {
		steps[i].DurationKey = durationKey(steps[i].ID, name+" "+subject)
	}
	return steps, key
}

func (p Planner) packageSteps(plan *Plan, artifact *enginev1.PackageArtifact) ([]Step, string) {
	traits := plan.Kind.Traits()
	_, size, fetched := p.Facts.Fetched(plan.EngineFile)
	interpreter, known := "", true
	if traits.Interpreter != "" {
		interpreter, known = p.Facts.Tool(traits.Interpreter)
	}
	key, there := "", false
	if known {
		key = PackageKey(traits, artifact, interpreter)
		there = p.Facts.Engine(key)
	}
	base := plan.EngineFile.Ref.Base()
	return []Step{
		{ID: EngineFetch, Name: "fetch " + base, Work: Fetch, Cached: fetched || there, SizeBytes: size},
		{ID: EngineExtract, Name: "extract " + base, Work: Extract, Cached: there},
	}, key
}

func (p Planner) sourceSteps(plan *Plan, build *enginev1.SourceBuild) ([]Step, string) {
	name := plan.Kind.Traits().Name
	var file store.Digest
	var size int64
	var fetched bool
	if plan.EngineFile.Ref.Scheme != "" {
		file, size, fetched = p.Facts.Fetched(plan.EngineFile)
	}
	source := ""
	switch origin := build.GetOrigin().(type) {
	case *enginev1.SourceBuild_Git:
		source = p.commit(origin.Git.GetUrl(), origin.Git.GetRef())
	case *enginev1.SourceBuild_Bundle:
		source = p.commit(string(file), origin.Bundle.GetRef())
	case *enginev1.SourceBuild_Archive:
		source = "sha256:" + origin.Archive.GetSha256()
	}
	key, there := "", false
	if compilers, known := p.Facts.Tool(toolchain.CXX); known && source != "" {
		key = p.BuildKey(plan.Kind, build, source, compilers)
		there = p.Facts.Engine(key)
	}
	var steps []Step
	if plan.EngineFile.Ref.Scheme != "" {
		steps = append(steps, Step{ID: EngineFetch, Name: "fetch " + plan.EngineFile.Ref.Base(), Work: Fetch, Cached: fetched || there, SizeBytes: size})
	}
	if build.GetArchive() != nil {
		steps = append(steps, Step{ID: EngineExtract, Name: "extract the source of " + name, Work: Extract, Cached: there})
	} else {
		ref := build.GetGit().GetRef() + build.GetBundle().GetRef()
		steps = append(steps, Step{ID: EngineCheckout, Name: fmt.Sprintf("check out %s %s", name, ref), Work: Checkout, Cached: there})
	}
	return append(steps, Step{ID: EngineBuild, Name: "build " + name, Work: Build, Cached: there}), key
}

// commit returns what ref was found to mean last, or "" if nobody asked yet.
func (p Planner) commit(origin, ref string) string {
	if IsCommit(ref) {
		return ref
	}
	commit, _ := p.Facts.Resolved(CommitKey(origin, ref))
	return commit
}

func originOf(build *enginev1.SourceBuild) string {
	switch origin := build.GetOrigin().(type) {
	case *enginev1.SourceBuild_Git:
		return origin.Git.GetUrl()
	case *enginev1.SourceBuild_Bundle:
		return origin.Bundle.GetUri()
	case *enginev1.SourceBuild_Archive:
		return filepath.Base(origin.Archive.GetUri())
	}
	return ""
}
