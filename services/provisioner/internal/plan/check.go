// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// Fields of a request that errors name.
const (
	FieldKind       = "spec.engine.kind"
	FieldSource     = "spec.engine.source"
	FieldPackage    = "spec.engine.package.uri"
	FieldPackageSHA = "spec.engine.package.sha256"
	FieldExternal   = "spec.engine.external.path"
	FieldBuild      = "spec.engine.source_build"
	FieldGitURL     = "spec.engine.source_build.git.url"
	FieldBundle     = "spec.engine.source_build.bundle.uri"
	FieldArchive    = "spec.engine.source_build.archive.uri"
	FieldModel      = "spec.model.uri"
	FieldModelID    = "spec.model.id"
	FieldContext    = "spec.launch.context_tokens"
)

const (
	// defaultContextTokens serves a chat without taking memory for more.
	defaultContextTokens = 4096
	// maxModelIDBytes is what the contract allows.
	maxModelIDBytes = 128
)

// check returns a plan without steps.
func (p Planner) check(given *enginev1.PrepareSpec) (*Plan, error) {
	spec, ok := proto.Clone(given).(*enginev1.PrepareSpec)
	if !ok || spec.GetEngine() == nil || spec.GetModel() == nil {
		return nil, reason.New(reason.InvalidParams, "spec needs an engine and a model", reason.Field("spec"), reason.Remedy("give both"))
	}
	kind, err := p.Catalog.Find(FieldKind, spec.GetEngine().GetKind())
	if err != nil {
		return nil, err
	}
	plan := &Plan{Spec: spec, Kind: kind, Mode: engines.ModeOf(spec.GetEngine())}
	if err := checkMode(kind.Traits(), plan.Mode); err != nil {
		return nil, err
	}
	if err := p.checkEngine(plan); err != nil {
		return nil, err
	}
	if err := p.checkModel(plan); err != nil {
		return nil, err
	}
	if spec.GetLaunch() == nil {
		spec.Launch = &enginev1.LaunchSpec{}
	}
	spec.Launch.Slots = max(1, spec.GetLaunch().GetSlots())
	if err := checkContext(spec.GetLaunch()); err != nil {
		return nil, err
	}
	data, err := canonical(spec)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	plan.Key = hex.EncodeToString(sum[:])
	return plan, nil
}

func checkMode(traits engines.Traits, mode engines.Mode) error {
	if _, ok := traits.Way(mode); ok {
		return nil
	}
	var names []string
	for _, way := range traits.Ways {
		names = append(names, engines.ModeName(way.Mode))
	}
	return reason.New(reason.InvalidParams, fmt.Sprintf("engine kind %s cannot be got as %s", traits.Name, engines.ModeName(mode)),
		reason.Field(FieldSource), reason.Remedy("use one of "+strings.Join(names, ", ")))
}

func (p Planner) checkEngine(plan *Plan) error {
	switch source := plan.Spec.GetEngine().GetSource().(type) {
	case *enginev1.EngineSpec_Package:
		return p.checkPackage(plan, source.Package)
	case *enginev1.EngineSpec_External:
		resolved, err := p.Roots.Resolve(FieldExternal, source.External.GetPath(), reason.EngineNotFound)
		source.External.Path = resolved
		return err
	case *enginev1.EngineSpec_SourceBuild:
		return p.checkBuild(plan, source.SourceBuild)
	}
	return nil
}

func (p Planner) checkPackage(plan *Plan, artifact *enginev1.PackageArtifact) error {
	ref, err := fetch.Parse(artifact.GetUri())
	if err != nil {
		return at(FieldPackage, err)
	}
	traits := plan.Kind.Traits()
	switch {
	case ref.Scheme != fetch.SchemePyPI || ref.Member != "":
		return reason.New(reason.InvalidParams, fmt.Sprintf("%q is not a whole package", artifact.GetUri()), reason.Field(FieldPackage),
			reason.Remedy("use pypi:NAME==VERSION, and executable for a path in it"))
	case len(traits.Packages) > 0 && !slices.Contains(traits.Packages, ref.Package):
		return reason.New(reason.InvalidParams, fmt.Sprintf("package %s is not of the kind %s", ref.Package, traits.Name), reason.Field(FieldPackage),
			reason.Remedy("use "+strings.Join(traits.Packages, " or ")+", or another kind"))
	case artifact.GetExecutable() != "" && !plainPath(artifact.GetExecutable()):
		return reason.New(reason.InvalidParams, fmt.Sprintf("%q is not a path inside the package", artifact.GetExecutable()),
			reason.Field("spec.engine.package.executable"), reason.Remedy("use a relative path without .."))
	}
	digest, err := digestOf(FieldPackageSHA, artifact.GetSha256())
	if err != nil {
		return err
	}
	if digest == "" {
		return reason.New(reason.UntrustedArtifact, "an engine from a package needs the package's sha256", reason.Field(FieldPackageSHA),
			reason.Remedy("give the sha256 that the registry lists for the file"))
	}
	artifact.Uri = ref.String()
	plan.EngineFile = fetch.Request{Ref: ref, Want: digest, Archive: digest, Field: FieldPackage, DigestField: FieldPackageSHA, Missing: reason.EngineNotFound}
	return nil
}

