// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// place writes a file that was changed long enough ago to be remembered, and returns what should be there.
func place(t testing.TB, path, content string) File {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o700); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(content))
	return File{Path: path, SHA256: hex.EncodeToString(sum[:]), SizeBytes: int64(len(content))}
}

func newVerifier(t testing.TB, roots ...string) *Verifier {
	t.Helper()
	v, err := New(Config{Roots: roots})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// age waits until the file's times are old enough for its digest to be remembered.
func age(t testing.TB, path string) {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	<-time.After(time.Until(info.ModTime().Add(2 * unsettled)))
}

func TestCheck(t *testing.T) {
	t.Parallel()
	root, outside := t.TempDir(), t.TempDir()
	good := place(t, filepath.Join(root, "engine"), "code")
	stranger := place(t, filepath.Join(outside, "engine"), "code")
	sibling := place(t, root+"-sibling", "code")
	t.Cleanup(func() { _ = os.Remove(sibling.Path) })
	for link, target := range map[string]string{"inside": good.Path, "escape": stranger.Path, "loop": filepath.Join(root, "loop")} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*File)
		want   reason.Reason
		text   string
	}{
		{"right", func(*File) {}, reason.Unspecified, ""},
		{"upper-case digest", func(f *File) { f.SHA256 = strings.ToUpper(f.SHA256) }, reason.Unspecified, ""},
		{"link inside", func(f *File) { f.Path = filepath.Join(root, "inside") }, reason.Unspecified, ""},
		{"another digest", func(f *File) { f.SHA256 = strings.Repeat("0", 64) }, reason.DigestMismatch, good.SHA256},
		{"another size", func(f *File) { f.SizeBytes++ }, reason.DigestMismatch, "4 bytes instead of 5"},
		{"gone", func(f *File) { f.Path += "2" }, reason.DigestMismatch, "nothing"},
		{"outside", func(f *File) { f.Path = stranger.Path }, reason.UntrustedArtifact, "outside the trusted roots"},
		{"name begins like the root", func(f *File) { f.Path = sibling.Path }, reason.UntrustedArtifact, "outside the trusted roots"},
		{"link to the outside", func(f *File) { f.Path = filepath.Join(root, "escape") }, reason.UntrustedArtifact, "outside the trusted roots"},
		{"out by dots", func(f *File) { f.Path = root + "/../" + filepath.Base(outside) + "/engine" }, reason.UntrustedArtifact, "outside"},
		{"link loop", func(f *File) { f.Path = filepath.Join(root, "loop") }, reason.StorageFailed, "too many levels"},
		{"directory", func(f *File) { f.Path = filepath.Dir(good.Path) + "/." }, reason.UntrustedArtifact, ""},
		{"FIFO", func(f *File) { f.Path = filepath.Join(root, "fifo") }, reason.UntrustedArtifact, "not a regular file"},
		{"relative", func(f *File) { f.Path = "engine" }, reason.UntrustedArtifact, "not an absolute path"},
		{"no digest", func(f *File) { f.SHA256 = "" }, reason.UntrustedArtifact, "no sha256"},
		{"half a digest", func(f *File) { f.SHA256 = f.SHA256[:32] }, reason.UntrustedArtifact, "no sha256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := good
			tt.change(&f)
			err := newVerifier(t, filepath.Join(root, "..", "not-there-yet"), root).Check(t.Context(), f)
			if reason.Of(err) != tt.want || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Check(%+v): got %v (%v), want %v with %q", f, err, reason.Of(err), tt.want, tt.text)
			}
			if err != nil && !strings.Contains(err.Error(), f.Path) {
				t.Errorf("error %q does not name %s", err, f.Path)
			}
		})
	}
}

func TestRootMayBeALink(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	f := place(t, filepath.Join(dir, "real", "engine"), "code")
	f.Path = filepath.Join(dir, "link", "engine")
	if err := newVerifier(t, filepath.Join(dir, "link")).Check(t.Context(), f); err != nil {
		t.Error(err)
	}
}

