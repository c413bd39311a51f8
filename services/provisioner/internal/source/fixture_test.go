// SPDX-License-Identifier: Apache-2.0

package source

import (
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// repo is a repository that a test makes with git itself.
type repo struct {
	t   *testing.T
	dir string
}

func newRepo(t *testing.T) repo {
	t.Helper()
	r := repo{t, filepath.Join(t.TempDir(), "repo")}
	if err := os.Mkdir(r.dir, 0o750); err != nil {
		t.Fatal(err)
	}
	r.git("init", "--quiet", "--initial-branch=main")
	return r
}

// git runs git in the repository and returns what it prints.
func (r repo) git(args ...string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "git", args...)
	cmd.Dir = r.dir
	cmd.Env = []string{
		"PATH=" + toolchain.DefaultPath, "HOME=" + r.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		"GIT_AUTHOR_DATE=2026-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2026-01-01T00:00:00Z",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commit writes a file, commits it and returns the commit.
func (r repo) commit(name, text string) string {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.git("add", "-A")
	r.git("commit", "--quiet", "-m", name)
	return r.git("rev-parse", "HEAD")
}

func (r repo) url() string { return "file:" + r.dir }

// history is a repository with a branch main of three commits, a branch feature/one and a tag v1 at the first, nothing
// at the middle one and an annotated tag v2 at the last.
func history(t *testing.T) (r repo, first, middle, last string) {
	t.Helper()
	r = newRepo(t)
	first = r.commit("file", "one")
	r.git("branch", "feature/one")
	r.git("tag", "v1")
	middle = r.commit("file", "one and a half")
	last = r.commit("file", "two")
	r.git("tag", "-a", "-m", "last", "v2")
	return r, first, middle, last
}

// serve serves the repositories below dir over http. Each request goes through wrap first, if there is one.
func serve(t *testing.T, dir string, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	var h http.Handler = &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "HOME=" + dir,
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
	}
	if wrap != nil {
		h = wrap(h)
	}
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func newReader(t *testing.T) *Git {
	t.Helper()
	tools, err := toolchain.New(toolchain.Config{})
	if err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	g, err := New(Config{Tools: tools, TempDir: temp})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(temp); err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	})
	return g
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