func (p Planner) checkBuild(plan *Plan, build *enginev1.SourceBuild) error {
	if build.GetAccelerator() != enginev1.Accelerator_ACCELERATOR_CPU {
		return reason.New(reason.InvalidParams, "no accelerator to build for", reason.Field("spec.engine.source_build.accelerator"),
			reason.Remedy("use ACCELERATOR_CPU"))
	}
	if build.GetCpuTarget() == enginev1.CpuTarget_CPU_TARGET_UNSPECIFIED {
		build.CpuTarget = enginev1.CpuTarget_CPU_TARGET_PORTABLE
	}
	switch origin := build.GetOrigin().(type) {
	case *enginev1.SourceBuild_Git:
		return p.checkGit(origin.Git)
	case *enginev1.SourceBuild_Bundle:
		request, err := p.checkFile(FieldBundle, origin.Bundle.GetUri(), origin.Bundle.GetSha256(), reason.EngineNotFound)
		plan.EngineFile, origin.Bundle.Uri = request, request.Ref.String()
		return err
	case *enginev1.SourceBuild_Archive:
		request, err := p.checkFile(FieldArchive, origin.Archive.GetUri(), origin.Archive.GetSha256(), reason.EngineNotFound)
		if err == nil && request.Want == "" {
			return reason.New(reason.UntrustedArtifact, "a source archive needs its sha256", reason.Field("spec.engine.source_build.archive.sha256"),
				reason.Remedy("give the sha256 that the publisher states"))
		}
		plan.EngineFile, origin.Archive.Uri = request, request.Ref.String()
		return err
	}
	return reason.New(reason.InvalidParams, "no source to build from", reason.Field("spec.engine.source_build"),
		reason.Remedy("give git, bundle or archive"))
}

// checkGit leaves all but the place of a local repository to the package that runs git.
func (p Planner) checkGit(repository *enginev1.GitRepository) error {
	address, err := url.Parse(repository.GetUrl())
	if err != nil || address.Scheme == "" {
		return reason.New(reason.InvalidParams, fmt.Sprintf("%.300q is not the address of a repository", reason.Redact(repository.GetUrl())), reason.Field(FieldGitURL),
			reason.Remedy("use https://host/path, or file:/absolute/path below an allowed root"))
	}
	if address.Scheme != "file" {
		return nil
	}
	resolved, err := p.Roots.Resolve(FieldGitURL, cmp.Or(address.Path, address.Opaque), reason.EngineNotFound)
	if err != nil {
		return err
	}
	repository.Url = "file:" + resolved
	return nil
}

func (p Planner) checkModel(plan *Plan) error {
	model := plan.Spec.GetModel()
	request, err := p.checkFile(FieldModel, model.GetUri(), model.GetSha256(), reason.ModelNotFound)
	if err != nil {
		return err
	}
	if request.Ref.Package != "" && request.Ref.Member == "" {
		return reason.New(reason.InvalidParams, fmt.Sprintf("%s is a package, not a model", request.Ref), reason.Field(FieldModel),
			reason.Remedy("add the path of the model file in the package"))
	}
	plan.Model, model.Uri = request, request.Ref.String()
	if model.GetId() == "" {
		model.Id = defaultModelID(request.Ref.Base())
	}
	return nil
}

// checkFile makes a request of a reference. A missing file is not looked for here.
func (p Planner) checkFile(field, uri, sha string, missing reason.Reason) (fetch.Request, error) {
	ref, err := fetch.Parse(uri)
	if err != nil {
		return fetch.Request{}, at(field, err)
	}
	digestField := strings.TrimSuffix(field, "uri") + "sha256"
	digest, err := digestOf(digestField, sha)
	if err != nil {
		return fetch.Request{}, err
	}
	if ref.Scheme == fetch.SchemeHTTPS && digest == "" {
		return fetch.Request{}, reason.New(reason.UntrustedArtifact, "a file from an address needs its sha256",
			reason.Field(digestField), reason.Remedy("give the sha256 that the publisher of the file states"))
	}
	if ref.Scheme == fetch.SchemeFile {
		if _, err := p.Roots.Resolve(field, ref.Path, missing); reason.Of(err) == reason.UntrustedArtifact {
			return fetch.Request{}, err
		}
	}
	return fetch.Request{Ref: ref, Want: digest, Field: field, DigestField: digestField, Missing: missing}, nil
}

func digestOf(field, sha string) (store.Digest, error) {
	if sha == "" {
		return "", nil
	}
	digest, err := store.ParseDigest(sha)
	return digest, at(field, err)
}

// at names field in an error that has no better one.
func at(field string, err error) error {
	found, ok := reason.As(err)
	if !ok {
		return err
	}
	named := *found
	named.Fields = []reason.FieldViolation{{Name: field}}
	return &named
}

func plainPath(path string) bool { return filepath.IsLocal(path) && filepath.Clean(path) == path }

var notInID = regexp.MustCompile(`[^A-Za-z0-9._/:-]+`)

// defaultModelID is the file's name without its ending, in the letters that an id may have.
func defaultModelID(name string) string {
	id := strings.TrimLeft(notInID.ReplaceAllString(strings.TrimSuffix(name, ".gguf"), "-"), "._/:-")
	return cmp.Or(id[:min(len(id), maxModelIDBytes)], "model")
}

// FillContext sets the context of a slot if the spec left it open; trained is what the model's header says, 0 if nothing.
func FillContext(launch *enginev1.LaunchSpec, trained int64) {
	if launch.GetContextTokens() != 0 {
		return
	}
	launch.ContextTokens = defaultContextTokens
	if trained > 0 && trained < defaultContextTokens {
		launch.ContextTokens = uint32(trained)
	}
}

// checkContext refuses what is more than engines can count.
func checkContext(launch *enginev1.LaunchSpec) error {
	if total := uint64(launch.GetContextTokens()) * uint64(launch.GetSlots()); total > math.MaxInt32 {
		return reason.New(reason.InvalidParams, fmt.Sprintf("%d slots of %d tokens are %d tokens of context", launch.GetSlots(), launch.GetContextTokens(), total),
			reason.Field(FieldContext), reason.Remedy(fmt.Sprintf("keep slots times context_tokens within %d", math.MaxInt32)))
	}
	return nil
}
