// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// memFS is a disk in memory that knows what a crash would leave of it. Each name survives by itself: a rename between
// folders may leave both names or none.
type memFS struct {
	root *memFile

	ops    int    // operations so far.
	failAt int    // the operation that fails; -1: none.
	crash  bool   // all later ones fail too.
	err    error  // what they fail with.
	failed string // the last operation that failed.
	simple bool   // it cannot exchange names.
	// failSync lets every sync of a folder fail.
	failSync bool
	// before, if not nil, is called once, before the operation due, such as "read /a".
	before func()
	due    string
	made   int // files made so far.
}

// memFile is a file, or a folder if it has names.
type memFile struct {
	data, synced []byte
	names        map[string]*memFile // as programs see them.
	durable      map[string]*memFile // as of the last SyncDir.
}

func newFolder() *memFile { return &memFile{names: map[string]*memFile{}} }

func newMemFS() *memFS { return &memFS{root: newFolder(), failAt: -1} }

// op counts an operation and tells whether it fails.
func (m *memFS) op(name, path string) error {
	n := m.ops
	m.ops++
	if before := m.before; name+" "+path == m.due && before != nil {
		m.before = nil
		before()
	}
	if n == m.failAt || m.crash && m.failAt >= 0 && n > m.failAt {
		m.failed = name
		return &fs.PathError{Op: name, Path: path, Err: m.err}
	}
	return nil
}

// crashed returns what may be on the disk after the power fails now: each name is as synced or as it was last, each
// content as synced, complete, or torn anywhere.
func (m *memFS) crashed(random *rand.Rand) *memFS {
	after := newMemFS()
	after.root = (&crasher{random: random, files: map[*memFile]*memFile{}}).survivor(m.root)
	return after
}

type crasher struct {
	random *rand.Rand
	files  map[*memFile]*memFile
}

func (c *crasher) survivor(f *memFile) *memFile {
	if c.files[f] == nil {
		c.files[f] = &memFile{}
		if f.names != nil {
			names := c.names(f)
			*c.files[f] = memFile{names: names, durable: maps.Clone(names)}
		} else {
			data := c.content(f)
			*c.files[f] = memFile{data: data, synced: data}
		}
	}
	return c.files[f]
}

func (c *crasher) names(f *memFile) map[string]*memFile {
	names, both := map[string]*memFile{}, map[string]*memFile{}
	maps.Copy(both, f.durable)
	maps.Copy(both, f.names)
	for _, name := range slices.Sorted(maps.Keys(both)) {
		old, now := f.durable[name], f.names[name]
		kept := now
		if old != now && c.random.IntN(2) == 0 {
			kept = old
		}
		if kept != nil {
			names[name] = c.survivor(kept)
		}
	}
	return names
}

func (c *crasher) content(f *memFile) []byte {
	if bytes.Equal(f.data, f.synced) {
		return slices.Clone(f.synced)
	}
	first, second := f.data, f.synced
	switch c.random.IntN(4) {
	case 0:
		return slices.Clone(f.data)
	case 1:
		return slices.Clone(f.synced)
	case 2:
		first, second = second, first
	}
	at := c.random.IntN(len(first) + 1)
	return slices.Concat(first[:at], second[min(at, len(second)):])
}

// at returns what has this path; nil if nothing has.
func (m *memFS) at(path string) *memFile {
	f := m.root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if part != "" && f != nil {
			f = f.names[part]
		}
	}
	return f
}

// lookup returns the folder of a path, and the name in it.
func (m *memFS) lookup(path string) (map[string]*memFile, string, error) {
	dir := m.at(filepath.Dir(path))
	if dir == nil {
		return nil, "", fs.ErrNotExist
	}
	if dir.names == nil {
		return nil, "", syscall.ENOTDIR
	}
	return dir.names, filepath.Base(path), nil
}

// file returns the folder, name and file of a path, all of which are there.
func (m *memFS) file(path string) (map[string]*memFile, string, *memFile, error) {
	dir, name, err := m.lookup(path)
	if err == nil && dir[name] == nil {
		err = fs.ErrNotExist
	}
	return dir, name, dir[name], err
}

func (m *memFS) Mkdir(path string) error {
	if err := m.op("mkdir", path); err != nil {
		return err
	}
	dir, name, err := m.lookup(path)
	if err != nil {
		return err
	}
	if dir[name] != nil {
		return fs.ErrExist
	}
	dir[name] = newFolder()
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
		m.made++
	}
	return &memHandle{disk: m, file: dir[name], path: path}, nil
}

func (m *memFS) ReadFile(path string) ([]byte, error) {
	if err := m.op("read", path); err != nil {
		return nil, err
	}
	_, _, f, err := m.file(path)
	if err != nil {
		return nil, err
	}
	if f.names != nil {
		return nil, ErrNotRegular
	}
	return slices.Clone(f.data), nil
}

func (m *memFS) Size(path string) (int64, error) {
	if err := m.op("size", path); err != nil {
		return 0, err
	}
	_, _, f, err := m.file(path)
	if err != nil {
		return 0, err
	}
	if f.names != nil {
		return 0, ErrNotRegular
	}
	return int64(len(f.data)), nil
}

func (m *memFS) ReadDir(path string) ([]string, error) {
	if err := m.op("readdir", path); err != nil {
		return nil, err
	}
	_, _, f, err := m.file(path)
	if err != nil {
		return nil, err
	}
	if f.names == nil {
		return nil, syscall.ENOTDIR
	}
	return slices.Sorted(maps.Keys(f.names)), nil
}

func (m *memFS) Rename(from, to string) error {
	if err := m.op("rename", from); err != nil {
		return err
	}
	source, name, f, err := m.file(from)
	if err != nil {
		return err
	}
	target, newName, err := m.lookup(to)
	if err != nil {
		return err
	}
	if old := target[newName]; old != nil && old.names != nil {
		return syscall.EISDIR
	}
	delete(source, name)
	target[newName] = f
	return nil
}

func (m *memFS) Exchange(a, b string) error {
	if m.simple {
		return errors.ErrUnsupported
	}
	if err := m.op("exchange", a); err != nil {
		return err
	}
	dirA, nameA, fileA, errA := m.file(a)
	dirB, nameB, fileB, errB := m.file(b)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	dirA[nameA], dirB[nameB] = fileB, fileA
	return nil
}

func (m *memFS) Remove(path string) error {
	if err := m.op("remove", path); err != nil {
		return err
	}
	dir, name, f, err := m.file(path)
	if err != nil {
		return err
	}
	if len(f.names) > 0 {
		return syscall.ENOTEMPTY
	}
	delete(dir, name)
	return nil
}

func (m *memFS) SyncDir(path string) error {
	if err := m.op("syncdir", path); err != nil {
		return err
	}
	if m.failSync {
		return syscall.EIO
	}
	f := m.at(path)
	if f == nil {
		return fs.ErrNotExist
	}
	f.durable = maps.Clone(f.names)
	return nil
}

type memHandle struct {
	disk *memFS
	file *memFile
	path string
	at   int
}

func (h *memHandle) put(b []byte) {
	rest := h.file.data[min(h.at+len(b), len(h.file.data)):]
	h.file.data = slices.Concat(h.file.data[:h.at], b, rest)
	h.at += len(b)
}

// Write leaves half of what it was given when it fails, as a full disk does.
func (h *memHandle) Write(b []byte) (int, error) {
	if err := h.disk.op("write", h.path); err != nil {
		h.put(b[:len(b)/2])
		return len(b) / 2, err
	}
	h.put(b)
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
