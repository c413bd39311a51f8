// SPDX-License-Identifier: Apache-2.0

// Package state keeps what must survive the manager, in one directory that one manager owns.
//
// The directory is locked while a Store is open (G3), and has an id that never changes. It holds three kinds of records:
// of engines, each from before its spawn until it is proven gone (G1), of pools, and of starts that have ended (G7).
// Each record has a file of its own, replaced whole: after a crash at any moment it holds the last record that a save
// returned for, or the one that was being saved, never a mixture (G12). A file that is torn, foreign or of a later
// version is moved aside and reported, and never stops a start. Saves and removals return only when the change is on
// disk. A save is cheap where files are at hand that it may write over; see scratch.
//
// A Store may be used by many goroutines; two writes of one record must not be made at once. Load and LoadPools are for
// the time before the first write. Nothing here decides what a record means.
package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// The folders of the state directory.
const (
	recordDir     = "replicas"
	poolDir       = "pools"
	startDir      = "starts"
	quarantineDir = "quarantine"
	scratchDir    = "scratch"
)

// Config says where records are kept.
type Config struct {
	Dir string // absolute; created with mode 0700 if missing. Required.
}

// Store is the open state directory.
type Store struct {
	dir     string
	fs      FS
	lock    *lock
	id      string
	aside   []Quarantined // what was put aside while the directory was opened.
	starts  int           // how many of one replica are kept.
	scratch *scratch

	mu sync.Mutex
	// folders are those below startDir whose names are on disk; guarded by mu.
	folders map[string]bool
}

// Open takes the directory for this program until Close or the end of the program. If another has it, the error is a
// *LockedError. If it cannot be created or written, the reason is StorageFailed or DiskFull and the message says what
// to do. Open reads no record.
func Open(c Config) (*Store, error) {
	if !filepath.IsAbs(c.Dir) {
		return nil, reason.New(reason.InvalidParams, fmt.Sprintf("state directory %q is not an absolute path", c.Dir),
			reason.Field("state_dir"), reason.Remedy("give an absolute path"))
	}
	dir := filepath.Clean(c.Dir)
	if err := makeDir(osFS{}, dir); err != nil {
		return nil, unusable(dir, err)
	}
	held, err := acquire(filepath.Join(dir, lockName))
	if errors.Is(err, ErrLocked) {
		return nil, err
	}
	if err != nil {
		return nil, unusable(dir, err)
	}
	s, err := open(dir, osFS{})
	if err != nil {
		held.release()
		return nil, unusable(dir, err)
	}
	s.lock = held
	return s, nil
}

// OpenFS opens a directory of another disk as Open does, but takes no lock: the caller makes sure that nobody else has it.
func OpenFS(dir string, disk FS) (*Store, error) {
	if err := makeDir(disk, dir); err != nil {
		return nil, unusable(dir, err)
	}
	s, err := open(dir, disk)
	if err != nil {
		return nil, unusable(dir, err)
	}
	return s, nil
}

// open prepares the directory, which is there, and proves that it can be written. Its name is on disk afterwards.
func open(dir string, disk FS) (*Store, error) {
	s := &Store{dir: dir, fs: disk, starts: maxStarts, folders: map[string]bool{}}
	for _, sub := range []string{recordDir, poolDir, startDir, quarantineDir, scratchDir} {
		if err := disk.Mkdir(s.path(sub)); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	// An earlier program may have ended between a change and its sync; what is read is to stay.
	for _, unsure := range []string{filepath.Dir(dir), dir, s.path(recordDir), s.path(poolDir)} {
		if err := disk.SyncDir(unsure); err != nil {
			return nil, err
		}
	}
	var err error
	if s.scratch, err = newScratch(disk, s.path(scratchDir)); err != nil {
		return nil, err
	}
	return s, s.identify()
}

// makeDir creates the directory and its missing parents. The names of those that it made are on disk when it returns.
func makeDir(disk FS, dir string) error {
	err := disk.Mkdir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(disk, filepath.Dir(dir)); err != nil {
			return err
		}
		err = disk.Mkdir(dir)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return disk.SyncDir(filepath.Dir(dir))
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

// isMissing tells that a name is not there.
func isMissing(err error) bool { return errors.Is(err, os.ErrNotExist) }
