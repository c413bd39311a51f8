// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/build"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/source"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// Names below the store and its work folders.
const (
	ccacheName   = "ccache"
	treeName     = "tree"
	buildName    = "build"
	buildLogName = "build.log"
	doneName     = "extracted"
)

// origin is source whose commit, or digest in its place, is known.
type origin struct {
	from source.Origin
	// commit is empty for an archive.
	commit string
	// archive is an archive's file, zero for anything else.
	archive store.Blob
	// name tells the source from others.
	name string
}

// built returns the engine that is built from source, and builds it if the store does not have it.
func (s *Service) built(ctx context.Context, planned *plan.Plan, spec *enginev1.SourceBuild, t *track) (store.Engine, error) {
	compilers, err := s.facts.compilers(ctx)
	if err != nil {
		return store.Engine{}, err
	}
	from, err := s.origin(ctx, planned, spec, t)
	if err != nil {
		return store.Engine{}, err
	}
	key := s.planner.BuildKey(planned.Kind, spec, from.name, compilers)
	unpack := planned.Step(plan.EngineCheckout)
	if from.archive.Path != "" {
		unpack = planned.Step(plan.EngineExtract)
	}
	found, err := s.cfg.Store.Engine(key)
	if err == nil {
		t.cached(unpack)
		t.cached(planned.Step(plan.EngineBuild))
		return found, nil
	}
	if !errors.Is(err, store.ErrAbsent) {
		return store.Engine{}, err
	}
	made := false
	found, err = s.cfg.Store.PublishEngine(ctx, key, func(ctx context.Context, dir string) (map[string]string, error) {
		made = true
		tree, err := s.cfg.Store.Sources(ctx, "source-"+keyDigest(from.name))
		if err != nil {
			return nil, err
		}
		defer func() { _ = tree.Close() }()
		var top string
		err = s.do(ctx, t, unpack, func(ctx context.Context, step *step) (err error) {
			top, err = s.unpack(ctx, from, tree, step)
			return err
		})
		if err != nil {
			return nil, err
		}
		layout := engines.Layout{Executable: filepath.Join("bin", filepath.Base(planned.Kind.Recipe(spec).Output))}
		err = s.do(ctx, t, planned.Step(plan.EngineBuild), func(ctx context.Context, step *step) error {
			return s.build(ctx, planned.Kind.Recipe(spec), key, top, filepath.Join(dir, layout.Executable), step)
		})
		if err != nil {
			return nil, err
		}
		return labels(layout, from.commit)
	})
	if err == nil && !made { // another process made it while this one waited
		t.cached(unpack)
		t.cached(planned.Step(plan.EngineBuild))
	}
	return found, err
}

// origin finds out which commit is meant. A branch or tag of a repository is asked for each time.
func (s *Service) origin(ctx context.Context, planned *plan.Plan, spec *enginev1.SourceBuild, t *track) (origin, error) {
	if repository := spec.GetGit(); repository != nil {
		from := source.Remote{URL: repository.GetUrl(), Ref: repository.GetRef()}
		commit, err := s.resolve(ctx, from, repository.GetUrl(), repository.GetRef())
		return origin{from: from, commit: commit, name: commit}, err
	}
	file, err := s.fetch(ctx, planned.Step(plan.EngineFetch), planned.EngineFile, t)
	if err != nil {
		return origin{}, err
	}
	if spec.GetArchive() != nil {
		return origin{archive: file.Blob, name: string(file.Blob.Digest)}, nil
	}
	from := source.Bundle{Path: file.Blob.Path, Ref: spec.GetBundle().GetRef()}
	kept := plan.CommitKey(string(file.Blob.Digest), from.Ref)
	if commit, err := s.cfg.Store.Resolution(kept); err == nil { // a bundle never changes
		return origin{from: from, commit: commit, name: commit}, nil
	}
	commit, err := s.resolve(ctx, from, string(file.Blob.Digest), from.Ref)
	return origin{from: from, commit: commit, name: commit}, err
}

func (s *Service) resolve(ctx context.Context, from source.Origin, name, ref string) (string, error) {
	commit, err := s.cfg.Sources.ResolveCommit(ctx, from)
	if err != nil {
		return "", inSpec(err)
	}
	kept := plan.CommitKey(name, ref)
	if old, err := s.cfg.Store.Resolution(kept); err == nil && old == commit {
		return commit, nil
	}
	return commit, s.cfg.Store.PutResolution(kept, commit)
}

// unpack puts the source below tree and returns the folder that holds it.
func (s *Service) unpack(ctx context.Context, from origin, tree *store.WorkDir, step *step) (string, error) {
	if from.archive.Path != "" {
		top, err := unpackArchive(ctx, from.archive.Path, tree)
		if err != nil {
			err = s.refused(ctx, plan.FieldArchive, from.archive.Digest, errors.Join(err, tree.Clear()))
		}
		return top, err
	}
	checkout, err := s.cfg.Sources.Checkout(ctx, from.from, from.commit, filepath.Join(tree.Path, treeName), source.Observer{
		Progress: func(p source.Progress) { step.percent(overall(p)) },
		Line:     step.line,
	})
	return checkout.Dir, inSpec(err)
}

