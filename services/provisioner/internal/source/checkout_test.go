// SPDX-License-Identifier: Apache-2.0

package source

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// noTools fails whoever looks for git.
type noTools struct{}

func (noTools) Find(context.Context, toolchain.Name) (toolchain.Tool, error) {
	return toolchain.Tool{}, errors.New("git was looked for")
}
func (noTools) Path() string { return "" }

func TestCheckout(t *testing.T) {
	t.Parallel()
	r, first, middle, second := history(t)
	bundle := filepath.Join(t.TempDir(), "b")
	r.git("bundle", "create", bundle, "HEAD")
	root := filepath.Dir(r.dir)
	v2 := serve(t, root, nil)
	// A server of the first protocol gives only what a reference points to.
	v0 := serve(t, root, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			req.Header.Del("Git-Protocol")
			next.ServeHTTP(w, req)
		})
	})
	tests := []struct {
		name         string
		origin       Origin
		commit, want string
	}{
		{"file, tip", Remote{r.url(), "main"}, second, "two"},
		{"file, commit", Remote{r.url(), first}, first, "one"},
		{"http, tip", Remote{v2 + "/repo", "v2"}, second, "two"},
		{"http, commit", Remote{v2 + "/repo/.git", first}, first, "one"},
		{"http, commit of no reference", Remote{v2 + "/repo", middle}, middle, "one and a half"},
		{"http, old server, tag", Remote{v0 + "/repo", "v1"}, first, "one"},
		{"http, old server, commit of no reference", Remote{v0 + "/repo", middle}, middle, "one and a half"},
		{"http, old server, branch that has moved on", Remote{v0 + "/repo", "main"}, middle, "one and a half"},
		{"bundle, tip", Bundle{bundle, ""}, second, "two"},
		{"bundle, commit", Bundle{bundle, first}, first, "one"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "new")
			var progress []Progress
			got, err := newReader(t).Checkout(t.Context(), tt.origin, tt.commit, dir, Observer{
				Progress: func(p Progress) { progress = append(progress, p) },
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Checkout{Dir: filepath.Join(dir, treeName), Commit: tt.commit}, got); diff != "" {
				t.Errorf("checkout (-want +got):\n%s", diff)
			}
			if text := read(t, got.Dir, "file"); text != tt.want {
				t.Errorf("file is %q, want %q", text, tt.want)
			}
			if !slices.IsSortedFunc(progress, func(a, b Progress) int {
				if a.Phase != b.Phase {
					return int(a.Phase - b.Phase)
				}
				return a.Percent - b.Percent
			}) || len(progress) < 2 || progress[len(progress)-1].Percent != 100 {
				t.Errorf("progress is %+v, want it to grow to 100", progress)
			}
			again, err := (&Git{tools: noTools{}}).Checkout(t.Context(), tt.origin, tt.commit, dir, Observer{})
			if err != nil || again != got {
				t.Errorf("second time: %+v, %v; want the same without git", again, err)
			}
		})
	}
}

func TestCheckoutIsMadeAgain(t *testing.T) {
	t.Parallel()
	r, first, _, second := history(t)
	tests := []struct {
		name  string
		spoil func(dir string) error
	}{
		{"after a kill before the marker", func(dir string) error { return os.Remove(filepath.Join(dir, markerName)) }},
		{"after a torn marker", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, markerName), []byte(markerLine(second)[:20]), 0o600)
		}},
		{"for another commit", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, markerName), []byte(markerLine(first)), 0o600)
		}},
		{"when the tree is gone", func(dir string) error { return os.RemoveAll(filepath.Join(dir, treeName)) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, g := t.TempDir(), newReader(t)
			o := Remote{r.url(), "main"}
			got, err := g.Checkout(t.Context(), o, second, dir, Observer{})
			if err != nil {
				t.Fatal(err)
			}
			stale := filepath.Join(got.Dir, ".git", "index.lock")
			if err := errors.Join(os.WriteFile(stale, nil, 0o600), tt.spoil(dir)); err != nil {
				t.Fatal(err)
			}
			if _, err := g.Checkout(t.Context(), o, second, dir, Observer{}); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(stale); !errors.Is(err, os.ErrNotExist) || read(t, got.Dir, "file") != "two" {
				t.Errorf("checkout was not made again: %v", err)
			}
		})
	}
}

func TestCheckoutOfTree(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "untouched")
	got, err := newReader(t).Checkout(t.Context(), Tree{Dir: "/x", Digest: "sha256:ab"}, "sha256:ab", dir, Observer{})
	if err != nil || got != (Checkout{Dir: "/x", Commit: "sha256:ab"}) {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder was made: %v", err)
	}
}

