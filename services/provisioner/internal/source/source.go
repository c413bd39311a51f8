// SPDX-License-Identifier: Apache-2.0

// Package source resolves what a source spec refers to and checks it out.
//
// An origin is a git repository (https:, or file: below a root that the caller has checked), a git bundle file that
// the caller has verified, or a tree that the caller has extracted. Git runs without the user's or the system's
// configuration, without hooks, prompts or credentials, and speaks only the protocol of the origin; submodules come
// over https (or http from a loopback address when the origin did). References and addresses that git would take for
// options or other transports are refused before it runs.
//
// A checkout is complete when its marker is there, which is written last: one that was killed is made again. The
// methods may be called at once, but only one at a time for one folder; the caller holds its lock.
package source

import (
	"context"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// Origin is where source comes from: Remote, Bundle or Tree.
type Origin interface{ origin() }

// Remote is a git repository.
type Remote struct {
	// URL is https://host/path, file:/absolute/path, or http:// with a loopback host.
	URL string
	// Ref is a tag, a branch, a full reference name or a full commit id. Empty means HEAD.
	Ref string
}

// Bundle is a git bundle.
type Bundle struct {
	// Path is the absolute path of the file.
	Path string
	// Ref is a tag, a branch, a full reference name or a full commit id in the bundle. Empty means HEAD.
	Ref string
}

// Tree is a source tree that was extracted from an archive.
type Tree struct {
	// Dir is its absolute path.
	Dir string
	// Digest stands in place of a commit: the archive's, as sha256:<hex>.
	Digest string
}

// Phase is a part of a checkout.
type Phase int

const (
	// PhaseUnspecified is none.
	PhaseUnspecified Phase = iota
	// Receiving gets objects.
	Receiving
	// Resolving puts deltas together.
	Resolving
	// Writing writes the files.
	Writing
	// Submodules gets what the tree refers to.
	Submodules
)

// Progress is how far a checkout has come. Percent never shrinks within a phase.
type Progress struct {
	Phase Phase
	// Percent is 0 to 100 within the phase.
	Percent int
	// Done and Total count objects, deltas or files; zero when not known.
	Done, Total int64
}

// Observer is told what happens, from the goroutine that called. Both fields may be nil.
type Observer struct {
	Progress func(Progress)
	// Line gets what git prints but for its progress.
	Line func(runner.Stream, string)
}

// Checkout is a complete source tree.
type Checkout struct {
	// Dir is its absolute path.
	Dir string
	// Commit is the full commit id, or the digest of a Tree.
	Commit string
}

// Tools finds git.
type Tools interface {
	Find(context.Context, toolchain.Name) (toolchain.Tool, error)
	Path() string
}

// Config is what a Repository reader needs.
type Config struct {
	// Tools finds git. Required.
	Tools Tools
	// Env is what git gets besides, as KEY=value: proxies, certificate files. Variables that begin with GIT_ are
	// refused but for GIT_SSL_CAINFO and GIT_SSL_CAPATH.
	Env []string
	// TempDir is a folder for the configuration that git gets for one call. Empty means the system's.
	TempDir string
}

// New returns a Git. It starts nothing.
func New(c Config) (*Git, error) { return newGit(c) }

// ResolveCommit gives the full commit id that origin refers to now; for a Tree its digest. A full commit id is returned
// as it is, unasked, unless the origin is a bundle. It asks the network for a remote repository. A reference that
// does not exist is InvalidParams with near references in the message; a repository that cannot be reached is
// FetchFailed.
func (g *Git) ResolveCommit(ctx context.Context, o Origin) (string, error) { return g.resolve(ctx, o) }

// Checkout puts commit of origin into dir, which is created, and returns where the tree lies below it. A complete
// checkout of the same commit is returned as it is; anything else in dir is removed first. On failure or cancel dir
// holds no marker. A Tree is returned as it is and dir is left alone.
func (g *Git) Checkout(ctx context.Context, o Origin, commit, dir string, obs Observer) (Checkout, error) {
	return g.checkout(ctx, o, commit, dir, obs)
}
