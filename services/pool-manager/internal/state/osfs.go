// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// maxRecordBytes bounds what is read of one file; a record has about 1 KiB.
const maxRecordBytes = 1 << 20

// errNotRegular says that a name in the directory of records is no file.
var errNotRegular = errors.New("not a regular file")

// osFS is the real disk.
type osFS struct{}

func (osFS) MkdirAll(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) Create(path string) (File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
}

func (osFS) ReadFile(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotRegular
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxRecordBytes))
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
