// SPDX-License-Identifier: Apache-2.0

package archive_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/archive"
)

// member is one entry of an archive under test; a link has a target, a folder ends with a slash.
type member struct {
	name, content, target string
	mode                  fs.FileMode
	hard                  bool
	typeflag              byte
}

func zipOf(tb testing.TB, members []member) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, m := range members {
		header := &zip.FileHeader{Name: m.name, Method: zip.Deflate}
		mode := m.mode
		if mode == 0 {
			mode = 0o644
		}
		if m.target != "" {
			mode, m.content = fs.ModeSymlink|0o777, m.target
		}
		header.SetMode(mode)
		body, err := w.CreateHeader(header)
		must(tb, err)
		if !strings.HasSuffix(m.name, "/") {
			_, err = io.WriteString(body, m.content)
			must(tb, err)
		}
	}
	must(tb, w.Close())
	return out.Bytes()
}

func tarOf(tb testing.TB, members []member) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		header := &tar.Header{Name: m.name, Mode: int64(m.mode.Perm()), Size: int64(len(m.content)), Typeflag: tar.TypeReg, Linkname: m.target}
		if m.mode&fs.ModeSetuid != 0 {
			header.Mode |= 0o4000
		}
		switch {
		case m.typeflag != 0:
			header.Typeflag = m.typeflag
		case m.target != "" && m.hard:
			header.Typeflag = tar.TypeLink
		case m.target != "":
			header.Typeflag = tar.TypeSymlink
		case strings.HasSuffix(m.name, "/"):
			header.Typeflag = tar.TypeDir
		}
		must(tb, w.WriteHeader(header))
		_, err := io.WriteString(w, m.content)
		must(tb, err)
	}
	must(tb, w.Close())
	return out.Bytes()
}

func gzipOf(tb testing.TB, data []byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	must(tb, err)
	must(tb, w.Close())
	return out.Bytes()
}

// inEveryFormat calls f with the members as zip, tar and tar.gz.
func inEveryFormat(t *testing.T, members []member, f func(t *testing.T, path string)) {
	t.Helper()
	tarred := tarOf(t, members)
	for name, data := range map[string][]byte{"zip": zipOf(t, members), "tar": tarred, "tgz": gzipOf(t, tarred)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, write(t, data))
		})
	}
}

func write(tb testing.TB, data []byte) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "archive")
	must(tb, os.WriteFile(path, data, 0o600))
	return path
}

func extract(ctx context.Context, path, dir string, opts archive.Options) error {
	a, err := archive.Open(path, opts)
	if err != nil {
		return err
	}
	return errors.Join(a.Extract(ctx, dir), a.Close())
}

func goodMembers() []member {
	return []member{
		{name: "package/"},
		{name: "package/bin/server", content: "engine", mode: 0o755},
		{name: "package/lib/lib.so.1", content: strings.Repeat("library ", 100_000)},
		{name: "package/lib/lib.so", target: "lib.so.1"},
		{name: "package/bin/lib.so", target: "../lib/lib.so"},
		{name: "package/empty", content: ""},
	}
}

func TestExtract(t *testing.T) {
	t.Parallel()
	inEveryFormat(t, goodMembers(), func(t *testing.T, path string) {
		t.Helper()
		dir := t.TempDir()
		must(t, extract(t.Context(), path, dir, archive.Options{Strip: 1}))
		got := map[string]string{}
		must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				content, err := os.ReadFile(path)
				must(t, err)
				name, _ := filepath.Rel(dir, path)
				got[name] = string(content[:min(len(content), 10)])
			}
			return err
		}))
		want := map[string]string{"bin/server": "engine", "lib/lib.so.1": "library li", "lib/lib.so": "library li", "bin/lib.so": "library li", "empty": ""}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("extracted (-want +got):\n%s", diff)
		}
		for name, mode := range map[string]fs.FileMode{"bin/server": 0o755, "lib/lib.so.1": 0o644} {
			info, err := os.Stat(filepath.Join(dir, name))
			must(t, err)
			if info.Mode() != mode {
				t.Errorf("%s has mode %v, want %v", name, info.Mode(), mode)
			}
		}
	})
}

