// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// cloner is a disk that clones, as some file systems do; clones are counted.
type cloner struct {
	store.FS
	clones *int
}

func (c cloner) CloneOpen(file *os.File, to string) error {
	*c.clones++
	data, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
	return errors.Join(err, os.WriteFile(to, data, 0o600))
}

// crowded is a disk without room for anything, which nothing may be written to.
type crowded struct{ store.FS }

func (crowded) Free(string) (int64, error) { return int64(len(content)) - 1, nil }

func (c crowded) OpenFile(path string, flag int, mode fs.FileMode) (store.File, error) {
	if flag&os.O_CREATE != 0 {
		return nil, errors.New("something is written")
	}
	return c.FS.OpenFile(path, flag, mode)
}

// An import must not be a second name of the user's file: who writes to that would change what everybody else was promised.
func TestImportedContentIsTheStoresOwn(t *testing.T) {
	t.Parallel()
	clones := 0
	for _, test := range []struct {
		name string
		fs   store.FS
	}{
		{name: "copy", fs: store.OperatingSystem()},
		{name: "clone", fs: cloner{FS: store.OperatingSystem(), clones: &clones}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			t.Cleanup(func() { makeRemovable(dir) })
			s := open(t, store.Config{Root: filepath.Join(dir, "root"), FS: test.fs})
			writeUserFile(t, s, dir)
			path := filepath.Join(dir, "user.gguf")
			before, err := os.Stat(path)
			must(t, err)
			must(t, importUserFile(s, dir))
			blob, err := s.Blob(contentDigest())
			must(t, err)
			after, err := os.Stat(path)
			must(t, err)
			stored, err := os.Stat(blob.Path)
			must(t, err)
			if os.SameFile(after, stored) {
				t.Error("the blob is a name of the user's file")
			}
			if stored.Mode().Perm() != 0o444 {
				t.Errorf("blob has mode %v, want read-only", stored.Mode())
			}
			if store.StampOf(before) != store.StampOf(after) {
				t.Error("the user's file was touched")
			}
			must(t, os.WriteFile(path, []byte(strings.ToUpper(content)), 0o644))
			must(t, os.Chtimes(path, time.Time{}, before.ModTime()))
			if !checkBlob(t, s) {
				t.Error("the blob is gone with the user's file")
			}
		})
	}
	t.Cleanup(func() {
		if clones != 1 {
			t.Errorf("%d clones were made, want 1", clones)
		}
	})
}

func TestImportReservesSpace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	s := open(t, store.Config{Root: root, FS: crowded{store.OperatingSystem()}})
	writeUserFile(t, s, dir)
	err := importUserFile(s, dir)
	if found, ok := reason.As(err); !ok || found.Reason != reason.DiskFull || found.Metadata["bytes_wanted"] != strconv.Itoa(len(content)) || found.Remedy == "" {
		t.Errorf("got %v, want DISK_FULL with what is wanted", err)
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
		// good is true if the content is what it was.
		good bool
	}{
		{name: "same size", change: func(t *testing.T, path string) {
			t.Helper()
			must(t, os.WriteFile(path, []byte(strings.ToUpper(content)), 0o644))
			must(t, os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)))
		}},
		{name: "same size, with its old time", change: func(t *testing.T, path string) {
			t.Helper()
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.WriteFile(path, []byte(strings.ToUpper(content)), 0o644))
			must(t, os.Chtimes(path, time.Time{}, info.ModTime()))
		}},
		{name: "longer, with its old time", change: func(t *testing.T, path string) {
			t.Helper()
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.WriteFile(path, []byte(content+content), 0o644))
			must(t, os.Chtimes(path, time.Time{}, info.ModTime()))
		}},
		{name: "another file with its size and time", change: func(t *testing.T, path string) {
			t.Helper()
			info, err := os.Stat(path)
			must(t, err)
			must(t, os.WriteFile(path+".new", []byte(strings.ToUpper(content)), 0o644))
			must(t, os.Chtimes(path+".new", time.Time{}, info.ModTime()))
			must(t, os.Rename(path+".new", path))
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
		{name: "copied, as from a backup", good: true, change: func(t *testing.T, path string) {
			t.Helper()
			must(t, os.Remove(path))
			must(t, os.WriteFile(path, []byte(content), 0o644))
		}},
		{name: "touched", good: true, change: func(t *testing.T, path string) {
			t.Helper()
			must(t, os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)))
		}},
		{name: "without its sidecar", good: true, change: func(t *testing.T, path string) {
			t.Helper()
			must(t, os.Remove(path+".json"))
		}},
		{name: "with a torn sidecar", good: true, change: func(t *testing.T, path string) {
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
			_, err = s.Recover(t.Context(), contentDigest(), nil)
			must(t, err) // the modes were a change
			must(t, os.Chmod(blob.Path, 0o644))
			test.change(t, blob.Path)
			if checkBlob(t, s) || checkModel(t, s) {
				t.Error("the blob or its model is there without another look at its content")
			}
			_, err = s.Recover(t.Context(), contentDigest(), nil)
			kept, readErr := os.ReadDir(filepath.Join(s.Root(), "quarantine"))
			must(t, readErr)
			if test.good {
				if info, statErr := os.Stat(blob.Path); err != nil || statErr != nil || info.Mode().Perm() != 0o444 || len(kept) != 0 || !checkBlob(t, s) || !checkModel(t, s) {
					t.Errorf("Recover: %v, with %d files in quarantine; want the blob and its model", err, len(kept))
				}
				return
			}
			if !errors.Is(err, store.ErrAbsent) || len(kept) == 0 {
				t.Errorf("Recover: %v, with %d files in quarantine; want it absent and kept there", err, len(kept))
			}
			must(t, commitContent(s, dir))
			if !checkBlob(t, s) || !checkModel(t, s) {
				t.Error("absent after it was made again")
			}
		})
	}
}

func TestRecover(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t)
	if _, err := s.Recover(t.Context(), contentDigest(), nil); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("what was never there: %v, want absent", err)
	}
	if _, err := s.Recover(t.Context(), "x", nil); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("what is no digest: %v, want absent", err)
	}
	must(t, commitContent(s, dir))
	blob, err := s.Blob(contentDigest())
	must(t, err)
	must(t, os.Remove(blob.Path+".json"))
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("caller left")
	if _, err := s.Recover(ctx, contentDigest(), func(int64, int64) { cancel(cause) }); !errors.Is(err, cause) && err != nil {
		t.Errorf("cut off: %v, want %v", err, cause)
	}
	cancel(cause)
	must(t, errors.Join(os.Chmod(blob.Path, 0o600), os.Chmod(blob.Path, 0o444)))
	if _, err := s.Recover(ctx, contentDigest(), nil); !errors.Is(err, cause) {
		t.Errorf("cut off before it began: %v, want %v", err, cause)
	}
	var done, total int64
	got, err := s.Recover(t.Context(), contentDigest(), func(d, t int64) { done, total = d, t })
	if err != nil || got != blob || done != blob.Size || total != blob.Size {
		t.Errorf("Recover = %v, %v with %d of %d bytes told; want %v", got, err, done, total, blob)
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
