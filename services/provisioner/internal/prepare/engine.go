// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/archive"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// Labels of an engine in the store.
const (
	labelLayout = "layout"
	labelCommit = "commit"
)

// engine is an engine that is there and has been asked what it is.
type engine struct {
	program  engines.Program
	probe    engines.Probe
	identity *enginev1.EngineIdentity
}

// engine gets the engine of a plan. Its errors name the part of the spec that says where it comes from, where a part of
// the spec is at fault, and some step of the engine has failed with them.
func (s *Service) engine(ctx context.Context, planned *plan.Plan, t *track) (engine, error) {
	made, err := s.get(ctx, planned, t)
	if slices.Contains([]reason.Reason{
		reason.BuildFailed, reason.ToolMissing, reason.EngineNotFound, reason.InvalidParams, reason.UntrustedArtifact, reason.DigestMismatch, reason.FetchFailed,
	}, reason.Of(err)) {
		err = at(fieldOf(planned.Spec.GetEngine()), err)
	}
	if err != nil {
		t.blame(ctx, planned, err)
	}
	return made, err
}

func fieldOf(spec *enginev1.EngineSpec) string {
	switch spec.GetSource().(type) {
	case *enginev1.EngineSpec_Package:
		return plan.FieldPackage
	case *enginev1.EngineSpec_SourceBuild:
		return plan.FieldBuild
	case *enginev1.EngineSpec_External:
		return plan.FieldExternal
	}
	return plan.FieldSource
}

func (s *Service) get(ctx context.Context, planned *plan.Plan, t *track) (engine, error) {
	way, _ := planned.Kind.Traits().Way(planned.Mode)
	if len(way.Tools) > 0 {
		if _, err := s.cfg.Tools.Require(ctx, way.Tools...); err != nil {
			return engine{}, fmt.Errorf("prepare an engine of kind %s: %w", planned.Kind.Traits().Name, err)
		}
	}
	switch from := planned.Spec.GetEngine().GetSource().(type) {
	case *enginev1.EngineSpec_Package:
		found, err := s.packaged(ctx, planned, from.Package, t)
		if err != nil {
			return engine{}, err
		}
		return s.stored(ctx, planned, found, t)
	case *enginev1.EngineSpec_SourceBuild:
		found, err := s.built(ctx, planned, from.SourceBuild, t)
		if err != nil {
			return engine{}, err
		}
		return s.stored(ctx, planned, found, t)
	case *enginev1.EngineSpec_External:
		return s.external(ctx, planned, from.External, t)
	}
	return engine{}, reason.New(reason.Internal, fmt.Sprintf("no way to get an engine as %s", engines.ModeName(planned.Mode)), reason.Remedy(defectRemedy))
}

// packaged returns the engine that lies in a package.
func (s *Service) packaged(ctx context.Context, planned *plan.Plan, artifact *enginev1.PackageArtifact, t *track) (store.Engine, error) {
	traits := planned.Kind.Traits()
	interpreter, identity := "", ""
	if traits.Interpreter != "" {
		var err error
		if interpreter, identity, err = s.facts.interpreter(ctx, traits.Interpreter); err != nil {
			return store.Engine{}, err
		}
	}
	key := plan.PackageKey(traits, artifact, identity)
	found, err := s.cfg.Store.Engine(key)
	if err == nil {
		t.cached(planned.Step(plan.EngineFetch))
		t.cached(planned.Step(plan.EngineExtract))
		return found, nil
	}
	if !errors.Is(err, store.ErrAbsent) {
		return store.Engine{}, err
	}
	file, err := s.fetch(ctx, planned.Step(plan.EngineFetch), planned.EngineFile, t)
	if err != nil {
		return store.Engine{}, err
	}
	err = s.do(ctx, t, planned.Step(plan.EngineExtract), func(ctx context.Context, _ *step) error {
		found, err = s.cfg.Store.PublishEngine(ctx, key, func(ctx context.Context, dir string) (map[string]string, error) {
			if err := extract(ctx, file.Blob.Path, dir); err != nil {
				return nil, err
			}
			layout, err := planned.Kind.Complete(ctx, dir, artifact.GetExecutable(), interpreter, s.ask)
			if err != nil {
				return nil, storageError("complete the package", err)
			}
			return labels(layout, "")
		})
		return s.refused(ctx, plan.FieldPackage, file.Blob.Digest, err)
	})
	return found, err
}

// refused names field in an error that says that a file is not what it should be, and forgets the file.
func (s *Service) refused(ctx context.Context, field string, file store.Digest, err error) error {
	switch reason.Of(err) {
	case reason.UntrustedArtifact, reason.InvalidParams, reason.EngineNotFound:
		if discardErr := s.cfg.Store.Discard(context.WithoutCancel(ctx), file); discardErr != nil {
			return errors.Join(at(field, err), discardErr)
		}
		return at(field, err)
	default:
		return err
	}
}

