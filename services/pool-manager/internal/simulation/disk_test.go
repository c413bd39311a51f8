// SPDX-License-Identifier: Apache-2.0

package simulation

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

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// errCrashed is what a manager that has died is told by its disk.
var errCrashed = errors.New("this manager has died")

// disk is a disk in memory that knows what a loss of power would leave of it. The world's lock guards it.
type disk struct {
	root *node
	full bool // nothing new can be written.
	sick bool // no sync succeeds.
}

// node is a file, or a folder if it has names.
type node struct {
	data, synced   []byte
	names, durable map[string]*node
}

func newDisk() *disk {
	root := &node{names: map[string]*node{}}
	root.durable = root.names
	return &disk{root: root}
}

func (d *disk) at(path string) *node {
	n := d.root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if part != "" && n != nil {
			n = n.names[part]
		}
	}
	return n
}

// lose makes the disk what it may be after the power has failed: each name and each content as synced, as it was last, or torn.
func (d *disk) lose(random *rand.Rand) {
	d.root = (&loss{random: random, made: map[*node]*node{}}).survivor(d.root)
}

type loss struct {
	random *rand.Rand
	made   map[*node]*node
}

func (l *loss) survivor(n *node) *node {
	if known := l.made[n]; known != nil {
		return known
	}
	after := &node{}
	l.made[n] = after
	if n.names == nil {
		after.data = l.content(n)
		after.synced = after.data
		return after
	}
	after.names = map[string]*node{}
	both := maps.Clone(n.durable)
	if both == nil {
		both = map[string]*node{}
	}
	maps.Copy(both, n.names)
	for _, name := range slices.Sorted(maps.Keys(both)) {
		old, now := n.durable[name], n.names[name]
		kept := now
		if old != now && l.random.IntN(2) == 0 {
			kept = old
		}
		if kept != nil {
			after.names[name] = l.survivor(kept)
		}
	}
	after.durable = maps.Clone(after.names)
	return after
}

func (l *loss) content(n *node) []byte {
	if bytes.Equal(n.data, n.synced) {
		return slices.Clone(n.data)
	}
	switch l.random.IntN(3) {
	case 0:
		return slices.Clone(n.data)
	case 1:
		return slices.Clone(n.synced)
	default:
		cut := l.random.IntN(len(n.data) + 1)
		return slices.Concat(n.data[:cut], n.synced[min(cut, len(n.synced)):])
	}
}

// mount is the disk as one manager sees it, until that has died.
type mount struct{ by *manager }

// folder checks that the manager lives and may go on, and returns the folder that a path is in, with its name there. Each call
// is a point where the manager may die. The world's lock is held when there is no error.
func (m mount) folder(path string) (map[string]*node, string, error) {
	m.by.world.mu.Lock()
	if !m.by.stepLocked() {
		m.by.world.mu.Unlock()
		return nil, "", errCrashed
	}
	dir := m.by.world.disk.at(filepath.Dir(path))
	if dir == nil || dir.names == nil {
		m.by.world.mu.Unlock()
		return nil, "", fs.ErrNotExist
	}
	return dir.names, filepath.Base(path), nil
}

// find is folder for a name that has to be there.
func (m mount) find(path string) (map[string]*node, string, *node, error) {
	dir, name, err := m.folder(path)
	if err == nil && dir[name] == nil {
		m.by.world.mu.Unlock()
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, "", nil, err
	}
	return dir, name, dir[name], nil
}

func (m mount) Mkdir(path string) error {
	dir, name, err := m.folder(path)
	if err != nil {
		return err
	}
	defer m.by.world.mu.Unlock()
	switch {
	case dir[name] != nil:
		return fs.ErrExist
	case m.by.world.disk.full:
		return syscall.ENOSPC
	}
	dir[name] = &node{names: map[string]*node{}}
	return nil
}