func TestHostileArchives(t *testing.T) {
	t.Parallel()
	limits := archive.Limits{Files: 20, Bytes: 1000, FileBytes: 600}
	for _, test := range []struct {
		name    string
		members []member
		entry   string // that the error must name
	}{
		{name: "parent", members: []member{{name: "../evil"}}, entry: "../evil"},
		{name: "parent in the middle", members: []member{{name: "a/../../evil"}}, entry: "a/../../evil"},
		{name: "parent that stays inside", members: []member{{name: "a/../b"}}, entry: "a/../b"},
		{name: "absolute", members: []member{{name: "/tmp/evil"}}, entry: "/tmp/evil"},
		{name: "backslash", members: []member{{name: `..\evil`}}, entry: `..\evil`},
		{name: "long name", members: []member{{name: strings.Repeat("a", 256)}}, entry: strings.Repeat("a", 256)},
		{name: "deep", members: []member{{name: strings.Repeat("a/", 80) + "a"}}, entry: "a/a"},
		{name: "same name twice", members: []member{{name: "a", content: "1"}, {name: "a", content: "2"}}, entry: "a"},
		{name: "same name in other words", members: []member{{name: "a", content: "1"}, {name: "./a", content: "2"}}, entry: "a"},
		{name: "folder and file", members: []member{{name: "a/b"}, {name: "a", content: "2"}}, entry: "a"},
		{name: "file and folder", members: []member{{name: "a", content: "1"}, {name: "a/b"}}, entry: "a/b"},
		{name: "link out", members: []member{{name: "d/a", target: "../../evil"}}, entry: "d/a"},
		{name: "absolute link", members: []member{{name: "a", target: "/etc/passwd"}}, entry: "a"},
		{name: "through a link", members: []member{{name: "a", target: "b"}, {name: "b/c"}, {name: "a/evil", content: "x"}}, entry: "a/evil"},
		{name: "link out by way of a link", members: []member{{name: "a/b/s", target: "../.."}, {name: "t", target: "a/b/s/../../evil"}}, entry: "t"},
		{name: "over a link", members: []member{{name: "a", target: "b"}, {name: "a", content: "x"}}, entry: "a"},
		{name: "set-user-id", members: []member{{name: "su", mode: fs.ModeSetuid | 0o755}}, entry: "su"},
		{name: "large file", members: []member{{name: "a", content: strings.Repeat("x", 601)}}, entry: "a"},
		{name: "large sum", members: []member{{name: "a", content: strings.Repeat("x", 600)}, {name: "b", content: strings.Repeat("x", 401)}}, entry: "b"},
		{name: "many files", members: manyFiles(21), entry: "f20"},
		{name: "many folders", members: []member{{name: strings.Repeat("d/", 21) + "x"}}, entry: "d/d"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			inEveryFormat(t, test.members, func(t *testing.T, path string) {
				t.Helper()
				wantRefused(t, path, archive.Options{Limits: limits}, test.entry)
			})
		})
	}
}

func manyFiles(n int) []member {
	var members []member
	for i := range n {
		members = append(members, member{name: "f" + string(rune('0'+i/10)) + string(rune('0'+i%10))})
	}
	members[n-1].name = "f20"
	return members
}

// wantRefused extracts into a folder whose neighbours must stay untouched.
func wantRefused(t *testing.T, path string, opts archive.Options, entry string) {
	t.Helper()
	outside := t.TempDir()
	dir := filepath.Join(outside, "in", "side")
	must(t, os.MkdirAll(dir, 0o755))
	err := extract(t.Context(), path, dir, opts)
	failed, ok := reason.As(err)
	if !ok || failed.Reason != reason.UntrustedArtifact || !strings.HasPrefix(failed.Metadata["entry"], entry[:min(len(entry), 3)]) {
		t.Errorf("got %v (%v), want UNTRUSTED_ARTIFACT that names %q", err, failed, entry)
	}
	must(t, filepath.WalkDir(outside, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.Contains(filepath.Base(path), "evil") {
			t.Errorf("%s was made", path)
		}
		return err
	}))
	if left, _ := filepath.Glob(filepath.Join(outside, "*")); len(left) != 1 {
		t.Errorf("outside there is %v", left)
	}
}

func TestHostileTars(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		members []member
		entry   string
	}{
		{name: "device", members: []member{{name: "dev", typeflag: tar.TypeChar}}, entry: "dev"},
		{name: "block device", members: []member{{name: "dev", typeflag: tar.TypeBlock}}, entry: "dev"},
		{name: "pipe", members: []member{{name: "pipe", typeflag: tar.TypeFifo}}, entry: "pipe"},
		{name: "hard link out", members: []member{{name: "h", target: "../evil", hard: true}}, entry: "h"},
		{name: "absolute hard link", members: []member{{name: "h", target: "/etc/passwd", hard: true}}, entry: "h"},
		{name: "hard link to nothing", members: []member{{name: "h", target: "no", hard: true}}, entry: "h"},
		{name: "hard link to a link", members: []member{{name: "a", target: "b"}, {name: "b"}, {name: "h", target: "a", hard: true}}, entry: "h"},
		{name: "hard link through a link", members: []member{{name: "d/f"}, {name: "a", target: "d"}, {name: "h", target: "a/f", hard: true}}, entry: "h"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			wantRefused(t, write(t, tarOf(t, test.members)), archive.Options{}, test.entry)
		})
	}
}

func TestHardLinkInside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := write(t, tarOf(t, []member{{name: "p/a", content: "x"}, {name: "p/b", target: "p/a", hard: true}}))
	must(t, extract(t.Context(), path, dir, archive.Options{Strip: 1}))
	got, err := os.ReadFile(filepath.Join(dir, "b"))
	must(t, err)
	if string(got) != "x" {
		t.Errorf("b has %q", got)
	}
}

func TestRatio(t *testing.T) {
	t.Parallel()
	bomb := []member{{name: "bomb", content: strings.Repeat("\x00", 80<<20)}}
	path := write(t, zipOf(t, bomb))
	wantRefused(t, path, archive.Options{}, "bomb")
	must(t, extract(t.Context(), path, t.TempDir(), archive.Options{Limits: archive.Limits{Ratio: 10_000}}))
}