func extract(ctx context.Context, path, dir string) error {
	opened, err := archive.Open(path, archive.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = opened.Close() }()
	return opened.Extract(ctx, dir)
}

func labels(layout engines.Layout, commit string) (map[string]string, error) {
	text, err := json.Marshal(layout)
	if err != nil {
		return nil, fmt.Errorf("encode layout: %w", err)
	}
	return map[string]string{labelLayout: string(text), labelCommit: commit}, nil
}

// stored makes an engine of what is in the store.
func (s *Service) stored(ctx context.Context, planned *plan.Plan, found store.Engine, t *track) (engine, error) {
	var layout engines.Layout
	if err := json.Unmarshal([]byte(found.Labels[labelLayout]), &layout); err != nil {
		return engine{}, reason.New(reason.StorageFailed, "engine "+found.Key+" does not say how it is run", reason.Cause(err),
			reason.Remedy("remove "+filepath.Dir(found.Dir)+", so that it is made again"))
	}
	var files []*enginev1.ExecutedFile
	for _, file := range found.Files {
		if isCode(file) {
			files = append(files, &enginev1.ExecutedFile{Path: filepath.Join(found.Dir, file.Path), Sha256: file.Digest.Hex(), SizeBytes: file.SizeBytes})
		}
	}
	program := layout.Program(found.Dir, files)
	probe, err := s.probe(ctx, planned, found.Key, program, t)
	if err != nil {
		return engine{}, err
	}
	digest := found.Digest
	if len(found.Files) == 1 {
		digest = found.Files[0].Digest
	}
	return engine{program: program, probe: probe, identity: &enginev1.EngineIdentity{
		Kind: planned.Kind.Traits().Name, Version: probe.Version, Commit: found.Labels[labelCommit], Digest: string(digest), Mode: planned.Mode,
	}}, nil
}

// isCode tells whether a file can be executed or loaded as code. Links are not listed: what they lead to is.
func isCode(file store.TreeFile) bool {
	name := filepath.Base(file.Path)
	return file.Digest != "" && (file.Mode&0o111 != 0 || strings.HasSuffix(name, ".py") || strings.Contains(name, ".so"))
}

// external returns an engine that somebody else installed. Its shared libraries are not looked at.
func (s *Service) external(ctx context.Context, planned *plan.Plan, binary *enginev1.ExternalBinary, t *track) (engine, error) {
	path := binary.GetPath()
	digest, err := s.facts.digest(ctx, path)
	if err != nil {
		return engine{}, externalError(path, err)
	}
	if want := binary.GetSha256(); want != "" && want != digest.Hex() {
		return engine{}, reason.New(reason.DigestMismatch, fmt.Sprintf("%s has another sha256 than was asked for", path),
			reason.Field("spec.engine.external.sha256"), reason.Meta("want", want), reason.Meta("got", digest.Hex()),
			reason.Remedy("name the digest of the engine that you mean, or install that engine"))
	}
	info, err := statProgram(path)
	if err != nil {
		return engine{}, err
	}
	program := engines.Program{Executable: path, Dir: filepath.Dir(path), Files: []*enginev1.ExecutedFile{
		{Path: path, Sha256: digest.Hex(), SizeBytes: info.Size()},
	}}
	probe, err := s.probe(ctx, planned, string(digest), program, t)
	if err != nil {
		return engine{}, err
	}
	return engine{program: program, probe: probe, identity: &enginev1.EngineIdentity{
		Kind: planned.Kind.Traits().Name, Version: probe.Version, Digest: string(digest), Mode: planned.Mode,
	}}, nil
}

func externalError(path string, err error) error {
	switch {
	case errors.Is(err, errNotRegular):
		return reason.New(reason.InvalidParams, path+" is not a file", reason.Field(plan.FieldExternal), reason.Remedy("name the executable itself"))
	case errors.Is(err, fs.ErrPermission):
		return reason.New(reason.UntrustedArtifact, path+" may not be read by the provisioner", reason.Field(plan.FieldExternal), reason.Cause(err),
			reason.Remedy("let the provisioner's user read it"))
	case errors.Is(err, fs.ErrNotExist):
		return reason.New(reason.EngineNotFound, path+" does not exist", reason.Field(plan.FieldExternal), reason.Cause(err),
			reason.Remedy("check the path on the provisioner's machine"))
	}
	return fmt.Errorf("use the engine %s: %w", path, err)
}