func (m mount) Create(path string) (state.File, error) {
	dir, name, err := m.folder(path)
	if err != nil {
		return nil, err
	}
	defer m.by.world.mu.Unlock()
	if dir[name] == nil {
		if m.by.world.disk.full {
			return nil, syscall.ENOSPC
		}
		dir[name] = &node{}
	}
	return &handleOfFile{mount: m, node: dir[name]}, nil
}

func (m mount) ReadFile(path string) ([]byte, error) {
	_, _, n, err := m.find(path)
	if err != nil {
		return nil, err
	}
	defer m.by.world.mu.Unlock()
	if n.names != nil {
		return nil, state.ErrNotRegular
	}
	return slices.Clone(n.data), nil
}

func (m mount) Size(path string) (int64, error) {
	_, _, n, err := m.find(path)
	if err != nil {
		return 0, err
	}
	defer m.by.world.mu.Unlock()
	if n.names != nil {
		return 0, state.ErrNotRegular
	}
	return int64(len(n.data)), nil
}

func (m mount) ReadDir(path string) ([]string, error) {
	_, _, n, err := m.find(path)
	if err != nil {
		return nil, err
	}
	defer m.by.world.mu.Unlock()
	return slices.Sorted(maps.Keys(n.names)), nil
}

func (m mount) Rename(from, to string) error {
	source, name, n, err := m.find(from)
	if err != nil {
		return err
	}
	defer m.by.world.mu.Unlock()
	target := m.by.world.disk.at(filepath.Dir(to))
	if target == nil {
		return fs.ErrNotExist
	}
	delete(source, name)
	target.names[filepath.Base(to)] = n
	return nil
}

func (m mount) Exchange(a, b string) error {
	first, nameA, nodeA, err := m.find(a)
	if err != nil {
		return err
	}
	defer m.by.world.mu.Unlock()
	dir := m.by.world.disk.at(filepath.Dir(b))
	nodeB := m.by.world.disk.at(b)
	if dir == nil || nodeB == nil {
		return fs.ErrNotExist
	}
	first[nameA], dir.names[filepath.Base(b)] = nodeB, nodeA
	return nil
}

func (m mount) Remove(path string) error {
	dir, name, n, err := m.find(path)
	if err != nil {
		return err
	}
	defer m.by.world.mu.Unlock()
	if len(n.names) > 0 {
		return syscall.ENOTEMPTY
	}
	delete(dir, name)
	return nil
}

func (m mount) SyncDir(path string) error {
	m.by.world.mu.Lock()
	defer m.by.world.mu.Unlock()
	n := m.by.world.disk.at(path)
	switch {
	case !m.by.stepLocked():
		return errCrashed
	case n == nil:
		return fs.ErrNotExist
	case m.by.world.disk.sick:
		return syscall.EIO
	}
	n.durable = maps.Clone(n.names)
	return nil
}

// handleOfFile is a file that is being written.
type handleOfFile struct {
	mount mount
	node  *node
	at    int
}

func (h *handleOfFile) Write(b []byte) (int, error) {
	w := h.mount.by.world
	w.mu.Lock()
	defer w.mu.Unlock()
	if !h.mount.by.stepLocked() {
		return 0, errCrashed
	}
	wrote, err := len(b), error(nil)
	if w.disk.full && h.at+len(b) > len(h.node.data) {
		wrote, err = len(b)/2, syscall.ENOSPC
	}
	rest := h.node.data[min(h.at+wrote, len(h.node.data)):]
	h.node.data = slices.Concat(h.node.data[:h.at], b[:wrote], rest)
	h.at += wrote
	return wrote, err
}

func (h *handleOfFile) Sync() error {
	w := h.mount.by.world
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !h.mount.by.stepLocked():
		return errCrashed
	case w.disk.sick:
		return syscall.EIO
	}
	h.node.synced = slices.Clone(h.node.data)
	return nil
}

func (h *handleOfFile) Close() error { return nil }
