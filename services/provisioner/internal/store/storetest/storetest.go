// SPDX-License-Identifier: Apache-2.0

// Package storetest is a disk that fails on demand and watches over durability, for tests of what uses the store.
//
// A Disk passes everything to the operating system, except the operation that is set to fail. It knows which files have
// content that no Sync has made durable and which directories have names that no SyncDir has, so that a forgotten sync
// is found without cutting the power. A Disk may be used by several goroutines at once.
package storetest

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// Never is the FailAt of a Disk that does not fail.
const Never = -1

// Disk is a store.FS with faults.
type Disk struct {
	under store.FS
	// visible tells which paths are promises: what is renamed to them must be durable.
	visible func(path string) bool

	mu         sync.Mutex
	failAt     int
	failWith   error
	operations int
	failed     string
	dirty      map[uint64]string // inodes written since their last sync, by path
	clean      map[uint64]bool   // inodes that were synced
	unsynced   map[string]bool   // directories whose names changed
	broken     []string
}

// New returns a disk whose operation number failAt, from 0, fails with cause; Never means none. visible may be nil.
func New(failAt int, cause error, visible func(path string) bool) *Disk {
	if visible == nil {
		visible = func(string) bool { return false }
	}
	return &Disk{under: store.OperatingSystem(), visible: visible, failAt: failAt, failWith: cause,
		dirty: map[uint64]string{}, clean: map[uint64]bool{}, unsynced: map[string]bool{}}
}

// FailAt lets the operation that comes n operations from now fail, once; Never means none.
func (d *Disk) FailAt(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.operations, d.failAt, d.failed = 0, n, ""
}

// Failed returns the operation that was made to fail, or "".
func (d *Disk) Failed() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.failed
}

// Broken returns the broken promises so far: visible names whose content or own entry is not durable. It must be called
// while no operation is under way.
func (d *Disk) Broken() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	broken := append([]string(nil), d.broken...)
	for dir := range d.unsynced {
		if d.visible(filepath.Join(dir, "name")) {
			broken = append(broken, "names in "+dir+" are not durable")
		}
	}
	return broken
}

func (d *Disk) step(operation, path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.operations
	d.operations++
	if n != d.failAt {
		return nil
	}
	d.failed = fmt.Sprintf("operation %d: %s %s", n, operation, path)
	return &fs.PathError{Op: operation, Path: path, Err: d.failWith}
}

// MkdirAll is that of store.FS.
func (d *Disk) MkdirAll(path string, mode fs.FileMode) error {
	if err := d.step("mkdir", path); err != nil {
		return err
	}
	_, err := os.Lstat(path)
	isNew := err != nil
	if err := d.under.MkdirAll(path, mode); err != nil {
		return err
	}
	if isNew {
		d.named(path)
	}
	return nil
}

// OpenFile is that of store.FS.
func (d *Disk) OpenFile(path string, flag int, mode fs.FileMode) (store.File, error) {
	if err := d.step("open", path); err != nil {
		return nil, err
	}
	under, err := d.under.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	opened := &file{File: under, disk: d, path: path}
	if flag&(os.O_CREATE|os.O_TRUNC) != 0 {
		opened.written()
		d.named(path)
	}
	return opened, nil
}

// ReadDir is that of store.FS.
func (d *Disk) ReadDir(path string) ([]fs.DirEntry, error) {
	if err := d.step("readdir", path); err != nil {
		return nil, err
	}
	return d.under.ReadDir(path)
}

// Lstat is that of store.FS.
func (d *Disk) Lstat(path string) (fs.FileInfo, error) {
	if err := d.step("lstat", path); err != nil {
		return nil, err
	}
	return d.under.Lstat(path)
}

// Readlink is that of store.FS.
func (d *Disk) Readlink(path string) (string, error) {
	if err := d.step("readlink", path); err != nil {
		return "", err
	}
	return d.under.Readlink(path)
}

// Rename is that of store.FS. What becomes visible by it must be durable already.
func (d *Disk) Rename(from, to string) error {
	if err := d.step("rename", to); err != nil {
		return err
	}
	if d.visible(to) {
		d.audit(from, to)
	}
	if err := d.under.Rename(from, to); err != nil {
		return err
	}
	d.named(to)
	return nil
}