func TestDamagedArchives(t *testing.T) {
	t.Parallel()
	tarred := tarOf(t, goodMembers())
	for name, data := range map[string][]byte{
		"empty": {}, "text": []byte("<html>not found</html>"), "cut zip": zipOf(t, goodMembers())[:300],
		"cut tar": tarred[:2000], "cut tgz": gzipOf(t, tarred)[:60], "gzip of text": gzipOf(t, []byte(strings.Repeat("text", 1000))),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := extract(t.Context(), write(t, data), t.TempDir(), archive.Options{}); reason.Of(err) != reason.UntrustedArtifact {
				t.Errorf("got %v, want UNTRUSTED_ARTIFACT", err)
			}
		})
	}
	t.Run("wrong checksum", func(t *testing.T) {
		t.Parallel()
		zipped := zipOf(t, []member{{name: "a", content: "some content"}})
		at := bytes.Index(zipped, []byte("PK\x07\x08"))
		zipped[at+4] ^= 1
		at = bytes.Index(zipped, []byte("PK\x01\x02"))
		zipped[at+16] ^= 1
		if err := extract(t.Context(), write(t, zipped), t.TempDir(), archive.Options{}); reason.Of(err) != reason.UntrustedArtifact {
			t.Errorf("got %v, want UNTRUSTED_ARTIFACT", err)
		}
	})
}

func TestMember(t *testing.T) {
	t.Parallel()
	inEveryFormat(t, goodMembers(), func(t *testing.T, path string) {
		t.Helper()
		for _, test := range []struct {
			name, member, want string
			reason             reason.Reason
		}{
			{name: "file", member: "bin/server", want: "engine"},
			{name: "unstripped", member: "package/bin/server", reason: reason.InvalidParams},
			{name: "missing", member: "bin/no", reason: reason.InvalidParams},
			{name: "parent", member: "../bin/server", reason: reason.InvalidParams},
			{name: "absolute", member: "/bin/server", reason: reason.InvalidParams},
			{name: "link", member: "lib/lib.so", reason: reason.UntrustedArtifact},
		} {
			t.Run(test.name, func(t *testing.T) {
				a, err := archive.Open(path, archive.Options{Strip: 1})
				must(t, err)
				defer func() { _ = a.Close() }()
				var out bytes.Buffer
				size, err := a.Member(t.Context(), test.member, &out)
				if reason.Of(err) != test.reason || out.String() != test.want || size != int64(len(test.want)) {
					t.Errorf("got %q, %d, %v; want %q, %v", out.String(), size, err, test.want, test.reason)
				}
			})
		}
	})
}

func TestMemberTwiceIsRefused(t *testing.T) {
	t.Parallel()
	inEveryFormat(t, []member{{name: "a", content: "1"}, {name: "b"}, {name: "a", content: "2"}}, func(t *testing.T, path string) {
		t.Helper()
		a, err := archive.Open(path, archive.Options{})
		must(t, err)
		defer func() { _ = a.Close() }()
		if _, err := a.Member(t.Context(), "a", io.Discard); reason.Of(err) != reason.UntrustedArtifact {
			t.Errorf("got %v, want UNTRUSTED_ARTIFACT", err)
		}
	})
}

func TestCancelledExtract(t *testing.T) {
	t.Parallel()
	inEveryFormat(t, goodMembers(), func(t *testing.T, path string) {
		t.Helper()
		left := errors.New("left")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(left)
		if err := extract(ctx, path, t.TempDir(), archive.Options{}); !errors.Is(err, left) {
			t.Errorf("got %v, want the cause", err)
		}
	})
}

func FuzzExtract(f *testing.F) {
	members := []member{{name: "d/"}, {name: "d/f", content: "x", mode: 0o755}, {name: "l", target: "d"}}
	f.Add(zipOf(f, members))
	f.Add(tarOf(f, members))
	f.Add(gzipOf(f, tarOf(f, members)))
	f.Add(tarOf(f, []member{{name: "h", target: "../evil", hard: true}}))
	limits := archive.Limits{Files: 50, Bytes: 1 << 20}
	f.Fuzz(func(t *testing.T, data []byte) {
		outside := t.TempDir()
		dir := filepath.Join(outside, "inside")
		must(t, os.Mkdir(dir, 0o755))
		err := extract(t.Context(), write(t, data), dir, archive.Options{Limits: limits})
		if err != nil && reason.Of(err) != reason.UntrustedArtifact && reason.Of(err) != reason.StorageFailed {
			t.Errorf("got %v", err)
		}
		entries, err := os.ReadDir(outside)
		must(t, err)
		if len(entries) != 1 {
			t.Errorf("outside there is %v", entries)
		}
		root, err := filepath.EvalSymlinks(dir)
		must(t, err)
		must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type()&fs.ModeSymlink != 0 {
				if to, err := filepath.EvalSymlinks(path); err == nil && to != root && !strings.HasPrefix(to, root+"/") {
					t.Errorf("%s leads to %s", path, to)
				}
			}
			return err
		}))
	})
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}
