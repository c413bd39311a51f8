// SPDX-License-Identifier: Apache-2.0

// Package store keeps everything that preparation produced, addressed by content, on one file system.
//
// Nothing is visible before it is whole: a blob, an engine, a model or a record appears by one rename, after its bytes
// were verified and reached the disk (G12, G20). A crash or a failed disk operation at any point leaves either the old
// state or the new one, and the same call may simply be repeated. What may not be what was published any more (a torn
// record, a file that was touched) is reported as absent. Whoever makes it again hashes what is there: what is right
// after all, as in a store that was copied, is taken; what is not is moved to quarantine.
//
// Every file is the store's own: none is a name of a file that somebody else may write to.
//
// Several processes may use one store: file locks exclude them per blob, partial download, engine, model and work
// directory. All methods may be called by several goroutines at once. Look-ups take no lock and read a few hundred bytes.
package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/uuid"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// ErrAbsent is returned, wrapped, by every look-up of something the store does not have.
var ErrAbsent = errors.New("absent from the store")

const (
	dirMode        = 0o755
	secretDirMode  = 0o700
	readOnlyMode   = 0o444
	maxKeyLength   = 128
	copyChunkBytes = 1 << 20
)

// Config says where a store lies.
type Config struct {
	// Root is the absolute path of the store's directory. It is made when it does not exist. Required.
	Root string
	// FS does all disk operations. Nil means the operating system.
	FS FS
}

// Store is one open store. Make it with Open and release it with Close.
type Store struct {
	root  string
	fs    FS
	locks *locks
	// scratch is this process's own folder below tmp; its lock tells other processes that it is in use.
	scratch     string
	scratchLock io.Closer
}

// Open makes the store's folders where they are missing and removes the temporary folders that dead processes left.
// A root that cannot be made or written is a STORAGE_FAILED error that names it; a full disk is DISK_FULL.
func Open(cfg Config) (*Store, error) {
	if !filepath.IsAbs(cfg.Root) {
		return nil, reason.New(reason.InvalidParams, fmt.Sprintf("store root %q is not an absolute path", cfg.Root),
			reason.Field("store.root"), reason.Remedy("give an absolute path"))
	}
	if cfg.FS == nil {
		cfg.FS = osFS{}
	}
	s := &Store{root: filepath.Clean(cfg.Root), fs: cfg.FS}
	s.locks = &locks{dir: s.path("locks"), fs: s.fs, slots: map[string]*slot{}}
	if err := s.makeFolders(); err != nil {
		return nil, unusableRoot(s.root, err)
	}
	if err := s.openScratch(); err != nil {
		return nil, err
	}
	s.sweepScratch()
	return s, nil
}

func (s *Store) makeFolders() error {
	toSync := []string{s.root, s.path("blobs")}
	if _, err := s.fs.Lstat(s.root); errors.Is(err, fs.ErrNotExist) {
		toSync = append(toSync, filepath.Dir(s.root))
	}
	for _, dir := range []string{"blobs/sha256", "engines", "models", "builds", "sources", "locks"} {
		if err := s.fs.MkdirAll(s.path(dir), dirMode); err != nil {
			return err
		}
	}
	// Unverified content is nobody else's business, and what was asked for may hold addresses with credentials.
	for _, dir := range []string{"partial", "tmp", "quarantine", "prepared", "resolutions"} {
		if err := s.fs.MkdirAll(s.path(dir), secretDirMode); err != nil {
			return err
		}
	}
	for _, dir := range toSync {
		if err := s.fs.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// Close removes this process's temporary folder and its lock. Calls in flight must have ended.
func (s *Store) Close() error {
	err := s.removeTree(s.scratch)
	if err == nil { // Else the lock marks what the next Open is to remove.
		err = s.fs.Remove(s.scratch + ".lock")
	}
	if lockErr := s.scratchLock.Close(); err == nil {
		err = lockErr
	}
	if err != nil {
		return fmt.Errorf("close store %s: %w", s.root, err)
	}
	return nil
}

// Root returns the absolute path below which everything in the store lies.
func (s *Store) Root() string { return s.root }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

// openScratch locks this process's temporary folder before making it, so that no other process takes it for a left-over.
func (s *Store) openScratch() error {
	name := uuid.NewString()
	lock, err := s.fs.TryLock(s.path("tmp", name+".lock"))
	if err != nil {
		return unusableRoot(s.root, err)
	}
	s.scratch, s.scratchLock = s.path("tmp", name), lock
	if err := s.fs.MkdirAll(s.scratch, secretDirMode); err != nil {
		_ = lock.Close()
		return unusableRoot(s.root, err)
	}
	return nil
}

// sweepScratch removes the temporary folders whose owner is gone. What it cannot remove stays for the next Open.
func (s *Store) sweepScratch() {
	entries, err := s.fs.ReadDir(s.path("tmp"))
	if err != nil {
		return
	}
	for _, entry := range entries {
		name, isLock := strings.CutSuffix(entry.Name(), ".lock")
		if !isLock || s.path("tmp", name) == s.scratch {
			continue
		}
		lock, err := s.fs.TryLock(s.path("tmp", entry.Name()))
		if err != nil {
			continue
		}
		if s.removeTree(s.path("tmp", name)) == nil {
			_ = s.fs.Remove(s.path("tmp", entry.Name()))
		}
		_ = lock.Close()
	}
}

// temp returns a new path in this process's temporary folder; nothing is made there.
func (s *Store) temp() string {
	return filepath.Join(s.scratch, uuid.NewString())
}

// lock waits until this caller alone holds name, in this process and among all processes of the store.
func (s *Store) lock(ctx context.Context, name string) (release func(), err error) {
	return s.locks.acquire(ctx, name)
}

var keyPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

// checkKey refuses a key that could not be one path element.
func checkKey(what, key string) error {
	if len(key) > maxKeyLength || !keyPattern.MatchString(key) {
		return reason.New(reason.InvalidParams, fmt.Sprintf("%s %.140q is not a valid key", what, key), reason.Field(what),
			reason.Remedy("use at most 128 letters, digits, dots, dashes and underscores, beginning with a letter or digit"))
	}
	return nil
}
