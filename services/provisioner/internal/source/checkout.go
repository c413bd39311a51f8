// SPDX-License-Identifier: Apache-2.0

package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// treeName is the folder of the source below the folder of a checkout.
const treeName = "tree"

// checkoutRef keeps what was fetched from being no reference's.
const checkoutRef = "refs/roundhouse/"

func (g *Git) checkout(ctx context.Context, o Origin, commit, dir string, obs Observer) (_ Checkout, err error) {
	if t, ok := o.(Tree); ok {
		return Checkout{Dir: t.Dir, Commit: t.Digest}, nil
	}
	if !isCommit(commit) || !filepath.IsAbs(dir) {
		return Checkout{}, fmt.Errorf("check out %q into %q: want a full commit id and an absolute folder", commit, dir)
	}
	done := Checkout{Dir: filepath.Join(dir, treeName), Commit: commit}
	if complete(dir, commit) {
		return done, nil
	}
	if err := empty(dir); err != nil {
		return Checkout{}, storage("clear checkout", err)
	}
	m := &meter{obs: obs}
	switch o := o.(type) {
	case Remote:
		err = g.checkoutRemote(ctx, o, done, m)
	case Bundle:
		err = g.checkoutBundle(ctx, o, done, m)
	default:
		err = fmt.Errorf("check out origin: unknown type %T", o)
	}
	if err != nil {
		return Checkout{}, err
	}
	if err := seal(dir, commit); err != nil {
		return Checkout{}, err
	}
	return done, nil
}

