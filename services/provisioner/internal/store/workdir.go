// SPDX-License-Identifier: Apache-2.0

package store

import "context"

// WorkDir is a directory that one caller, among all processes, may write to until Close.
type WorkDir struct {
	// Path is absolute. The directory exists.
	Path    string
	store   *Store
	release func()
	keep    bool
}

// Builds waits for the build directory of key and returns it with all that an earlier build, finished or killed, left.
func (s *Store) Builds(ctx context.Context, key string) (*WorkDir, error) {
	return s.workDir(ctx, "builds", key)
}

// Sources waits for the source directory of key and returns it with all that an earlier checkout left.
func (s *Store) Sources(ctx context.Context, key string) (*WorkDir, error) {
	return s.workDir(ctx, "sources", key)
}

func (s *Store) workDir(ctx context.Context, kind, key string) (*WorkDir, error) {
	if err := checkKey(kind, key); err != nil {
		return nil, err
	}
	release, err := s.lock(ctx, kind+" "+key)
	if err != nil {
		return nil, err
	}
	path := s.path(kind, key)
	if err := s.fs.MkdirAll(path, dirMode); err != nil {
		release()
		return nil, diskError("make work directory", path, 0, err)
	}
	return &WorkDir{Path: path, store: s, release: release, keep: true}, nil
}

// TempDir returns a new empty directory on the store's file system. Close removes it, and the next Open removes it when
// the process died before.
func (s *Store) TempDir() (*WorkDir, error) {
	path := s.temp()
	if err := s.fs.MkdirAll(path, secretDirMode); err != nil {
		return nil, diskError("make temporary directory", path, 0, err)
	}
	return &WorkDir{Path: path, store: s, release: func() {}}, nil
}

// Clear removes everything in the directory, which stays held.
func (w *WorkDir) Clear() error {
	err := w.store.removeTree(w.Path)
	if err == nil {
		err = w.store.fs.MkdirAll(w.Path, dirMode)
	}
	return diskError("clear work directory", w.Path, 0, err)
}

// Close gives the directory back: that of Builds and Sources stays as it is, unless it is empty, that of TempDir is removed.
// Closing again does nothing.
func (w *WorkDir) Close() error {
	if w.release == nil {
		return nil
	}
	var err error
	if w.keep {
		_ = w.store.fs.Remove(w.Path) // which an empty directory alone bears
	} else {
		err = w.store.removeTree(w.Path)
	}
	w.release()
	w.release = nil
	if err != nil {
		return diskError("close work directory", w.Path, 0, err)
	}
	return nil
}
