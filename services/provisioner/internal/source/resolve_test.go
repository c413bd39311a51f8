// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

func TestResolveRemote(t *testing.T) {
	t.Parallel()
	r, first, _, second := history(t)
	if os.Geteuid() == 0 {
		// A repository of somebody else below an allowed root is as good as our own.
		if err := filepath.WalkDir(r.dir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, 12345, 12345))
		}); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct{ name, ref, want string }{
		{"nothing", "", second},
		{"HEAD", "HEAD", second},
		{"branch", "main", second},
		{"branch with a slash", "feature/one", first},
		{"tag", "v1", first},
		{"annotated tag", "v2", second},
		{"full branch", "refs/heads/feature/one", first},
		{"full annotated tag", "refs/tags/v2", second},
		{"commit", first, first},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := newReader(t).ResolveCommit(t.Context(), Remote{URL: r.url(), Ref: tt.ref})
			if err != nil || got != tt.want {
				t.Errorf("%q is %s (%v), want %s", tt.ref, got, err, tt.want)
			}
		})
	}
}

func TestResolveBundle(t *testing.T) {
	t.Parallel()
	r, first, _, second := history(t)
	bundle := filepath.Join(t.TempDir(), "b")
	r.git("bundle", "create", bundle, "HEAD", "main", "v1", "v2")
	onlyHead := filepath.Join(t.TempDir(), "b")
	r.git("bundle", "create", onlyHead, "HEAD")
	tests := []struct{ name, path, ref, want string }{
		{"nothing", bundle, "", second},
		{"branch", bundle, "main", second},
		{"full branch", bundle, "refs/heads/main", second},
		{"tag", bundle, "v1", first},
		{"annotated tag", bundle, "v2", second},
		{"commit that is listed", bundle, second, second},
		{"commit that is not listed", onlyHead, first, first},
		{"HEAD alone", onlyHead, "HEAD", second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := newReader(t).ResolveCommit(t.Context(), Bundle{Path: tt.path, Ref: tt.ref})
			if err != nil || got != tt.want {
				t.Errorf("%q is %s (%v), want %s", tt.ref, got, err, tt.want)
			}
		})
	}
}

