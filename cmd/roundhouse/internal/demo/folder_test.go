// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newFolderIn(t *testing.T, parent string) folder {
	t.Helper()
	made, err := newFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// die lets go of the folder as the kernel does for a process that was killed.
func die(t *testing.T, f folder) {
	t.Helper()
	if err := f.lock.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		make func(t *testing.T, parent string)
		left int
	}{
		{"a run under way", func(t *testing.T, parent string) {
			alive := newFolderIn(t, parent)
			t.Cleanup(func() { die(t, alive) })
		}, 1},
		{"a killed run", func(t *testing.T, parent string) { die(t, newFolderIn(t, parent)) }, 0},
		{"a killed run whose pool manager ends yet", func(t *testing.T, parent string) {
			killed := newFolderIn(t, parent)
			manager := newFolderIn(t, t.TempDir())
			t.Cleanup(func() { die(t, manager) })
			if err := os.Mkdir(filepath.Join(killed.path, stateName), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(filepath.Join(manager.path, lockName), filepath.Join(killed.path, stateName, lockName)); err != nil {
				t.Fatal(err)
			}
			die(t, killed)
		}, 1},
		{"a kept run", func(t *testing.T, parent string) {
			if err := newFolderIn(t, parent).keep(); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"a run that ended", func(t *testing.T, parent string) {
			if err := newFolderIn(t, parent).remove(); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"a run that begins", func(t *testing.T, parent string) {
			made := newFolderIn(t, parent)
			die(t, made)
			if err := os.Rename(made.path, made.path+unready); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"another's folder", func(t *testing.T, parent string) {
			made := newFolderIn(t, parent)
			die(t, made)
			if err := os.Rename(made.path, filepath.Join(parent, "x")); err != nil {
				t.Fatal(err)
			}
		}, 1},
		{"a link to a folder", func(t *testing.T, parent string) {
			made := newFolderIn(t, t.TempDir())
			die(t, made)
			if err := os.Symlink(made.path, filepath.Join(parent, folderPrefix+"1")); err != nil {
				t.Fatal(err)
			}
		}, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			parent := t.TempDir()
			test.make(t, parent)
			before := names(parent)
			removed := sweep(parent)
			if left := len(names(parent)); left != test.left || len(removed) != len(before)-left {
				t.Errorf("sweep says that it removed %v; of %v there are %d left, want %d", removed, before, left, test.left)
			}
		})
	}
}

func TestFoldersAreTheirOwn(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	made := newFolderIn(t, parent)
	defer die(t, made)
	if !held(filepath.Join(made.path, lockName)) {
		t.Error("the folder's lock is not held")
	}
	if diff := cmp.Diff(map[string]struct{}{filepath.Base(made.path): {}}, names(parent)); diff != "" {
		t.Errorf("parent (-want +got):\n%s", diff)
	}
}
