// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"io"
)

// maxRecordBytes bounds one file. An engine's record has about 1 KiB, that of a start at most some 40, and that of a
// pool what its engine was prepared as: a message of at most 4 MiB, in base64.
const maxRecordBytes = 8 << 20

// ErrNotRegular says that a name where a record belongs is no file.
var ErrNotRegular = errors.New("not a regular file")

// FS is the disk below a Store. Paths are absolute. Writing is durable only as far as a sync says: File.Sync for the
// content of a file, SyncDir for the names in a directory.
type FS interface {
	// Mkdir makes one directory; one whose parent is missing is fs.ErrNotExist, one that is there fs.ErrExist.
	Mkdir(dir string) error
	// Create opens a file for writing from its start. One that is there is written over in place and keeps its length.
	Create(path string) (File, error)
	// ReadFile is ErrNotRegular for what is no regular file, without waiting.
	ReadFile(path string) ([]byte, error)
	// Size is the length of a regular file in bytes; anything else is ErrNotRegular.
	Size(path string) (int64, error)
	ReadDir(dir string) (names []string, err error)
	// Rename replaces a file of the new name.
	Rename(from, to string) error
	// Exchange swaps the names of two files in one step. It is errors.ErrUnsupported on a disk that cannot.
	Exchange(a, b string) error
	// Remove deletes a file or an empty directory.
	Remove(path string) error
	SyncDir(dir string) error
}

// File is an open file of an FS, for writing.
type File interface {
	io.WriteCloser
	// Sync makes durable what was written and what is needed to read it again, but not times.
	Sync() error
}