// overall is the share of a whole checkout, with parts that last about as long as their shares.
func overall(p source.Progress) int {
	switch p.Phase {
	case source.Receiving:
		return p.Percent * 60 / percentAll
	case source.Resolving:
		return 60 + p.Percent*15/percentAll
	case source.Writing:
		return 75 + p.Percent*20/percentAll
	case source.Submodules:
		return 95 + p.Percent*5/percentAll
	default:
		return 0
	}
}

// unpackArchive extracts an archive once; the mark is written last, so one that was cut off is extracted again.
func unpackArchive(ctx context.Context, path string, tree *store.WorkDir) (string, error) {
	dir, mark := filepath.Join(tree.Path, treeName), filepath.Join(tree.Path, doneName)
	if _, err := os.Stat(mark); err != nil {
		if err := tree.Clear(); err != nil {
			return "", err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", storageError("extract source", err)
		}
		if err := extract(ctx, path, dir); err != nil {
			return "", err
		}
		if err := os.WriteFile(mark, nil, 0o644); err != nil {
			return "", storageError("extract source", err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", storageError("read source", err)
	}
	if len(entries) == 1 && entries[0].IsDir() {
		dir = filepath.Join(dir, entries[0].Name())
	}
	if _, err := os.Stat(filepath.Join(dir, "CMakeLists.txt")); err != nil {
		return "", reason.New(reason.InvalidParams, "the archive has no CMakeLists.txt at its top", reason.Field(plan.FieldArchive),
			reason.Remedy("name an archive of the engine's whole source"))
	}
	return dir, nil
}

// build compiles the tree top and copies the recipe's output to binary. What was compiled when it fails or is cut off is
// kept for the next try, with the log; afterwards only the binary is.
func (s *Service) build(ctx context.Context, recipe engines.Recipe, key, top, binary string, step *step) error {
	work, err := s.cfg.Store.Builds(ctx, key)
	if err != nil {
		return err
	}
	defer func() { _ = work.Close() }()
	log, err := os.Create(filepath.Join(work.Path, buildLogName))
	if err != nil {
		return storageError("open the build's log", err)
	}
	defer func() { _ = log.Close() }()
	dir := filepath.Join(work.Path, buildName)
	_, err = s.cfg.Builder.Build(ctx, build.Recipe{
		SourceDir: top, BuildDir: dir, Definitions: recipe.Definitions, Targets: recipe.Targets,
		CCacheDir: filepath.Join(s.cfg.Store.Root(), ccacheName), Log: log,
	}, build.Observer{
		Progress: func(p build.Progress) {
			if p.Phase == build.Compile {
				step.percent(p.Percent)
			}
		},
		Line: step.line,
	})
	if err != nil {
		return inSpec(err)
	}
	if err := copyBinary(filepath.Join(dir, recipe.Output), binary); err != nil {
		return storageError("take the built "+filepath.Base(binary), err)
	}
	return work.Clear()
}

func copyBinary(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return reason.New(reason.BuildFailed, "the build ended well and made no "+filepath.Base(to), reason.Cause(err), reason.Meta("phase", "compile"),
			reason.Remedy("name the source of the engine, at a ref whose build makes "+filepath.Base(to)))
	}
	defer func() { _ = in.Close() }()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// defectRemedy is for what cannot be.
const defectRemedy = "report it: it is a defect of Roundhouse"

// storageError gives a reason to an error that has none.
func storageError(attempt string, err error) error {
	if _, ok := reason.As(err); ok {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return reason.New(reason.DiskFull, attempt, reason.Cause(err), reason.Remedy("free space on the file system of the store"))
	}
	return reason.New(reason.StorageFailed, attempt, reason.Cause(err),
		reason.Remedy("check permissions and health of the file system that holds the file"))
}

// inSpec makes the fields that the packages below name fields of the request.
func inSpec(err error) error {
	found, ok := reason.As(err)
	if !ok || len(found.Fields) == 0 {
		return err
	}
	named := *found
	named.Fields = slices.Clone(found.Fields)
	for i, field := range named.Fields {
		if strings.HasPrefix(field.Name, "engine.") {
			named.Fields[i].Name = "spec." + field.Name
		}
	}
	return &named
}

// at names field in an error that names none.
func at(field string, err error) error {
	found, ok := reason.As(err)
	if !ok || len(found.Fields) > 0 {
		return err
	}
	named := *found
	named.Fields = []reason.FieldViolation{{Name: field}}
	return &named
}
