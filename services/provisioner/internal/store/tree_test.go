// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

func TestPublishEngine(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	engine, err := s.PublishEngine(t.Context(), "e1", fillEngine)
	must(t, err)
	want := []store.TreeFile{
		{Path: "bin/lib/lib.so.1", Mode: 0o444, Stamp: store.Stamp{SizeBytes: 7}, Digest: digestOf("library")},
		{Path: "bin/lib.so", Mode: 0o777, Stamp: store.Stamp{SizeBytes: 12}, Link: "lib/lib.so.1"},
		{Path: "bin/server", Mode: 0o555, Stamp: store.Stamp{SizeBytes: 6}, Digest: digestOf("engine")},
	}
	if diff := cmp.Diff(want, engine.Files, cmpopts.IgnoreFields(store.Stamp{}, "ModifiedNano", "ChangedNano", "Inode")); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if engine.Labels["version"] != "7" || engine.Digest == "" {
		t.Errorf("labels %v, digest %q", engine.Labels, engine.Digest)
	}
	for path, mode := range map[string]os.FileMode{"bin": 0o555, "bin/server": 0o555, "bin/lib/lib.so.1": 0o444} {
		info, err := os.Stat(filepath.Join(engine.Dir, path))
		must(t, err)
		if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), mode)
		}
	}
	again, err := s.PublishEngine(t.Context(), "e2", fillEngine)
	must(t, err)
	if again.Digest != engine.Digest {
		t.Errorf("equal engines have digests %s and %s", engine.Digest, again.Digest)
	}
}

func TestEngineIsMadeOnce(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	other := open(t, store.Config{Root: s.Root()})
	var fills atomic.Int32
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			_, err := []*store.Store{s, other}[i%2].PublishEngine(t.Context(), "e1", func(ctx context.Context, dir string) (map[string]string, error) {
				fills.Add(1)
				return fillEngine(ctx, dir)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if fills.Load() != 1 {
		t.Errorf("the engine was made %d times", fills.Load())
	}
}

func TestPublishEngineRefuses(t *testing.T) {
	t.Parallel()
	broken := errors.New("no compiler")
	for _, test := range []struct {
		name string
		fill func(dir string) error
		want reason.Reason
		is   error
	}{
		{name: "failed fill", fill: func(string) error { return broken }, is: broken},
		{name: "link out", fill: func(dir string) error { return os.Symlink("../../../../etc/passwd", filepath.Join(dir, "a")) }, want: reason.UntrustedArtifact},
		{name: "absolute link", fill: func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "a")) }, want: reason.UntrustedArtifact},
		{name: "link to nothing", fill: func(dir string) error { return os.Symlink("b", filepath.Join(dir, "a")) }, want: reason.UntrustedArtifact},
		{name: "pipe", fill: func(dir string) error { return syscall.Mkfifo(filepath.Join(dir, "a"), 0o600) }, want: reason.UntrustedArtifact},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, _ := newStore(t)
			_, err := s.PublishEngine(t.Context(), "e1", func(_ context.Context, dir string) (map[string]string, error) { return nil, test.fill(dir) })
			if err == nil || test.is != nil && !errors.Is(err, test.is) || test.is == nil && reason.Of(err) != test.want {
				t.Errorf("got %v, want %v %v", err, test.want, test.is)
			}
			if checkEngine(t, s) {
				t.Error("the engine is there")
			}
			scratch, err := filepath.Glob(filepath.Join(s.Root(), "tmp", "*", "*"))
			must(t, err)
			if len(scratch) > 0 {
				t.Errorf("left behind: %v", scratch)
			}
		})
	}
}