func (g *Git) checkoutRemote(ctx context.Context, o Remote, to Checkout, m *meter) (err error) {
	addr, err := o.address()
	if err != nil {
		return err
	}
	if err := checkRef(o.Ref, fieldGitRef); err != nil {
		return err
	}
	s, err := g.open(ctx, to.Dir, addr.paths()...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.init(ctx, to.Dir, to.Commit); err != nil {
		return err
	}
	if err := s.fetch(ctx, addr, o.Ref, to, m); err != nil {
		return err
	}
	m.report(Progress{Phase: Receiving, Percent: 100})
	if err := s.write(ctx, to, m); err != nil {
		return err
	}
	return s.submodules(ctx, addr, to, m)
}

func (g *Git) checkoutBundle(ctx context.Context, o Bundle, to Checkout, m *meter) (err error) {
	s, err := g.open(ctx, to.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	refs, err := s.heads(ctx, o)
	if err != nil {
		return err
	}
	if err := s.init(ctx, to.Dir, to.Commit); err != nil {
		return err
	}
	if err := s.unbundle(ctx, to.Dir, o, refs, m); err != nil {
		return err
	}
	if err := s.run(ctx, call{dir: to.Dir}, "cat-file", "-e", to.Commit+"^{commit}"); err != nil {
		return failure(ctx, err, func(error) error { return noSuchRef(to.Commit, fieldBundleRef, refs) })
	}
	if err := s.write(ctx, to, m); err != nil {
		return err
	}
	return s.submodules(ctx, address{protocol: "file", path: o.Path}, to, m)
}

// init makes an empty repository for commits of id's kind.
func (s *session) init(ctx context.Context, dir, id string, more ...string) error {
	args := append([]string{"init", "--quiet", "--template="}, more...)
	if len(id) == 64 {
		args = append(args, "--object-format=sha256")
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return storage("make repository", err)
	}
	if err := s.run(ctx, call{dir: dir}, append(args, ".")...); err != nil {
		return failure(ctx, err, func(err error) error { return storage("make repository", err) })
	}
	return nil
}

// fetch gets the commit alone where the server allows it, else the reference alone, else everything.
func (s *session) fetch(ctx context.Context, addr address, ref string, to Checkout, m *meter) error {
	c := call{dir: to.Dir, protocols: []string{addr.protocol}, lines: m.line}
	fetch := func(args ...string) error {
		return s.run(ctx, c, append([]string{"fetch", "--progress", "--no-tags"}, args...)...)
	}
	m.report(Progress{Phase: Receiving})
	first := fetch("--depth=1", "--", addr.url, "+"+to.Commit+":"+checkoutRef+"commit")
	if first == nil || ctx.Err() != nil {
		return first
	}
	// A server that does not answer at all will not answer better.
	if err := s.run(ctx, call{protocols: c.protocols, timeout: listTimeout}, "ls-remote", "--", addr.url, "HEAD"); err != nil {
		return failure(ctx, first, unreachable(addr.url))
	}
	if !isCommit(ref) {
		m.line(runner.Stderr, "the server does not give a commit alone; fetching the reference")
		for _, name := range candidates(ref) {
			if strings.HasSuffix(name, "^{}") {
				continue
			}
			if err := fetch("--depth=1", "--", addr.url, "+"+name+":"+checkoutRef+"ref"); err != nil {
				continue
			}
			if s.has(ctx, to) {
				return nil
			}
		}
	}
	m.line(runner.Stderr, "fetching all branches and tags")
	all := []string{"--", addr.url, "+refs/heads/*:" + checkoutRef + "heads/*", "+refs/tags/*:" + checkoutRef + "tags/*"}
	if _, err := os.Stat(filepath.Join(to.Dir, ".git", "shallow")); err == nil {
		all = append([]string{"--unshallow"}, all...)
	}
	if err := fetch(all...); err != nil {
		return failure(ctx, err, unreachable(addr.url))
	}
	if s.has(ctx, to) {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("look for commit %s: %w", to.Commit, context.Cause(ctx))
	}
	return reason.New(reason.InvalidParams, "no commit "+to.Commit+" in "+addr.url, reason.Field(fieldGitRef),
		reason.Remedy("give a tag, a branch or a commit that one of them contains"))
}

func (s *session) has(ctx context.Context, to Checkout) bool {
	return s.run(ctx, call{dir: to.Dir}, "cat-file", "-e", to.Commit+"^{commit}") == nil
}

// unbundle puts all objects of a bundle into the repository at dir.
func (s *session) unbundle(ctx context.Context, dir string, o Bundle, refs []reference, m *meter) error {
	c := call{dir: dir, protocols: []string{"file"}}
	if m != nil {
		c.lines = m.line
	}
	args := []string{"fetch", "--progress", "--no-tags", "--", o.Path, "+refs/*:" + checkoutRef + "*"}
	if _, ok := pick(refs, []string{"HEAD"}); ok {
		args = append(args, "+HEAD:"+checkoutRef+"HEAD")
	}
	if err := s.run(ctx, c, args...); err != nil {
		return failure(ctx, err, notABundle)
	}
	return nil
}

// write writes the files of the commit.
func (s *session) write(ctx context.Context, to Checkout, m *meter) error {
	c := call{dir: to.Dir, lines: m.line}
	if err := s.run(ctx, c, "checkout", "--progress", "--force", "--detach", to.Commit); err != nil {
		return failure(ctx, err, func(err error) error { return storage("check out "+to.Commit, err) })
	}
	m.report(Progress{Phase: Writing, Percent: 100})
	return nil
}

// submodules gets what the tree refers to, if anything. Their addresses are checked first; git keeps those of nested
// ones to the same protocols.
func (s *session) submodules(ctx context.Context, addr address, to Checkout, m *meter) error {
	info, err := os.Stat(filepath.Join(to.Dir, ".gitmodules"))
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil
	}
	c := call{dir: to.Dir, protocols: []string{"https"}}
	if addr.protocol == "http" {
		c.protocols = append(c.protocols, "http")
	}
	if err := s.run(ctx, c, "config", "--file", ".gitmodules", "--get-regexp", `^submodule\..*\.url$`); err != nil {
		return failure(ctx, err, func(err error) error { return untrusted("its .gitmodules cannot be read", err) })
	}
	for _, line := range s.result {
		_, sub, _ := strings.Cut(line, " ")
		if err := addr.checkSubmodule(sub); err != nil {
			return err
		}
	}
	m.report(Progress{Phase: Submodules})
	if addr.url != "" {
		if err := s.run(ctx, c, "config", "remote.origin.url", addr.url); err != nil {
			return failure(ctx, err, func(err error) error { return storage("configure repository", err) })
		}
	}
	c.lines = m.line
	if err := s.run(ctx, c, "submodule", "update", "--init", "--recursive", "--depth=1", "--progress"); err != nil {
		return failure(ctx, err, func(err error) error {
			return reason.New(reason.FetchFailed, "git cannot get a submodule", reason.Cause(err),
				reason.Remedy("check the network; a source archive with the submodules inside needs none"))
		})
	}
	m.report(Progress{Phase: Submodules, Percent: 100})
	return nil
}

// checkSubmodule refuses an address that is not https, or http on loopback like the origin's own. A relative one is
// below the origin's.
func (a address) checkSubmodule(sub string) error {
	if strings.HasPrefix(sub, "./") || strings.HasPrefix(sub, "../") {
		base, err := url.Parse(a.url)
		if err != nil || a.protocol == "file" {
			return untrusted(fmt.Sprintf("submodule %q lies beside a repository that is a file", sub), err)
		}
		base.Path = path.Join(base.Path, sub)
		sub = base.String()
	}
	got, err := Remote{URL: sub}.address()
	if err != nil || got.protocol == "file" || got.protocol == "http" && a.protocol != "http" {
		return untrusted(fmt.Sprintf("submodule address %q is not https", sub), err)
	}
	return nil
}

func untrusted(message string, cause error) error {
	return reason.New(reason.UntrustedArtifact, message, reason.Cause(cause),
		reason.Remedy("give a source archive with the submodules inside"))
}

// complete tells whether dir holds a whole checkout of commit.
func complete(dir, commit string) bool {
	f, err := os.Open(filepath.Join(dir, markerName))
	if err != nil {
		return false
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	info, serr := os.Stat(filepath.Join(dir, treeName))
	return err == nil && serr == nil && info.IsDir() && line == markerLine(commit)
}
