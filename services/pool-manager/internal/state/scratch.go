// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"path/filepath"
	"strconv"
	"sync"
)

const (
	// pageBytes is what the length of every file is a multiple of, so that one may be written over with another's content.
	pageBytes = 4096
	// firstSpares are for the first starts: each saves two records, one of them twice.
	firstSpares = 4
	// maxSpares of each length are kept.
	maxSpares = 8
	// maxSparePages bounds the length of files that are kept.
	maxSparePages = 8
)

// scratch is a folder in which files are written that are then moved where they belong.
//
// Making a file, making it longer and freeing one are what a file system keeps a journal for; writing over one costs a
// quarter of that. So files of records that were replaced or removed are kept, as spares, and written over by later
// saves. A file may become a spare only when it is on disk that no record has it any more; after a crash none is
// trusted. The one file that may be read while records are written, that of a start, never becomes one.
type scratch struct {
	fs  FS
	dir string

	mu   sync.Mutex
	last int                // number of the last name given; guarded by mu.
	idle map[int64][]string // spares by length; guarded by mu.
}

// newScratch empties the folder and makes the first spares, which proves that the disk can be written.
func newScratch(disk FS, dir string) (*scratch, error) {
	s := &scratch{fs: disk, dir: dir, idle: map[int64][]string{}}
	names, err := disk.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if err := disk.Remove(filepath.Join(dir, name)); err != nil {
			return nil, err
		}
	}
	made := make([]string, firstSpares)
	for i := range made {
		made[i] = s.free()
		if err := s.write(made[i], pad(nil)); err != nil {
			return nil, err
		}
	}
	for _, path := range made {
		s.keep(path, pageBytes)
	}
	return s, nil
}

// pad fills the text up to a multiple of pageBytes, with what JSON ignores.
func pad(text []byte) []byte {
	pages := max(1, (len(text)+pageBytes-1)/pageBytes)
	for len(text) < pages*pageBytes {
		text = append(text, ' ')
	}
	return text
}

// write puts the content, of a length that pad makes, on disk, in a file that take or free has named. The file's name need
// not be on disk. After an error there is no file.
func (s *scratch) write(path string, content []byte) error {
	f, err := s.fs.Create(path)
	if err != nil {
		s.discard(path) // A spare is there.
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync() // G12: a name must never come before the content.
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.discard(path)
	}
	return err
}

// take returns a spare of this length, or a name that is free.
func (s *scratch) take(size int64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if spares := s.idle[size]; len(spares) > 0 {
		s.idle[size] = spares[:len(spares)-1]
		return spares[len(spares)-1]
	}
	return s.freeLocked()
}

func (s *scratch) freeLocked() string {
	s.last++
	return filepath.Join(s.dir, strconv.Itoa(s.last))
}

// free returns a name that nothing has.
func (s *scratch) free() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.freeLocked()
}

// keep makes a file of the folder a spare, or deletes it. No record may have it, on disk neither.
func (s *scratch) keep(path string, size int64) {
	if !s.admit(path, size) {
		s.discard(path)
	}
}

func (s *scratch) admit(path string, size int64) bool {
	if size == 0 || size%pageBytes != 0 || size > maxSparePages*pageBytes {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.idle[size]) >= maxSpares {
		return false
	}
	s.idle[size] = append(s.idle[size], path)
	return true
}

// discard deletes a file of the folder. What cannot be deleted goes when the directory is opened again.
func (s *scratch) discard(path string) { _ = s.fs.Remove(path) }
