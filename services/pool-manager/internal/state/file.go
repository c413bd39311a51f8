// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"path/filepath"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
)

// save puts a record on disk as Save promises.
func save[T content](s *Store, v T) error {
	name, text, err := encode(v)
	if err != nil {
		return err
	}
	if err := s.put(v.kind(), name, text); err != nil {
		return storageError("save record "+name, err)
	}
	return nil
}

// put makes a file with this text durable, in place of one that is there.
func (s *Store) put(k kind, name string, text []byte) error {
	temp := s.scratch.free()
	if k.spares {
		temp = s.scratch.take(int64(len(text)))
	}
	if err := s.scratch.write(temp, text); err != nil {
		return err
	}
	failpoint.Hit(failpoint.RecordWritten)
	final := s.path(k.dir, name)
	replaced, err := s.place(k, temp, final)
	if err != nil {
		s.scratch.discard(temp)
		return err
	}
	failpoint.Hit(failpoint.RecordPlaced)
	// G12: without this the new name itself may be lost.
	if err := s.fs.SyncDir(filepath.Dir(final)); err != nil {
		if replaced > 0 {
			s.scratch.discard(temp) // Not to be written over: on disk it may still be the record.
		}
		return err
	}
	if replaced > 0 {
		s.scratch.keep(temp, replaced)
	}
	return nil
}

// place gives the file its final name. If it replaces one that may become a spare, that one is now called temp, and
// replaced is its length.
func (s *Store) place(k kind, temp, final string) (replaced int64, err error) {
	if k.spares {
		size, err := s.fs.Size(final)
		if err != nil && !isMissing(err) && !errors.Is(err, ErrNotRegular) {
			return 0, err
		}
		if size > 0 {
			err := s.fs.Exchange(temp, final)
			if !errors.Is(err, errors.ErrUnsupported) {
				return size, err
			}
		}
	}
	return 0, s.fs.Rename(temp, final)
}

// remove makes it durable that a file is gone. One that is not there is no error.
func (s *Store) remove(k kind, name string) error {
	if err := s.takeAway(k, name); err != nil {
		return storageError("remove record "+name, err)
	}
	return nil
}

func (s *Store) takeAway(k kind, name string) error {
	path, temp := s.path(k.dir, name), s.scratch.free()
	size, err := s.fs.Size(path)
	if err == nil {
		err = s.fs.Rename(path, temp)
	}
	if errors.Is(err, ErrNotRegular) {
		size, err = 0, s.fs.Remove(path)
	}
	if err != nil && !isMissing(err) {
		return err
	}
	moved := err == nil && size > 0
	failpoint.Hit(failpoint.RecordTaken)
	if err := s.fs.SyncDir(s.path(k.dir)); err != nil {
		if moved {
			s.scratch.discard(temp)
		}
		return err
	}
	if moved {
		s.scratch.keep(temp, size)
	}
	return nil
}
