// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
)

// layOut makes the folders "allowed" and "secret" with what the tests of file references name.
func layOut(t *testing.T, dir string) {
	t.Helper()
	in := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	must(t, errors.Join(
		os.MkdirAll(in("allowed", "sub"), 0o755), os.Mkdir(in("secret"), 0o755), os.Mkdir(in("allowed-too"), 0o755),
		os.WriteFile(in("allowed", "sub", "a.gguf"), []byte(body), 0o644),
		os.WriteFile(in("secret", "key"), []byte("secret"), 0o644), os.WriteFile(in("allowed-too", "key"), []byte("secret"), 0o644),
		os.Symlink("sub/a.gguf", in("allowed", "link.gguf")), os.Symlink(in("secret", "key"), in("allowed", "out")),
		os.Symlink(in("secret"), in("allowed", "dir-out")), os.Symlink("nothing", in("allowed", "dangling")),
		os.Symlink("loop", in("allowed", "loop")), os.Symlink(in("allowed"), in("by-link")),
		syscall.Mkfifo(in("allowed", "pipe"), 0o644)))
	listener, err := net.Listen("unix", in("allowed", "s"))
	must(t, err)
	t.Cleanup(func() { _ = listener.Close() })
}

func TestFetchFile(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, path, text string
		want             reason.Reason
	}{
		{name: "file", path: "allowed/sub/a.gguf"},
		{name: "link inside", path: "allowed/link.gguf"},
		{name: "by a link outside", path: "by-link/sub/a.gguf"},
		{name: "with dots", path: "allowed/sub/../sub/a.gguf"},
		{name: "outside", path: "secret/key", want: reason.UntrustedArtifact, text: "not below"},
		{name: "outside with dots", path: "allowed/../secret/key", want: reason.UntrustedArtifact, text: "not below"},
		{name: "outside with the root's name in front", path: "allowed-too/key", want: reason.UntrustedArtifact, text: "not below"},
		{name: "outside and missing", path: "secret/no", want: reason.UntrustedArtifact, text: "not below"},
		{name: "link out", path: "allowed/out", want: reason.UntrustedArtifact, text: "not below"},
		{name: "folder link out", path: "allowed/dir-out/key", want: reason.UntrustedArtifact, text: "not below"},
		{name: "missing", path: "allowed/no.gguf", want: reason.ModelNotFound, text: "does not exist"},
		{name: "below a file", path: "allowed/sub/a.gguf/b", want: reason.ModelNotFound, text: "does not exist"},
		{name: "dangling link", path: "allowed/dangling", want: reason.ModelNotFound, text: "does not exist"},
		{name: "link to itself", path: "allowed/loop", want: reason.InvalidParams, text: "cannot be opened"},
		{name: "directory", path: "allowed/sub", want: reason.InvalidParams, text: "is a directory"},
		{name: "the root", path: "allowed", want: reason.InvalidParams, text: "is a directory"},
		{name: "pipe", path: "allowed/pipe", want: reason.InvalidParams, text: "pipe"},
		{name: "socket", path: "allowed/s", want: reason.InvalidParams, text: "cannot be opened"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			layOut(t, f.dir)
			req := fetch.Request{Ref: mustParse(t, "file:"+f.dir+"/"+test.path), Field: "spec.model.uri"}
			if _, ok := f.Cached(req); ok {
				t.Error("cached before it was fetched")
			}
			result, err := f.Fetch(t.Context(), req, nil)
			if test.want != reason.Unspecified {
				wantReason(t, err, test.want, "spec.model.uri", test.text)
				return
			}
			must(t, err)
			if result.Blob.Digest != sha(body) || result.Name != filepath.Base(test.path) {
				t.Errorf("got %+v", result)
			}
			if _, ok := f.Cached(req); !ok {
				t.Error("not cached after it was fetched")
			}
		})
	}
}

