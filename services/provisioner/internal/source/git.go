// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// niceness of git: behind everything that serves, before compilers.
const niceness = 5

// configuration is all that git reads besides its arguments. Transfers below 1000 bytes a second for a minute are
// given up; nothing runs on its own or in the background.
const configuration = `[core]
	hooksPath = /dev/null
	fsmonitor = false
[credential]
	helper =
[gc]
	auto = 0
[maintenance]
	auto = false
[protocol]
	version = 2
[http]
	lowSpeedLimit = 1000
	lowSpeedTime = 60
[submodule]
	recurse = false
[advice]
	detachedHead = false
[init]
	defaultBranch = main
`

// Git reads repositories and bundles by the git program.
type Git struct {
	tools Tools
	env   []string
	temp  string
}

func newGit(c Config) (*Git, error) {
	if c.Tools == nil {
		return nil, errors.New("source: Tools is required")
	}
	for _, variable := range c.Env {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "GIT_") && name != "GIT_SSL_CAINFO" && name != "GIT_SSL_CAPATH" {
			return nil, fmt.Errorf("source: variable %s is not for git to get", name)
		}
	}
	return &Git{tools: c.Tools, env: append([]string{}, c.Env...), temp: c.TempDir}, nil
}

// session is git with the configuration for one call.
type session struct {
	git    toolchain.Tool
	path   string // PATH
	env    []string
	home   string
	owner  string
	result []string // what the last call printed on standard output
}

// open prepares a session in which git trusts the owner of the repositories at paths. The caller closes it.
func (g *Git) open(ctx context.Context, owner string, paths ...string) (*session, error) {
	git, err := g.tools.Find(ctx, toolchain.Git)
	if err != nil {
		return nil, err
	}
	home, err := os.MkdirTemp(g.temp, "git-")
	if err != nil {
		return nil, storage("make a folder for git", err)
	}
	text := configuration + "[safe]\n"
	for _, path := range paths {
		target, err := filepath.EvalSymlinks(path)
		if err != nil {
			target = path
		}
		for _, dir := range []string{path, filepath.Join(path, ".git"), target, filepath.Join(target, ".git")} {
			text += "\tdirectory = " + quote(dir) + "\n"
		}
	}
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte(text), 0o600); err != nil {
		return nil, errors.Join(storage("write git configuration", err), os.RemoveAll(home))
	}
	return &session{git: git, path: g.tools.Path(), env: g.env, home: home, owner: owner}, nil
}

func (s *session) close() error { return os.RemoveAll(s.home) }

// quote writes a value of a git configuration. A path cannot hold a NUL; a newline is written as git reads it.
func quote(value string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value) + `"`
}

// call is one run of git.
type call struct {
	dir       string   // to run in; empty means the session's own, which is no repository
	protocols []string // that it may speak; none means that it may not connect
	timeout   time.Duration
	lines     func(runner.Stream, string)
}

// run runs git and keeps what it printed on standard output. An error wraps the cause of a cancel, or *runner.ExitError.
func (s *session) run(ctx context.Context, c call, args ...string) error {
	dir := c.dir
	if dir == "" {
		dir = s.home
	}
	env := append([]string{
		"PATH=" + s.path, "HOME=" + s.home, "LC_ALL=C",
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + filepath.Join(s.home, ".gitconfig"), "GIT_ATTR_NOSYSTEM=1",
		"GIT_TERMINAL_PROMPT=0", "GIT_LFS_SKIP_SMUDGE=1", "GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir),
		"GIT_ALLOW_PROTOCOL=" + strings.Join(append([]string{"none"}, c.protocols...), ":"),
	}, s.env...)
	s.result = nil
	_, err := runner.Run(ctx, runner.Command{
		Path: s.git.Path, Args: args, Dir: dir, Env: env, Nice: niceness, Timeout: c.timeout, Owner: s.owner,
		Lines: func(stream runner.Stream, line string) {
			if stream == runner.Stdout {
				s.result = append(s.result, line)
			}
			if c.lines != nil {
				c.lines(stream, line)
			}
		},
	})
	return err
}

// failure says what a failed call means: the cause of a cancel as it is, DiskFull, or otherwise.
func failure(ctx context.Context, err error, otherwise func(cause error) error) error {
	var exit *runner.ExitError
	switch {
	case ctx.Err() != nil:
		return err
	case errors.As(err, &exit) && runner.NoSpace(exit.Tail):
		return diskFull("git found no space left", err)
	}
	return otherwise(err)
}

func unreachable(url string) func(error) error {
	return func(err error) error {
		return reason.New(reason.FetchFailed, "git cannot read "+url, reason.Field(fieldGitURL), reason.Cause(err),
			reason.Remedy("check the address and the network; a repository that needs a password can be given as a bundle"))
	}
}

// storage is StorageFailed, or DiskFull when that is why.
func storage(attempt string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull(attempt, err)
	}
	return reason.New(reason.StorageFailed, attempt, reason.Cause(err),
		reason.Remedy("check permissions and health of the file systems of the store and of temporary files"))
}

func diskFull(attempt string, err error) error {
	return reason.New(reason.DiskFull, attempt, reason.Cause(err),
		reason.Remedy("free space in the provisioner's state folder and repeat"))
}
