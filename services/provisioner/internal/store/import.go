// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"io"
	"io/fs"
	"os"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Import makes the content of an open file of the user a blob. What is hashed is what is kept: the blob is a file of the
// store alone, read-only, with its own content. It shares the blocks of the user's file where the file system can do that
// without sharing later writes, and is a copy elsewhere. It never is a second name of the user's file: whoever may write
// to that could change what everybody else was promised, long after it was verified.
//
// A file whose sha256 is not want is DIGEST_MISMATCH and leaves nothing; an empty want accepts any. progress, if not nil,
// gets the bytes hashed so far and the size. A copy that does not fit is DISK_FULL before a byte is written. A file that
// changes while it is read is UNTRUSTED_ARTIFACT. The user's file is left alone.
func (s *Store) Import(ctx context.Context, file *os.File, want Digest, progress func(done, total int64)) (Blob, error) {
	before, err := file.Stat()
	if err != nil {
		return Blob{}, diskError("import file", file.Name(), 0, err)
	}
	if !before.Mode().IsRegular() {
		return Blob{}, reason.New(reason.InvalidParams, file.Name()+" is not a regular file", reason.Meta("path", file.Name()),
			reason.Remedy("name the file itself"))
	}
	staged := s.temp()
	defer func() { _ = s.fs.Remove(staged) }()
	got, err := s.take(ctx, file, before, staged, progress)
	if err != nil {
		return Blob{}, endError(ctx, "import "+file.Name(), file.Name(), before.Size(), err)
	}
	after, err := file.Stat()
	if err != nil {
		return Blob{}, diskError("import file", file.Name(), 0, err)
	}
	if StampOf(after) != StampOf(before) {
		return Blob{}, reason.New(reason.UntrustedArtifact, file.Name()+" was changed while it was read",
			reason.Meta("path", file.Name()), reason.Remedy("try again when nothing writes to the file"))
	}
	if want != "" && got != want {
		return Blob{}, mismatch(file.Name(), want, got)
	}
	return s.publishBlob(ctx, staged, got)
}

// take makes staged a durable read-only file with the content of file, and returns the digest of what it has.
func (s *Store) take(ctx context.Context, file *os.File, info fs.FileInfo, staged string, progress func(done, total int64)) (Digest, error) {
	hasher := newCounter(ctx, info.Size(), progress)
	if s.fs.CloneOpen(file, staged) == nil {
		if err := s.fs.Chmod(staged, readOnlyMode); err != nil {
			return "", err
		}
		return s.hashDurably(staged, hasher)
	}
	if err := s.reserve(s.scratch, info.Size()); err != nil {
		return "", err
	}
	source := io.TeeReader(io.NewSectionReader(file, 0, info.Size()), hasher)
	if err := s.writeFile(staged, info.Size(), onlyReader{source}); err != nil {
		return "", err
	}
	return hasher.digest(), nil
}

// reserve returns DISK_FULL when the file system of dir has no room for more bytes. It holds nothing.
func (s *Store) reserve(dir string, more int64) error {
	free, err := s.fs.Free(dir)
	if err != nil {
		return diskError("reserve space", dir, more, err)
	}
	if more > free {
		return diskFull("reserve space", dir, more, nil)
	}
	return nil
}