func TestFetchFileWithAnotherDigest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	layOut(t, f.dir)
	ref := mustParse(t, "file:"+f.dir+"/allowed/sub/a.gguf")
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: ref, Want: sha(body)}, nil)
	must(t, err)
	_, err = f.Fetch(t.Context(), fetch.Request{Ref: ref, Want: sha(other), Field: "uri", DigestField: "sha256"}, nil)
	wantReason(t, err, reason.DigestMismatch, "sha256", sha(other).Hex())
}

// A file that changed in any way is read again, and takes nothing from those who were promised what it was.
func TestChangedFileIsFetchedAgain(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(path string, was os.FileInfo) error
		want   string
	}{
		{name: "written to", want: other, change: func(path string, _ os.FileInfo) error { return os.WriteFile(path, []byte(other), 0o644) }},
		{name: "written to, with its old time", want: turned(body), change: func(path string, was os.FileInfo) error {
			return errors.Join(os.WriteFile(path, []byte(turned(body)), 0o644), os.Chtimes(path, time.Time{}, was.ModTime()))
		}},
		{name: "replaced, with its old size and time", want: turned(body), change: func(path string, was os.FileInfo) error {
			return errors.Join(os.WriteFile(path+".new", []byte(turned(body)), 0o644), os.Chtimes(path+".new", time.Time{}, was.ModTime()), os.Rename(path+".new", path))
		}},
		{name: "touched", want: body, change: func(path string, _ os.FileInfo) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			layOut(t, f.dir)
			path := filepath.Join(f.dir, "allowed", "sub", "a.gguf")
			req := fetch.Request{Ref: mustParse(t, "file:"+path)}
			first, err := f.Fetch(t.Context(), req, nil)
			must(t, err)
			was, err := os.Stat(path)
			must(t, err)
			must(t, test.change(path, was))
			if _, ok := f.Cached(req); ok {
				t.Error("cached though the file was changed")
			}
			result, err := f.Fetch(t.Context(), req, nil)
			must(t, err)
			if result.Blob.Digest != sha(test.want) {
				t.Errorf("got %s, want the new content", result.Blob.Digest)
			}
			blob, err := f.store.Blob(first.Blob.Digest)
			must(t, err)
			if text, err := os.ReadFile(blob.Path); err != nil || string(text) != body {
				t.Errorf("the blob of the old content has %d other bytes, %v", len(text), err)
			}
		})
	}
}

// turned is as long as text, and another.
func turned(text string) string {
	bytes := []byte(text)
	slices.Reverse(bytes)
	return string(bytes)
}

// What the store has and cannot vouch for without reading it is read, not fetched again.
func TestTouchedBlobIsNotDownloadedAgain(t *testing.T) {
	t.Parallel()
	f, s := newFixture(t), newServer(t, body)
	req := fetch.Request{Ref: s.ref(t), Want: sha(body)}
	first, err := f.Fetch(t.Context(), req, nil)
	must(t, err)
	must(t, os.Chtimes(first.Blob.Path, time.Unix(1, 0), time.Unix(1, 0)))
	if _, ok := f.Cached(req); ok {
		t.Error("cached though its blob was touched")
	}
	again, err := f.Fetch(t.Context(), req, nil)
	must(t, err)
	if again != first || len(s.seen()) != 1 {
		t.Errorf("got %+v after %d requests, want %+v after one", again, len(s.seen()), first)
	}
}

func TestNoRoots(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(cfg *fetch.Config) { cfg.FileRoots = nil })
	layOut(t, f.dir)
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, "file:"+f.dir+"/allowed/sub/a.gguf"), Field: "uri"}, nil)
	wantReason(t, err, reason.UntrustedArtifact, "uri", "not below")
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	s := newFixture(t).store
	for name, cfg := range map[string]fetch.Config{
		"no store":             {},
		"relative root":        {Store: s, FileRoots: []string{"models"}},
		"unencrypted index":    {Store: s, PyPIIndexURL: "http://mirror.example.org/simple"},
		"no address":           {Store: s, NPMRegistryURL: "mirror"},
		"unencrypted registry": {Store: s, NPMRegistryURL: "http://mirror.example.org/"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := fetch.New(cfg); err == nil {
				t.Error("accepted")
			}
		})
	}
}
