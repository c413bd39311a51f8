// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// listTimeout is for the list of references of a repository: seconds for tens of thousands of them.
const listTimeout = 2 * time.Minute

func (g *Git) resolve(ctx context.Context, o Origin) (string, error) {
	switch o := o.(type) {
	case Remote:
		return g.resolveRemote(ctx, o)
	case Bundle:
		return g.resolveBundle(ctx, o)
	case Tree:
		return o.Digest, nil
	}
	return "", fmt.Errorf("resolve origin: unknown type %T", o)
}

// reference is a name and what it points to.
type reference struct{ id, name string }

// references reads lines of an id and a name, as ls-remote and bundle list-heads print them.
func references(lines []string) []reference {
	var refs []reference
	for _, line := range lines {
		if f := strings.Fields(line); len(f) == 2 && isCommit(f[0]) {
			refs = append(refs, reference{f[0], f[1]})
		}
	}
	return refs
}

// candidates are the full names that ref may mean, best first. A tag's commit stands under its name with ^{}.
func candidates(ref string) []string {
	switch {
	case ref == "" || ref == "HEAD":
		return []string{"HEAD"}
	case strings.HasPrefix(ref, "refs/"):
		return []string{ref + "^{}", ref}
	}
	return []string{"refs/tags/" + ref + "^{}", "refs/tags/" + ref, "refs/heads/" + ref}
}

// pick returns the first of names among refs.
func pick(refs []reference, names []string) (reference, bool) {
	for _, name := range names {
		for _, ref := range refs {
			if ref.name == name {
				return ref, true
			}
		}
	}
	return reference{}, false
}

func (g *Git) resolveRemote(ctx context.Context, o Remote) (commit string, err error) {
	addr, err := o.address()
	if err != nil {
		return "", err
	}
	if err := checkRef(o.Ref, fieldGitRef); err != nil {
		return "", err
	}
	if isCommit(o.Ref) {
		return o.Ref, nil
	}
	s, err := g.open(ctx, "", addr.paths()...)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	c := call{protocols: []string{addr.protocol}, timeout: listTimeout}
	names := candidates(o.Ref)
	if err := s.run(ctx, c, append([]string{"ls-remote", "--", addr.url}, names...)...); err != nil {
		return "", failure(ctx, err, unreachable(addr.url))
	}
	if ref, ok := pick(references(s.result), names); ok {
		return ref.id, nil
	}
	if err := s.run(ctx, c, "ls-remote", "--heads", "--tags", "--refs", "--", addr.url); err != nil {
		return "", failure(ctx, err, unreachable(addr.url))
	}
	return "", noSuchRef(o.Ref, fieldGitRef, references(s.result))
}

func (a address) paths() []string {
	if a.path == "" {
		return nil
	}
	return []string{a.path}
}

func (g *Git) resolveBundle(ctx context.Context, o Bundle) (commit string, err error) {
	if err := checkRef(o.Ref, fieldBundleRef); err != nil {
		return "", err
	}
	s, err := g.open(ctx, "")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.close()) }()

	refs, err := s.heads(ctx, o)
	if err != nil {
		return "", err
	}
	ref, ok := pick(refs, append(candidates(o.Ref), o.Ref))
	if ok && !strings.HasPrefix(ref.name, "refs/tags/") {
		return ref.id, nil
	}
	if !ok && !isCommit(o.Ref) {
		return "", noSuchRef(o.Ref, fieldBundleRef, refs)
	}
	if !ok {
		ref = reference{id: o.Ref, name: o.Ref}
		if r, listed := byID(refs, o.Ref); listed && !strings.HasPrefix(r.name, "refs/tags/") {
			return r.id, nil
		}
	}
	// What a tag points to, and whether a commit is there, only the objects tell.
	repo := filepath.Join(s.home, "repository")
	if err := s.init(ctx, repo, ref.id, "--bare"); err != nil {
		return "", err
	}
	if err := s.unbundle(ctx, repo, o, refs, nil); err != nil {
		return "", err
	}
	if err := s.run(ctx, call{dir: repo}, "rev-parse", "--quiet", "--verify", ref.id+"^{commit}"); err != nil {
		return "", failure(ctx, err, func(error) error { return noSuchRef(o.Ref, fieldBundleRef, refs) })
	}
	return s.result[0], nil
}

func byID(refs []reference, id string) (reference, bool) {
	for _, ref := range refs {
		if ref.id == id {
			return ref, true
		}
	}
	return reference{}, false
}

// heads lists the references of a bundle.
func (s *session) heads(ctx context.Context, o Bundle) ([]reference, error) {
	if _, err := os.Stat(o.Path); errors.Is(err, fs.ErrNotExist) {
		return nil, reason.New(reason.EngineNotFound, "no bundle at "+o.Path, reason.Field(fieldBundleURI),
			reason.Remedy("ask again: the bundle is fetched again"))
	}
	if !filepath.IsAbs(o.Path) {
		return nil, fmt.Errorf("read bundle %q: path is not absolute", o.Path)
	}
	if err := s.run(ctx, call{timeout: listTimeout}, "bundle", "list-heads", o.Path); err != nil {
		return nil, failure(ctx, err, notABundle)
	}
	return references(s.result), nil
}

func notABundle(err error) error {
	return reason.New(reason.InvalidParams, "not a complete git bundle", reason.Field(fieldBundleURI), reason.Cause(err),
		reason.Remedy("make one with: git bundle create FILE REF"))
}
