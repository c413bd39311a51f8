// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
)

// memFS is a disk in memory that knows what a crash would leave of it.
type memFS struct {
	dirs    map[string]map[string]*memFile // as programs see them.
	durable map[string]map[string]*memFile // names as of the last SyncDir.

	ops    int   // operations so far.
	failAt int   // the operation that fails; -1: none.
	crash  bool  // all later ones fail too.
	err    error // what they fail with.
}

type memFile struct {
	data, synced []byte
}

func newMemFS() *memFS {
	return &memFS{dirs: map[string]map[string]*memFile{}, durable: map[string]map[string]*memFile{}, failAt: -1}
}

// op counts an operation and tells whether it fails.
func (m *memFS) op(name, path string) error {
	n := m.ops
	m.ops++
	if n == m.failAt || m.crash && m.failAt >= 0 && n > m.failAt {
		return &fs.PathError{Op: name, Path: path, Err: m.err}
	}
	return nil
}

// crashed returns what may be on the disk after the power fails now: each name is as synced or as it was last, each
// content as synced, complete, or torn anywhere.
func (m *memFS) crashed(random *rand.Rand) *memFS {
	after := newMemFS()
	files := map[*memFile]*memFile{}
	survivor := func(f *memFile) *memFile {
		if files[f] == nil {
			data := f.synced
			if !bytes.Equal(f.data, f.synced) {
				switch random.IntN(3) {
				case 0:
					data = f.data
				case 1:
					data = f.data[:random.IntN(len(f.data)+1)]
				}
			}
			files[f] = &memFile{data: slices.Clone(data), synced: slices.Clone(data)}
		}
		return files[f]
	}
	for _, dir := range slices.Sorted(maps.Keys(m.dirs)) {
		names := map[string]*memFile{}
		both := maps.Clone(m.durable[dir])
		if both == nil {
			both = map[string]*memFile{}
		}
		maps.Copy(both, m.dirs[dir])
		for _, name := range slices.Sorted(maps.Keys(both)) {
			old, now := m.durable[dir][name], m.dirs[dir][name]
			kept := now
			if old != now && random.IntN(2) == 0 {
				kept = old
			}
			if kept != nil {
				names[name] = survivor(kept)
			}
		}
		after.dirs[dir], after.durable[dir] = names, maps.Clone(names)
	}
	return after
}

func (m *memFS) lookup(path string) (map[string]*memFile, string, error) {
	dir, ok := m.dirs[filepath.Dir(path)]
	if !ok {
		return nil, "", fs.ErrNotExist
	}
	return dir, filepath.Base(path), nil
}

func (m *memFS) MkdirAll(dir string) error {
	if err := m.op("mkdir", dir); err != nil {
		return err
	}
	if m.dirs[dir] == nil {
		m.dirs[dir] = map[string]*memFile{}
	}
	return nil
}

func (m *memFS) Create(path string) (File, error) {
	if err := m.op("create", path); err != nil {
		return nil, err
	}
	dir, name, err := m.lookup(path)
	if err != nil {
		return nil, err
	}
	if dir[name] == nil {
		dir[name] = &memFile{}
	}
	dir[name].data = nil
	return &memHandle{disk: m, file: dir[name], path: path}, nil
}

func (m *memFS) ReadFile(path string) ([]byte, error) {
	if err := m.op("read", path); err != nil {
		return nil, err
	}
	dir, name, err := m.lookup(path)
	if err != nil || dir[name] == nil {
		return nil, fs.ErrNotExist
	}
	return slices.Clone(dir[name].data), nil
}

func (m *memFS) ReadDir(dir string) ([]string, error) {
	if err := m.op("readdir", dir); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(m.dirs[dir])), nil
}

func (m *memFS) Rename(from, to string) error {
	if err := m.op("rename", from); err != nil {
		return err
	}
	source, name, err := m.lookup(from)
	if err != nil || source[name] == nil {
		return fs.ErrNotExist
	}
	target, newName, err := m.lookup(to)
	if err != nil {
		return err
	}
	target[newName] = source[name]
	delete(source, name)
	return nil
}

func (m *memFS) Remove(path string) error {
	if err := m.op("remove", path); err != nil {
		return err
	}
	dir, name, err := m.lookup(path)
	if err != nil || dir[name] == nil {
		return fs.ErrNotExist
	}
	delete(dir, name)
	return nil
}

func (m *memFS) SyncDir(dir string) error {
	if err := m.op("syncdir", dir); err != nil {
		return err
	}
	m.durable[dir] = maps.Clone(m.dirs[dir])
	return nil
}

type memHandle struct {
	disk *memFS
	file *memFile
	path string
}

// Write leaves half of what it was given when it fails, as a full disk does.
func (h *memHandle) Write(b []byte) (int, error) {
	if err := h.disk.op("write", h.path); err != nil {
		h.file.data = append(h.file.data, b[:len(b)/2]...)
		return len(b) / 2, err
	}
	h.file.data = append(h.file.data, b...)
	return len(b), nil
}

func (h *memHandle) Sync() error {
	if err := h.disk.op("sync", h.path); err != nil {
		return err
	}
	h.file.synced = slices.Clone(h.file.data)
	return nil
}

func (h *memHandle) Close() error { return h.disk.op("close", h.path) }