func TestCheckoutOfUnknownCommit(t *testing.T) {
	t.Parallel()
	r, _, _, _ := history(t)
	unknown := strings.Repeat("b", 40)
	bundle := filepath.Join(t.TempDir(), "b")
	r.git("bundle", "create", bundle, "HEAD")
	for field, o := range map[string]Origin{fieldGitRef: Remote{r.url(), unknown}, fieldBundleRef: Bundle{bundle, unknown}} {
		dir := t.TempDir()
		_, err := newReader(t).Checkout(t.Context(), o, unknown, dir, Observer{})
		e, ok := reason.As(err)
		if !ok || e.Reason != reason.InvalidParams || e.Fields[0].Name != field {
			t.Errorf("error is %v, want InvalidParams of %s", err, field)
		}
		if complete(dir, unknown) {
			t.Error("a marker was left")
		}
	}
}

func TestCheckoutCancelled(t *testing.T) {
	t.Parallel()
	r, _, _, second := history(t)
	asked, leave := make(chan struct{}), make(chan struct{})
	var slow atomic.Bool
	slow.Store(true)
	url := serve(t, filepath.Dir(r.dir), func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if slow.Load() && req.Method == http.MethodPost && slow.CompareAndSwap(true, false) {
				close(asked)
				<-leave
				return
			}
			next.ServeHTTP(w, req)
		})
	})
	cause := errors.New("nobody waits")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(cause)
	}()
	dir, g := t.TempDir(), newReader(t)
	o := Remote{url + "/repo", "main"}
	_, err := g.Checkout(ctx, o, second, dir, Observer{})
	if !errors.Is(err, cause) || complete(dir, second) {
		t.Errorf("error is %v, want the cause and no marker", err)
	}
	close(leave)
	if _, err := g.Checkout(t.Context(), o, second, dir, Observer{}); err != nil {
		t.Errorf("second time: %v", err)
	}
}

func TestSubmodules(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	sub := newRepo(t)
	sub.commit("part", "of it")
	if err := os.Rename(sub.dir, filepath.Join(root, "sub")); err != nil {
		t.Fatal(err)
	}
	base := serve(t, root, nil)
	main := newRepo(t)
	main.commit("file", "whole")
	main.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "file://"+root+"/sub", "sub")
	commits := map[string]string{}
	for _, address := range []string{"../sub", base + "/sub", "file://" + root + "/sub", "ext::sh", "ssh://h/x", "/x"} {
		main.git("config", "--file", ".gitmodules", "submodule.sub.url", address)
		commits[address] = main.commit("file", address)
	}
	if err := os.Rename(main.dir, filepath.Join(root, "main")); err != nil {
		t.Fatal(err)
	}
	remote, local := base+"/main", "file:"+root+"/main"
	tests := []struct {
		name, origin, address string
		refused               bool
	}{
		{"relative", remote, "../sub", false},
		{"absolute", remote, base + "/sub", false},
		{"file", remote, "file://" + root + "/sub", true},
		{"file of a file", local, "file://" + root + "/sub", true},
		{"relative of a file", local, "../sub", true},
		{"http of a file", local, base + "/sub", true},
		{"helper transport", remote, "ext::sh", true},
		{"ssh", remote, "ssh://h/x", true},
		{"path", remote, "/x", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			commit := commits[tt.address]
			got, err := newReader(t).Checkout(t.Context(), Remote{tt.origin, commit}, commit, t.TempDir(), Observer{})
			if tt.refused {
				if reason.Of(err) != reason.UntrustedArtifact {
					t.Errorf("error is %v, want UntrustedArtifact", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if text := read(t, got.Dir, "sub", "part"); text != "of it" {
				t.Errorf("submodule has %q", text)
			}
		})
	}
}

func TestGitSpeaksOnlyWhatItMay(t *testing.T) {
	t.Parallel()
	r, _, _, _ := history(t)
	g := newReader(t)
	s, err := g.open(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	tests := []struct {
		name, url string
		protocols []string
		want      bool
	}{
		{"allowed", "file://" + r.dir, []string{"file"}, true},
		{"none", "file://" + r.dir, nil, false},
		{"another", "file://" + r.dir, []string{"https"}, false},
		{"helper transport", "ext::git upload-pack " + r.dir, []string{"file"}, false},
	}
	for _, tt := range tests {
		// One after the other: a session is one caller's.
		err := s.run(t.Context(), call{protocols: tt.protocols}, "ls-remote", "--", tt.url, "HEAD")
		if (err == nil) != tt.want {
			t.Errorf("%s: error is %v, want success %t", tt.name, err, tt.want)
		}
	}
}

func TestFailureOfAFullDisk(t *testing.T) {
	t.Parallel()
	err := &runner.ExitError{Name: "git", Result: runner.Result{
		ExitCode: 128, Tail: []string{"fatal: write error: No space left on device"},
	}}
	got := failure(t.Context(), err, unreachable("x"))
	if reason.Of(got) != reason.DiskFull || !errors.Is(got, err) {
		t.Errorf("got %v, want DiskFull with its cause", got)
	}
}
