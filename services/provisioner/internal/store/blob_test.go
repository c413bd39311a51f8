// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

func sum(text string) [32]byte { return sha256.Sum256([]byte(text)) }

// newStore returns a store and the folder beside it, on the same file system.
func newStore(t *testing.T) (*store.Store, string) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { makeRemovable(dir) })
	return open(t, store.Config{Root: filepath.Join(dir, "root")}), dir
}

func TestParseDigest(t *testing.T) {
	t.Parallel()
	digits := strings.Repeat("0a", 32)
	for _, test := range []struct {
		name, text string
		want       store.Digest
	}{
		{name: "plain", text: digits, want: store.Digest("sha256:" + digits)},
		{name: "prefixed", text: "sha256:" + digits, want: store.Digest("sha256:" + digits)},
		{name: "upper case", text: strings.ToUpper(digits), want: store.Digest("sha256:" + digits)},
		{name: "empty"},
		{name: "short", text: digits[:62]},
		{name: "long", text: digits + "00"},
		{name: "not hexadecimal", text: "zz" + digits[2:]},
		{name: "other algorithm", text: "sha512:" + digits},
		{name: "path", text: "../" + digits[3:]},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := store.ParseDigest(test.text)
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("ParseDigest(%q) = %q, %v; want %q", test.text, got, err, test.want)
			}
			if err != nil && reason.Of(err) != reason.InvalidParams {
				t.Errorf("reason is %v", reason.Of(err))
			}
		})
	}
}

func TestImportSharesTheUsersFile(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t)
	writeUserFile(t, s, dir)
	must(t, importUserFile(s, dir))
	blob, err := s.Blob(contentDigest())
	must(t, err)
	user, err := os.Stat(filepath.Join(dir, "user.gguf"))
	must(t, err)
	stored, err := os.Stat(blob.Path)
	must(t, err)
	if !os.SameFile(user, stored) {
		t.Error("the blob is a copy, want a hard link")
	}
	if user.Mode().Perm() != 0o640 {
		t.Errorf("the user's file has mode %v now, want it left alone", user.Mode())
	}
}

// crossDevice is a disk on which no file outside has a second name.
type crossDevice struct{ store.FS }

func (crossDevice) LinkOpen(*os.File, string) error { return syscall.EXDEV }

func TestImportCopiesAcrossFileSystems(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, store.Config{Root: filepath.Join(dir, "root"), FS: crossDevice{store.OperatingSystem()}})
	writeUserFile(t, s, dir)
	must(t, importUserFile(s, dir))
	blob, err := s.Blob(contentDigest())
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "user.gguf"), []byte("changed afterwards"), 0o644))
	wantFile(t, blob.Path, content)
	info, err := os.Stat(blob.Path)
	must(t, err)
	if info.Mode().Perm() != 0o444 {
		t.Errorf("blob has mode %v, want read-only", info.Mode())
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t)
	writeUserFile(t, s, dir)
	t.Run("wrong digest", func(t *testing.T) {
		t.Parallel()
		file, err := os.Open(filepath.Join(dir, "user.gguf"))
		must(t, err)
		defer func() { _ = file.Close() }()
		_, err = s.Import(t.Context(), file, digestOf("else"), nil)
		failed, _ := reason.As(err)
		if reason.Of(err) != reason.DigestMismatch || failed.Metadata["got"] != contentDigest().Hex() || failed.Metadata["want"] != digestOf("else").Hex() {
			t.Errorf("got %v, want a mismatch with both digests", err)
		}
	})
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		file, err := os.Open(dir)
		must(t, err)
		defer func() { _ = file.Close() }()
		if _, err := s.Import(t.Context(), file, "", nil); reason.Of(err) != reason.InvalidParams {
			t.Errorf("got %v, want INVALID_PARAMS", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		t.Parallel()
		cause := errors.New("caller left")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		file, err := os.Open(filepath.Join(dir, "user.gguf"))
		must(t, err)
		defer func() { _ = file.Close() }()
		if _, err := s.Import(ctx, file, "", nil); !errors.Is(err, cause) {
			t.Errorf("got %v, want %v", err, cause)
		}
	})
	t.Run("changed while it is read", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(dir, "moving.gguf")
		must(t, os.WriteFile(path, []byte(content), 0o644))
		file, err := os.Open(path)
		must(t, err)
		defer func() { _ = file.Close() }()
		progress := func(int64, int64) { _ = os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)) }
		if _, err := s.Import(t.Context(), file, "", progress); reason.Of(err) != reason.UntrustedArtifact {
			t.Errorf("got %v, want UNTRUSTED_ARTIFACT", err)
		}
	})
}

