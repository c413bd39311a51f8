// SPDX-License-Identifier: Apache-2.0

// Package state keeps the records of replicas that must survive the manager, in one directory that one manager owns.
//
// The directory is locked while a Store is open (G3). Each replica generation has a file of its own, replaced whole:
// after a crash at any moment it holds the last record that Save returned for, or the one that was being saved, never
// a mixture (G12). A file that is torn, foreign or of another schema is moved aside and reported, and never stops a
// start. Save and Remove return only when the change is on disk. A Store may be used by many goroutines; two writes of
// one record must not be made at once.
package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

const (
	recordDir     = "replicas"
	quarantineDir = "quarantine"
	suffix        = ".json"
	tempPrefix    = ".tmp-"
)

// FS is the disk below a Store. Paths are absolute. Writing is durable only as far as a sync says: File.Sync for the
// content of a file, SyncDir for the names in a directory.
type FS interface {
	MkdirAll(dir string) error
	Create(path string) (File, error) // empties an existing file.
	ReadFile(path string) ([]byte, error)
	ReadDir(dir string) (names []string, err error)
	Rename(from, to string) error
	Remove(path string) error
	SyncDir(dir string) error
}

// File is an open file of an FS, for writing.
type File interface {
	io.WriteCloser
	Sync() error
}

// Config says where records are kept.
type Config struct {
	Dir string // absolute; created with mode 0700 if missing. Required.
}

// Store is the open state directory.
type Store struct {
	dir  string
	fs   FS
	lock *lock
}

// Quarantined is a file that could not be used and was moved aside.
type Quarantined struct {
	Name   string // its name in the directory of records.
	Path   string // where it is now.
	Reason string
}

// Loaded is what the directory held.
type Loaded struct {
	Records     []Record // by file name.
	Quarantined []Quarantined
}

// Open takes the directory for this program until Close or the end of the program. If another has it, the error is a
// *LockedError. If it cannot be created or written, the reason is StorageFailed or DiskFull and the message says what
// to do. Open reads no record.
func Open(c Config) (*Store, error) {
	if !filepath.IsAbs(c.Dir) {
		return nil, reason.New(reason.InvalidParams, fmt.Sprintf("state directory %q is not an absolute path", c.Dir),
			reason.Field("state_dir"), reason.Remedy("give an absolute path"))
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, unusable(c.Dir, err)
	}
	held, err := acquire(filepath.Join(c.Dir, lockName))
	if errors.Is(err, ErrLocked) {
		return nil, err
	}
	if err != nil {
		return nil, unusable(c.Dir, err)
	}
	s, err := open(c.Dir, osFS{})
	if err != nil {
		held.release()
		return nil, unusable(c.Dir, err)
	}
	s.lock = held
	return s, nil
}

// open prepares the directory and proves that it can be written.
func open(dir string, disk FS) (*Store, error) {
	s := &Store{dir: dir, fs: disk}
	for _, sub := range []string{s.path(recordDir), s.path(quarantineDir)} {
		if err := disk.MkdirAll(sub); err != nil {
			return nil, err
		}
	}
	for _, parent := range []string{dir, filepath.Dir(dir)} {
		if err := disk.SyncDir(parent); err != nil {
			return nil, err
		}
	}
	probe := s.path(recordDir, tempPrefix+"probe")
	if err := writeFile(disk, probe, []byte("writable?")); err != nil {
		return nil, err
	}
	return s, disk.Remove(probe)
}

// Close gives the directory up. Repeating it does nothing.
func (s *Store) Close() error {
	if s.lock != nil {
		s.lock.release()
	}
	return nil
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// Save puts the record on disk, in place of an earlier one with the same key. When it fails, the earlier one or the new
// one is there, whole. The reason of the error is DiskFull, StorageFailed, or InvalidParams for a key that cannot be a
// file name.
func (s *Store) Save(r Record) error {
	name, err := r.Key().fileName()
	if err != nil {
		return err
	}
	text, err := encode(r)
	if err != nil {
		return storageError("encode record "+name, err)
	}
	temp, final := s.path(recordDir, tempPrefix+name), s.path(recordDir, name)
	err = writeFile(s.fs, temp, text)
	if err == nil {
		err = s.fs.Rename(temp, final)
	}
	if err != nil {
		_ = s.fs.Remove(temp) // What stays behind is removed by the next Load.
		return storageError("save record "+name, err)
	}
	// G12: without this the rename itself may be lost.
	if err := s.fs.SyncDir(s.path(recordDir)); err != nil {
		return storageError("save record "+name, err)
	}
	return nil
}

// writeFile leaves a file with this content on disk, or an error. Its name is durable only after SyncDir.
func writeFile(disk FS, path string, content []byte) error {
	f, err := disk.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync() // G12: a rename must never come before the content.
	}
	return errors.Join(err, f.Close())
}

// Remove deletes the record. One that is not there is no error.
func (s *Store) Remove(k Key) error {
	name, err := k.fileName()
	if err != nil {
		return err
	}
	err = s.fs.Remove(s.path(recordDir, name))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = s.fs.SyncDir(s.path(recordDir))
	}
	if err != nil {
		return storageError("remove record "+name, err)
	}
	return nil
}

// Load returns every good record, and moves every file that is none to the quarantine. It fails only if the directory
// cannot be read or a bad file cannot be moved; what it has moved until then stays moved.
func (s *Store) Load() (Loaded, error) {
	var found Loaded
	names, err := s.fs.ReadDir(s.path(recordDir))
	if err != nil {
		return Loaded{}, storageError("list records", err)
	}
	for _, name := range names {
		path := s.path(recordDir, name)
		if strings.HasPrefix(name, tempPrefix) { // An interrupted Save; it had not returned.
			if err := s.fs.Remove(path); err != nil {
				return found, storageError("remove "+name, err)
			}
			continue
		}
		text, err := s.fs.ReadFile(path)
		if err != nil && !errors.Is(err, errNotRegular) {
			return found, storageError("read record "+name, err)
		}
		if err == nil {
			var r Record
			if r, err = decode(name, text); err == nil {
				found.Records = append(found.Records, r)
				continue
			}
		}
		moved, moveErr := s.quarantine(name)
		if moveErr != nil {
			return found, storageError("quarantine "+name, moveErr)
		}
		found.Quarantined = append(found.Quarantined, Quarantined{Name: name, Path: moved, Reason: err.Error()})
	}
	return found, nil
}

// quarantine moves a file aside under a name that is free.
func (s *Store) quarantine(name string) (string, error) {
	taken, err := s.fs.ReadDir(s.path(quarantineDir))
	if err != nil {
		return "", err
	}
	used := map[string]bool{}
	for _, t := range taken {
		used[t] = true
	}
	to := name
	for n := 1; used[to]; n++ {
		to = name + "." + strconv.Itoa(n)
	}
	if err := s.fs.Rename(s.path(recordDir, name), s.path(quarantineDir, to)); err != nil {
		return "", err
	}
	return s.path(quarantineDir, to), errors.Join(s.fs.SyncDir(s.path(quarantineDir)), s.fs.SyncDir(s.path(recordDir)))
}