// Symlink is that of store.FS.
func (d *Disk) Symlink(target, path string) error {
	if err := d.step("symlink", path); err != nil {
		return err
	}
	if err := d.under.Symlink(target, path); err != nil {
		return err
	}
	d.named(path)
	return nil
}

// CloneOpen is that of store.FS.
func (d *Disk) CloneOpen(file *os.File, to string) error {
	if err := d.step("clone", to); err != nil {
		return err
	}
	if err := d.under.CloneOpen(file, to); err != nil {
		return err
	}
	d.named(to)
	return nil
}

// Chmod is that of store.FS.
func (d *Disk) Chmod(path string, mode fs.FileMode) error {
	if err := d.step("chmod", path); err != nil {
		return err
	}
	return d.under.Chmod(path, mode)
}

// Remove is that of store.FS.
func (d *Disk) Remove(path string) error {
	if err := d.step("remove", path); err != nil {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	number := inode(path)
	if err := d.under.Remove(path); err != nil {
		return err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink > 1 && !info.IsDir() {
		return nil // the file has other names
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.clean, number)
	delete(d.dirty, number)
	delete(d.unsynced, path)
	return nil
}

// SyncDir is that of store.FS.
func (d *Disk) SyncDir(path string) error {
	if err := d.step("syncdir", path); err != nil {
		return err
	}
	if err := d.under.SyncDir(path); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.unsynced, path)
	d.clean[inode(path)] = true
	return nil
}

// TryLock is that of store.FS.
func (d *Disk) TryLock(path string) (io.Closer, error) {
	if err := d.step("lock", path); err != nil {
		return nil, err
	}
	return d.under.TryLock(path)
}

// Free is that of store.FS.
func (d *Disk) Free(path string) (int64, error) {
	if err := d.step("statfs", path); err != nil {
		return 0, err
	}
	return d.under.Free(path)
}

func (d *Disk) named(path string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	dir := filepath.Dir(path)
	d.unsynced[dir] = true
	delete(d.clean, inode(dir))
}

// audit finds what would be lost of the tree at from, which is about to be visible as to, if the power went now. Files
// that were not written through this disk, as those of a build, count as lost until they are synced.
func (d *Disk) audit(from, to string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		isFile, isDir := entry.Type().IsRegular(), entry.IsDir()
		number := inode(path)
		if _, dirty := d.dirty[number]; isFile && (dirty || !d.clean[number]) || isDir && !d.clean[number] {
			d.broken = append(d.broken, strings.TrimPrefix(path, from)+" of "+to+" is not durable")
		}
		return nil
	})
}

// file tells its disk about every write and sync.
type file struct {
	store.File

	disk *Disk
	path string
}

func (f *file) written() {
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	f.disk.dirty[inode(f.path)] = f.path
}

// Read is that of store.File.
func (f *file) Read(b []byte) (int, error) {
	if err := f.disk.step("read", f.path); err != nil {
		return 0, err
	}
	return f.File.Read(b)
}

// Write is that of store.File. A write that is made to fail writes half.
func (f *file) Write(b []byte) (int, error) {
	if err := f.disk.step("write", f.path); err != nil {
		n, _ := f.File.Write(b[:len(b)/2])
		f.written()
		return n, err
	}
	n, err := f.File.Write(b)
	f.written()
	return n, err
}

// Truncate is that of store.File.
func (f *file) Truncate(size int64) error {
	if err := f.disk.step("truncate", f.path); err != nil {
		return err
	}
	f.written()
	return f.File.Truncate(size)
}

// Sync is that of store.File.
func (f *file) Sync() error {
	if err := f.disk.step("sync", f.path); err != nil {
		return err
	}
	if err := f.File.Sync(); err != nil {
		return err
	}
	f.disk.mu.Lock()
	defer f.disk.mu.Unlock()
	number := inode(f.path)
	delete(f.disk.dirty, number)
	f.disk.clean[number] = true
	return nil
}

// Close is that of store.File.
func (f *file) Close() error {
	err := f.disk.step("close", f.path)
	if closed := f.File.Close(); closed != nil {
		return closed
	}
	return err
}

func inode(path string) uint64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return stat.Ino
}