func TestBlobChangedInPlaceIsAbsent(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(t *testing.T, path string)
	}{
		{name: "same size", change: func(t *testing.T, path string) {
			t.Helper()
			must(t, os.WriteFile(path, []byte(strings.ToUpper(content)), 0o644))
			must(t, os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)))
		}},
		{name: "longer, with its old time", change: func(t *testing.T, path string) {
			t.Helper()
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.WriteFile(path, []byte(content+content), 0o644))
			must(t, os.Chtimes(path, time.Time{}, info.ModTime()))
		}},
		{name: "replaced by a link", change: func(t *testing.T, path string) {
			t.Helper()
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.Remove(path))
			must(t, os.Symlink("/proc/self/status", path)) // as long as the content, and made as old
			when := unix.NsecToTimespec(info.ModTime().UnixNano())
			must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW))
		}},
		{name: "without its sidecar", change: func(t *testing.T, path string) {
			t.Helper()
			must(t, os.Remove(path+".json"))
		}},
		{name: "with a torn sidecar", change: func(t *testing.T, path string) {
			t.Helper()
			must(t, os.Truncate(path+".json", 20))
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, dir := newStore(t)
			must(t, commitContent(s, dir))
			must(t, publishModel(s, dir))
			blob, err := s.Blob(contentDigest())
			must(t, err)
			must(t, errors.Join(os.Chmod(blob.Path, 0o644), os.Chmod(blob.Path+".json", 0o644)))
			test.change(t, blob.Path)
			if _, err := s.Blob(contentDigest()); !errors.Is(err, store.ErrAbsent) {
				t.Errorf("got %v, want absent", err)
			}
			kept, err := os.ReadDir(filepath.Join(s.Root(), "quarantine"))
			must(t, err)
			if len(kept) == 0 {
				t.Error("nothing is in quarantine")
			}
			must(t, commitContent(s, dir))
			if !checkBlob(t, s) {
				t.Error("absent after it was made again")
			}
		})
	}
}

func TestModelOfAChangedBlobIsAbsent(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t)
	writeUserFile(t, s, dir)
	must(t, importUserFile(s, dir))
	must(t, publishModel(s, dir))
	path := filepath.Join(dir, "user.gguf")
	must(t, os.WriteFile(path, []byte(strings.ToUpper(content)), 0o644))
	must(t, os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)))
	if checkModel(t, s) {
		t.Error("the model is there though its file was changed through the user's name")
	}
}

func BenchmarkLookUp(b *testing.B) {
	dir := b.TempDir()
	s, err := store.Open(store.Config{Root: filepath.Join(dir, "root")})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { makeRemovable(dir) }()
	if err := errors.Join(commitContent(s, ""), publishModel(s, ""), publishEngine(s, "")); err != nil {
		b.Fatal(err)
	}
	for name, lookUp := range map[string]func() error{
		"blob":   func() error { _, err := s.Blob(contentDigest()); return err },
		"model":  func() error { _, err := s.Model("m1"); return err },
		"engine": func() error { _, err := s.Engine("e1"); return err },
	} {
		b.Run("kind="+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := lookUp(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestDiscard(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{Root: filepath.Join(t.TempDir(), "root")})
	partial, err := s.Partial(t.Context(), "useless")
	must(t, err)
	_, err = partial.Write([]byte("useless"))
	must(t, err)
	blob, err := partial.Commit(t.Context(), "")
	must(t, err)
	for range 2 {
		must(t, s.Discard(t.Context(), blob.Digest))
	}
	if _, err := s.Blob(blob.Digest); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("the blob is %v, want absent", err)
	}
	if left, err := os.ReadDir(filepath.Dir(blob.Path)); err != nil || len(left) != 0 {
		t.Errorf("files of the blob: %v, %v; want none", left, err)
	}
}

func TestPartialWithoutContentLeavesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, store.Config{Root: filepath.Join(t.TempDir(), "root")})
	partial, err := s.Partial(t.Context(), "nothing came")
	must(t, err)
	must(t, partial.Close())
	if left, err := os.ReadDir(filepath.Join(s.Root(), "partial")); err != nil || len(left) != 0 {
		t.Errorf("partial content: %v, %v; want none", left, err)
	}
}
