// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// osFS is the real disk.
type osFS struct{}

func (osFS) Mkdir(dir string) error { return os.Mkdir(dir, 0o700) }

func (osFS) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

type osFile struct{ *os.File }

// Sync leaves the times of the file alone: where no block was added, they are what a journal would be written for.
func (f osFile) Sync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (osFS) ReadFile(path string) ([]byte, error) {
	if _, err := (osFS{}).Size(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
}

func (osFS) Size(path string) (int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, ErrNotRegular
	}
	return info.Size(), nil
}

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) Exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("exchange %s and %s: %w", a, b, errors.ErrUnsupported)
	}
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: a, New: b, Err: err}
	}
	return nil
}

func (osFS) Remove(path string) error { return os.Remove(path) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// isFull tells a disk or quota without room from other failures.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

func storageError(attempt string, err error) error {
	if isFull(err) {
		return reason.New(reason.DiskFull, attempt, reason.Cause(err),
			reason.Remedy("free space on its disk; running engines are not affected"))
	}
	return reason.New(reason.StorageFailed, attempt, reason.Cause(err),
		reason.Remedy("see that the folder exists, that its file system is sound, and that the pool manager may write there"))
}

// unusable says why a state directory cannot be opened.
func unusable(dir string, err error) error {
	if isFull(err) {
		return storageError("open state directory "+dir, err)
	}
	return reason.New(reason.StorageFailed, "open state directory "+dir, reason.Cause(err),
		reason.Field("state_dir"), reason.Remedy("give a directory that this user may write to"))
}
