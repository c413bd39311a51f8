// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked is what FS.TryLock returns while another open file holds the lock.
var ErrLocked = errors.New("locked by another holder")

// FS is every disk operation the store makes. Paths are absolute. Errors are those of package os.
type FS interface {
	MkdirAll(path string, mode fs.FileMode) error
	OpenFile(path string, flag int, mode fs.FileMode) (File, error)
	ReadDir(path string) ([]fs.DirEntry, error)
	Lstat(path string) (fs.FileInfo, error)
	Readlink(path string) (string, error)
	Rename(from, to string) error
	Symlink(target, path string) error
	// CloneOpen makes a new file with the content that an open file has now, sharing its blocks until either is written
	// to. An error leaves nothing, and is usual: few file systems can do it, and none of them across two.
	CloneOpen(file *os.File, to string) error
	Chmod(path string, mode fs.FileMode) error
	Remove(path string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(path string) error
	// TryLock makes path if needed and takes its exclusive lock, or returns ErrLocked at once. The lock ends with Close
	// and with the process, and is not inherited by child processes.
	TryLock(path string) (io.Closer, error)
	// Free returns how many bytes this user may still write to the file system of path.
	Free(path string) (int64, error)
}

// File is an open file of an FS.
type File interface {
	io.Reader
	io.Writer
	io.Seeker
	io.Closer
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	Sync() error
}

type osFS struct{}

// OperatingSystem returns the FS that a zero Config.FS means, for wrapping.
func OperatingSystem() FS { return osFS{} }

func (osFS) MkdirAll(path string, mode fs.FileMode) error { return os.MkdirAll(path, mode) }
func (osFS) ReadDir(path string) ([]fs.DirEntry, error)   { return os.ReadDir(path) }
func (osFS) Lstat(path string) (fs.FileInfo, error)       { return os.Lstat(path) }
func (osFS) Readlink(path string) (string, error)         { return os.Readlink(path) }
func (osFS) Rename(from, to string) error                 { return os.Rename(from, to) }
func (osFS) Symlink(target, path string) error            { return os.Symlink(target, path) }
func (osFS) Chmod(path string, mode fs.FileMode) error    { return os.Chmod(path, mode) }
func (osFS) Remove(path string) error                     { return os.Remove(path) }

func (osFS) OpenFile(path string, flag int, mode fs.FileMode) (File, error) {
	file, err := os.OpenFile(path, flag, mode)
	if err != nil {
		return nil, err
	}
	return file, nil
}

func (osFS) CloneOpen(file *os.File, to string) error {
	clone, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = unix.IoctlFileClone(int(clone.Fd()), int(file.Fd()))
	if err != nil {
		err = errors.Join(&os.LinkError{Op: "clone", Old: file.Name(), New: to, Err: err}, os.Remove(to))
	}
	return errors.Join(err, clone.Close())
}

func (osFS) SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	err = dir.Sync()
	return errors.Join(err, dir.Close())
}

func (osFS) TryLock(path string) (io.Closer, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return file, nil
	}
	_ = file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, ErrLocked
	}
	return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
}

func (osFS) Free(path string) (int64, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(path, &stat); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return int64(stat.Bavail) * stat.Bsize, nil
}
