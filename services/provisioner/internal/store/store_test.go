// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, test := range []struct {
		name, root string
		want       reason.Reason
	}{
		{name: "relative", root: "store", want: reason.InvalidParams},
		{name: "empty", root: "", want: reason.InvalidParams},
		{name: "below a file", root: filepath.Join(file, "store"), want: reason.StorageFailed},
		{name: "a file", root: file, want: reason.StorageFailed},
		{name: "where nobody may write", root: "/proc/store", want: reason.StorageFailed},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := store.Open(store.Config{Root: test.root})
			failed, ok := reason.As(err)
			if !ok || failed.Reason != test.want || !strings.Contains(failed.Message, test.root) || failed.Remedy == "" {
				t.Errorf("got %v, want %v with the root and a remedy", err, test.want)
			}
		})
	}
}

// Records may hold addresses with credentials, and unverified content is nobody else's business.
func TestFoldersOfSecretsAreClosed(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	for _, folder := range []string{"partial", "tmp", "quarantine", "prepared", "resolutions"} {
		info, err := os.Stat(filepath.Join(s.Root(), folder))
		must(t, err)
		if info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v, want it closed to others", folder, info.Mode())
		}
	}
}

func TestWorkDirs(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	build, err := s.Builds(t.Context(), "k")
	must(t, err)
	source, err := s.Sources(t.Context(), "k") // another directory: no waiting
	must(t, err)
	object := filepath.Join(build.Path, "sub", "a.o")
	must(t, errors.Join(os.Mkdir(filepath.Dir(object), 0o755), os.WriteFile(object, nil, 0o444)))
	must(t, errors.Join(build.Close(), build.Close(), source.Close()))

	build, err = s.Builds(t.Context(), "k")
	must(t, err)
	if _, err := os.Stat(object); err != nil {
		t.Errorf("the work of the first build is gone: %v", err)
	}
	must(t, os.Chmod(filepath.Dir(object), 0o555))
	must(t, build.Clear())
	left, err := os.ReadDir(build.Path)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left after Clear: %v", left)
	}
	must(t, build.Close())
	if _, err := os.Stat(build.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder is left: %v", err)
	}
	for _, key := range []string{"", "..", "a/b", strings.Repeat("k", 129)} {
		if _, err := s.Builds(t.Context(), key); reason.Of(err) != reason.InvalidParams {
			t.Errorf("Builds(%q) = %v, want INVALID_PARAMS", key, err)
		}
	}
}

func TestTempDirIsRemoved(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	temp, err := s.TempDir()
	must(t, err)
	must(t, errors.Join(os.WriteFile(filepath.Join(temp.Path, "a"), nil, 0o600), temp.Close()))
	if _, err := os.Stat(temp.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want it gone", err)
	}
}

func TestCloseLeavesNothingTemporary(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	s, err := store.Open(store.Config{Root: root})
	must(t, err)
	_, err = s.TempDir()
	must(t, err)
	must(t, s.Close())
	left, err := os.ReadDir(filepath.Join(root, "tmp"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("left in tmp after Close: %v", left)
	}
}