func TestResolveTreeIsItsDigest(t *testing.T) {
	t.Parallel()
	got, err := newReader(t).ResolveCommit(t.Context(), Tree{Dir: "/x", Digest: "sha256:ab"})
	if err != nil || got != "sha256:ab" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestResolveRefuses(t *testing.T) {
	t.Parallel()
	r, _, _, _ := history(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("no bundle"), 0o600); err != nil {
		t.Fatal(err)
	}
	bundle := filepath.Join(t.TempDir(), "b")
	r.git("bundle", "create", bundle, "main")
	raw := read(t, bundle)
	cut := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(cut, []byte(raw[:len(raw)-30]), 0o600); err != nil {
		t.Fatal(err)
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	empty := newRepo(t)
	tests := []struct {
		name   string
		origin Origin
		reason reason.Reason
		field  string
		says   string
	}{
		{"missing reference", Remote{r.url(), "v3"}, reason.InvalidParams, fieldGitRef, "there are: v1, v2, main, feature/one"},
		{"abbreviated commit", Remote{r.url(), "abcdef1"}, reason.InvalidParams, fieldGitRef, "in full"},
		{"empty repository", Remote{empty.url(), ""}, reason.InvalidParams, fieldGitRef, "no branches and no tags"},
		{"reference like an option", Remote{r.url(), "--upload-pack=x"}, reason.InvalidParams, fieldGitRef, "dash"},
		{"reference with a pattern", Remote{r.url(), "v*"}, reason.InvalidParams, fieldGitRef, "character"},
		{"reference with a newline", Remote{r.url(), "v1\nv2"}, reason.InvalidParams, fieldGitRef, "character"},
		{"reference as a range", Remote{r.url(), "v1..v2"}, reason.InvalidParams, fieldGitRef, "not the name"},
		{"reference with a refspec", Remote{r.url(), "v1:refs/heads/x"}, reason.InvalidParams, fieldGitRef, "character"},
		{"reference too long", Remote{r.url(), strings.Repeat("x", 256)}, reason.InvalidParams, fieldGitRef, "longer"},
		{"address like an option", Remote{"--upload-pack=x", "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"helper transport", Remote{"ext::sh -c x", "v1"}, reason.InvalidParams, fieldGitURL, "space"},
		{"helper transport without space", Remote{"ext::sh", "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"ssh", Remote{"ssh://host/x", "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"ssh, short", Remote{"git@host:x", "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"plain path", Remote{r.dir, "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"relative file", Remote{"file:x", "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"file of another host", Remote{"file://host/x", "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"http", Remote{"http://example.com/x", "v1"}, reason.InvalidParams, fieldGitURL, "not encrypted"},
		{"password", Remote{"https://u:p@example.com/x", "v1"}, reason.InvalidParams, fieldGitURL, "password"},
		{"query", Remote{"https://example.com/x?y", "v1"}, reason.InvalidParams, fieldGitURL, "query"},
		{"no path", Remote{"https://example.com", "v1"}, reason.InvalidParams, fieldGitURL, "not an address"},
		{"missing repository", Remote{"file:/nowhere/x", "v1"}, reason.EngineNotFound, fieldGitURL, "no repository"},
		{"file as repository", Remote{"file:" + file, "v1"}, reason.InvalidParams, fieldGitURL, "bundle"},
		{"folder that is no repository", Remote{"file:" + filepath.Dir(file), "v1"}, reason.FetchFailed, fieldGitURL, "cannot read"},
		{"nobody listens", Remote{gone.URL + "/x", "v1"}, reason.FetchFailed, fieldGitURL, "cannot read"},
		{"not a bundle", Bundle{file, ""}, reason.InvalidParams, fieldBundleURI, "git bundle"},
		{"missing bundle", Bundle{file + "x", ""}, reason.EngineNotFound, fieldBundleURI, "no bundle"},
		{"missing reference of a bundle", Bundle{bundle, "dev"}, reason.InvalidParams, fieldBundleRef, "there are: main"},
		{"missing commit of a bundle", Bundle{bundle, strings.Repeat("a", 40)}, reason.InvalidParams, fieldBundleRef, "main"},
		{"truncated bundle", Bundle{cut, strings.Repeat("a", 40)}, reason.InvalidParams, fieldBundleURI, "complete"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := newReader(t).ResolveCommit(t.Context(), tt.origin)
			e, ok := reason.As(err)
			if !ok || e.Reason != tt.reason || len(e.Fields) != 1 || e.Fields[0].Name != tt.field ||
				!strings.Contains(err.Error(), tt.says) {
				t.Errorf("%+v gives %q, %v; want reason %v of %s that says %q", tt.origin, got, err, tt.reason, tt.field, tt.says)
			}
		})
	}
}

func TestResolveCancelled(t *testing.T) {
	t.Parallel()
	asked, leave := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(asked)
		<-leave
	}))
	defer server.Close()
	defer close(leave)
	cause := errors.New("nobody waits")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(cause)
	}()
	_, err := newReader(t).ResolveCommit(ctx, Remote{URL: server.URL + "/x", Ref: "v1"})
	if _, typed := reason.As(err); typed || !errors.Is(err, cause) {
		t.Errorf("error is %v, want the cause", err)
	}
}

func TestNearest(t *testing.T) {
	t.Parallel()
	var refs []reference
	for i := range 1000 {
		refs = append(refs, reference{name: fmt.Sprintf("refs/tags/b%d", i)})
	}
	got := nearest("B77", refs)
	if len(got) != maxNear || got[0] != "b77" || !slices.Contains(got, "b177") {
		t.Errorf("nearest are %q", got)
	}
	err := noSuchRef("B77", fieldGitRef, refs)
	if !strings.Contains(err.Error(), "nearest of 1000: b77, ") {
		t.Errorf("error is %v", err)
	}
}

func TestNewRefusesVariablesThatSteerGit(t *testing.T) {
	t.Parallel()
	tools := newReader(t).tools
	for variable, want := range map[string]bool{
		"GIT_SSH_COMMAND=x": false, "GIT_CONFIG_COUNT=1": false, "GIT_SSL_CAINFO=/x": true, "https_proxy=x": true,
	} {
		if _, err := New(Config{Tools: tools, Env: []string{variable}}); (err == nil) != want {
			t.Errorf("%s: error is %v, want acceptance %t", variable, err, want)
		}
	}
}