func TestDamagedTreeIsAbsent(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		damage func(root string) error
	}{
		{name: "torn manifest", damage: func(root string) error { return os.Truncate(filepath.Join(root, "manifest.json"), 100) }},
		{name: "no manifest", damage: func(root string) error { return os.Remove(filepath.Join(root, "manifest.json")) }},
		{name: "other content in the manifest", damage: func(root string) error {
			path := filepath.Join(root, "manifest.json")
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			changed := strings.Replace(string(data), `"digest":"sha256:`, `"digest":"sha256:0`, 1)
			return errors.Join(os.Remove(path), os.WriteFile(path, []byte(changed), 0o444))
		}},
		{name: "lost file", damage: func(root string) error { return removeFirst(filepath.Join(root, "files")) }},
		{name: "other content with the old size and time", damage: func(root string) error {
			path, err := firstFile(filepath.Join(root, "files"))
			if err != nil {
				return err
			}
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return errors.Join(os.Chmod(path, 0o644), os.WriteFile(path, make([]byte, info.Size()), 0o644), os.Chtimes(path, time.Time{}, info.ModTime()))
		}},
		{name: "another link or file", damage: func(root string) error {
			path, err := firstFile(filepath.Join(root, "files"))
			return errors.Join(err, os.Remove(path), os.Symlink("/etc/passwd", path))
		}},
		{name: "longer file", damage: func(root string) error { return appendToFirst(filepath.Join(root, "files")) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, dir := newStore(t)
			must(t, commitContent(s, dir))
			for kind, publish := range map[string]func(*store.Store, string) error{"engines/e1": publishEngine, "models/m1": publishModel} {
				must(t, publish(s, dir))
				must(t, os.Chmod(filepath.Join(s.Root(), kind, "manifest.json"), 0o644))
				must(t, test.damage(filepath.Join(s.Root(), kind)))
			}
			if checkEngine(t, s) || checkModel(t, s) {
				t.Error("a damaged tree is there")
			}
			must(t, commitContent(s, dir))
			must(t, publishEngine(s, dir))
			must(t, publishModel(s, dir))
			if !checkEngine(t, s) || !checkModel(t, s) {
				t.Error("absent after it was made again")
			}
		})
	}
}

// A store that was copied or restored has the same files, with other stamps.
func TestCopiedEngineIsNotMadeAgain(t *testing.T) {
	t.Parallel()
	s, dir := newStore(t)
	must(t, publishEngine(s, dir))
	made, err := s.Engine("e1")
	must(t, err)
	path, err := firstFile(made.Dir)
	must(t, err)
	must(t, errors.Join(os.Chmod(path, 0o600), os.Chtimes(path, time.Time{}, time.Unix(1, 0))))
	if checkEngine(t, s) {
		t.Error("the engine is there without another look at its content")
	}
	again, err := s.PublishEngine(t.Context(), "e1", func(context.Context, string) (map[string]string, error) {
		return nil, errors.New("it is made again")
	})
	must(t, err)
	if diff := cmp.Diff(made, again, cmpopts.IgnoreFields(store.Stamp{}, "ModifiedNano", "ChangedNano", "Inode")); diff != "" {
		t.Errorf("engine (-before +after):\n%s", diff)
	}
	if !checkEngine(t, s) {
		t.Error("absent after it was looked at")
	}
}

func firstFile(dir string) (string, error) {
	found := ""
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && found == "" {
			found = path
		}
		return err
	})
	return found, err
}

func removeFirst(dir string) error {
	makeRemovable(dir)
	path, err := firstFile(dir)
	return errors.Join(err, os.Remove(path))
}

func appendToFirst(dir string) error {
	path, err := firstFile(dir)
	return errors.Join(err, os.Chmod(path, 0o644), os.WriteFile(path, []byte("another content, and a longer one"), 0o644))
}

func TestPublishModelRefuses(t *testing.T) {
	t.Parallel()
	file := func(names ...string) []store.ModelFile {
		var files []store.ModelFile
		for _, name := range names {
			files = append(files, store.ModelFile{Name: name, Digest: contentDigest()})
		}
		return files
	}
	for _, test := range []struct {
		name  string
		id    string
		files []store.ModelFile
	}{
		{name: "no files", id: "m1"},
		{name: "folder in a name", id: "m1", files: file("a/b.gguf")},
		{name: "name outside", id: "m1", files: file("..")},
		{name: "absolute name", id: "m1", files: file("/etc/passwd")},
		{name: "empty name", id: "m1", files: file("")},
		{name: "same name twice", id: "m1", files: file("a", "a")},
		{name: "id with slashes", id: "a/b", files: file("a")},
		{name: "long id", id: strings.Repeat("a", 129), files: file("a")},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, dir := newStore(t)
			must(t, commitContent(s, dir))
			_, err := s.PublishModel(t.Context(), store.ModelManifest{ID: test.id, Files: test.files})
			if reason.Of(err) != reason.InvalidParams {
				t.Errorf("got %v, want INVALID_PARAMS", err)
			}
		})
	}
	t.Run("blob that is not there", func(t *testing.T) {
		t.Parallel()
		s, dir := newStore(t)
		if err := publishModel(s, dir); !errors.Is(err, store.ErrAbsent) {
			t.Errorf("got %v, want absent", err)
		}
	})
	t.Run("same id with other files", func(t *testing.T) {
		t.Parallel()
		s, dir := newStore(t)
		must(t, commitContent(s, dir))
		must(t, publishModel(s, dir))
		_, err := s.PublishModel(t.Context(), store.ModelManifest{ID: "m1", Files: file("other.gguf")})
		if reason.Of(err) != reason.Internal {
			t.Errorf("got %v, want INTERNAL", err)
		}
	})
}