// TestRememberedDigestsDoNotOutliveAChange swaps the content in every way that keeps name and size.
func TestRememberedDigestsDoNotOutliveAChange(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		swap func(t *testing.T, path string)
	}{
		{"written in place", func(t *testing.T, path string) { place(t, path, "evil") }},
		{"replaced", func(t *testing.T, path string) {
			place(t, path+".new", "evil")
			if err := os.Rename(path+".new", path); err != nil {
				t.Fatal(err)
			}
		}},
		{"written in place with its old time", func(t *testing.T, path string) {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			place(t, path, "evil")
			if err := os.Chtimes(path, info.ModTime(), info.ModTime()); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			f := place(t, filepath.Join(root, "engine"), "code")
			age(t, f.Path)
			v := newVerifier(t, root)
			if err := v.Check(t.Context(), f); err != nil {
				t.Fatal(err)
			}
			if len(v.known) != 1 {
				t.Fatalf("%d digests are remembered, want 1", len(v.known))
			}
			tt.swap(t, f.Path)
			if err := v.Check(t.Context(), f); reason.Of(err) != reason.DigestMismatch {
				t.Errorf("Check after the change: got %v, want DigestMismatch", err)
			}
		})
	}
}

func TestFreshFilesAreNotRemembered(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	f := place(t, filepath.Join(root, "engine"), "code")
	future := time.Now().Add(time.Hour)
	if err := os.Chtimes(f.Path, future, future); err != nil { // Sets the change time to now.
		t.Fatal(err)
	}
	v := newVerifier(t, root)
	if err := v.Check(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	if old := time.Since(info.ModTime().Add(-time.Hour)) > unsettled; len(v.known) != 0 && !old {
		t.Errorf("%d digests of files just changed are remembered", len(v.known))
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, t.TempDir())
	for i := range maxRemembered + 10 {
		v.remember(stamp{ino: uint64(i)}, "sum")
	}
	if len(v.known) > maxRemembered || v.known[stamp{ino: maxRemembered + 9}] != "sum" {
		t.Errorf("%d digests are remembered, want at most %d and the newest among them", len(v.known), maxRemembered)
	}
}

func TestCheckIsCancelled(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	f := place(t, filepath.Join(root, "engine"), "code")
	drained := errors.New("drained")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(drained)
	if err := newVerifier(t, root).Check(ctx, f); !errors.Is(err, drained) {
		t.Errorf("Check: got %v, want the cause of its context", err)
	}
}

// meddler is a context that runs act the first time it is looked at: while a file is read.
type meddler struct {
	context.Context
	act func()
}

func (m *meddler) Err() error {
	if m.act != nil {
		m.act()
		m.act = nil
	}
	return m.Context.Err()
}

func TestChangeWhileReadIsNotTrusted(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	f := place(t, filepath.Join(root, "engine"), "code")
	age(t, f.Path)
	v := newVerifier(t, root)
	err := v.Check(&meddler{t.Context(), func() { place(t, f.Path, "code") }}, f) // The same content, to be told by its times.
	if reason.Of(err) != reason.StorageFailed || len(v.known) != 0 {
		t.Errorf("Check of a file that changes: got %v, remembered %v", err, v.known)
	}
}

func TestNewRefusesRoots(t *testing.T) {
	t.Parallel()
	for _, roots := range [][]string{nil, {""}, {"relative"}, {"/"}, {"/usr/.."}, {"/opt", "/"}} {
		if _, err := New(Config{Roots: roots}); err == nil {
			t.Errorf("New with roots %q: no error", roots)
		}
	}
}

func BenchmarkCheckAgain(b *testing.B) {
	root := b.TempDir()
	f := place(b, filepath.Join(root, "engine"), strings.Repeat("x", 1<<20))
	age(b, f.Path)
	v := newVerifier(b, root)
	b.ReportAllocs()
	for b.Loop() {
		if err := v.Check(b.Context(), f); err != nil {
			b.Fatal(err)
		}
	}
}
