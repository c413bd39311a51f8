// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/uuid"
)

// writeFile makes a read-only file at path from all of content and makes its bytes durable. A failure may leave the
// file, which is why path is always in the scratch folder.
func (s *Store) writeFile(path string, sizeBytes int64, content io.Reader) error {
	file, err := s.fs.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return diskError("create file", path, sizeBytes, err)
	}
	_, err = io.CopyBuffer(onlyWriter{file}, content, make([]byte, min(copyChunkBytes, sizeBytes+1)))
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = s.fs.Chmod(path, readOnlyMode)
	}
	return err
}

// syncFile makes the content of a file durable, whoever wrote it.
func (s *Store) syncFile(path string) error {
	file, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// readFile returns the content of a file, which must not be longer than limitBytes.
func (s *Store) readFile(path string, limitBytes int64) ([]byte, error) {
	file, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, limitBytes+1))
	err = errors.Join(err, file.Close())
	if err == nil && int64(len(data)) > limitBytes {
		err = errTorn
	}
	return data, err
}

// appear gives what is whole and durable at staged its visible name, durably too. A failure takes the name back, so that
// a later look-up does not find what might be gone after a power cut.
func (s *Store) appear(staged, final string) error {
	if err := s.fs.Rename(staged, final); err != nil {
		return err
	}
	if err := s.fs.SyncDir(filepath.Dir(final)); err != nil { // G12
		return errors.Join(err, s.fs.Rename(final, staged))
	}
	return nil
}

// quarantine moves what must not be used any more out of sight. Paths that do not exist are skipped.
func (s *Store) quarantine(paths ...string) error {
	for _, path := range paths {
		to := s.path("quarantine", filepath.Base(path)+"."+uuid.NewString())
		if err := s.fs.Rename(path, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diskError("quarantine", path, 0, err)
		}
	}
	return nil
}

// removeTree removes path and all below it, read-only folders included. It follows no link, and removing what does not
// exist succeeds.
func (s *Store) removeTree(path string) error {
	err := s.fs.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	info, statErr := s.fs.Lstat(path)
	if statErr != nil {
		return statErr
	}
	if !info.IsDir() {
		return err
	}
	if info.Mode().Perm()&secretDirMode != secretDirMode {
		if err := s.fs.Chmod(path, secretDirMode); err != nil {
			return err
		}
	}
	entries, err := s.fs.ReadDir(path)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := s.removeTree(filepath.Join(path, entry.Name())); err != nil {
			return err
		}
	}
	return s.fs.Remove(path)
}

// onlyWriter hides every other method, so that io.CopyBuffer uses the buffer it was given.
type onlyWriter struct{ io.Writer }
