// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxStarts is how many starts of one replica are kept.
const maxStarts = 20

// StartRecord tells of one start of a replica that has ended (G7).
type StartRecord struct {
	PoolID      string        `json:"pool_id"`
	Replica     int           `json:"replica"`
	Generation  uint64        `json:"generation"`
	Edition     uint64        `json:"edition"`
	PreparedID  string        `json:"prepared_id"`
	PID         int           `json:"pid,omitempty"`      // 0 if no process was made, or it was not known.
	StartedAt   time.Time     `json:"started_at"`         // when the process was made, or was to be.
	ReadyAt     time.Time     `json:"ready_at,omitzero"`  // zero if it never got ready.
	StartedBy   string        `json:"started_by"`         // "preload", "restart", "reload", "restore" and the like.
	EndedBy     string        `json:"ended_by,omitempty"` // "drain", "reload", "stalled" and the like; empty if by itself.
	Error       string        `json:"error,omitempty"`    // why it never got ready.
	Class       string        `json:"class"`              // of engine/v1, without EXIT_CLASS_.
	Code        int           `json:"code"`               // exit code; 0 with a signal.
	Signal      string        `json:"signal,omitempty"`   // as in SIGKILL.
	Uptime      time.Duration `json:"uptime"`             // nanoseconds.
	EndedAt     time.Time     `json:"ended_at"`
	LastLines   []string      `json:"last_lines,omitempty"` // the end of its log; the caller bounds them.
	RequestsCut int           `json:"requests_cut,omitempty"`
	Adopted     bool          `json:"adopted,omitempty"` // it was ended by a manager that had not started it.
}

func (StartRecord) kind() kind {
	return kind{name: "start", dir: startDir, oldest: schema, poolOf: filepath.Dir}
}

// fileName returns the name of the record's file: POOL/REPLICA-gGENERATION.json.
func (r StartRecord) fileName() (string, error) {
	if err := checkReplica(r.PoolID, r.Replica); err != nil {
		return "", err
	}
	return filepath.Join(r.PoolID, startName(r.Replica, r.Generation)), nil
}

func (StartRecord) check() error { return nil }

// newestFirst orders starts.
func newestFirst(a, b StartRecord) int {
	return cmp.Or(b.StartedAt.Compare(a.StartedAt), cmp.Compare(b.Generation, a.Generation), cmp.Compare(a.Replica, b.Replica))
}

// SaveStart puts the record on disk, in place of an earlier one of the same replica and generation, and deletes all but
// the newest 20 of the replica; the one just saved always stays. It fails as SavePool does. Starts of one replica must
// not be saved at once.
func (s *Store) SaveStart(r StartRecord) error {
	name, text, err := encode(r)
	if err != nil {
		return err
	}
	if err := s.needFolder(r.PoolID); err != nil {
		return storageError("save record "+name, err)
	}
	err = s.put(r.kind(), name, text)
	if isMissing(err) && s.forgetFolder(r.PoolID) { // A reader may have noted the folder while it was removed.
		if err = s.needFolder(r.PoolID); err == nil {
			err = s.put(r.kind(), name, text)
		}
	}
	if err != nil {
		return storageError("save record "+name, err)
	}
	if err := s.prune(r); err != nil {
		return storageError("delete old starts of pool "+r.PoolID, err)
	}
	return nil
}

// needFolder makes the folder for the starts of a pool durable, and moves a file in its place aside.
func (s *Store) needFolder(pool string) error {
	if s.hasFolder(pool) {
		return nil
	}
	dir := s.path(startDir, pool)
	if _, err := s.fs.Size(dir); err == nil {
		if _, err := s.quarantine(StartRecord{}.kind(), pool); err != nil {
			return err
		}
	}
	if err := s.fs.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	// Also for one that is there: who made it may have ended before this.
	if err := s.fs.SyncDir(s.path(startDir)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.folders[pool] = true
	return nil
}

// settleFolder makes durable what an earlier program has left in the folder of a pool: it may have ended between a change and its
// sync, and what is read is to stay.
func (s *Store) settleFolder(pool string) error {
	err := s.fs.SyncDir(s.path(startDir, pool))
	if isMissing(err) { // It was removed since it was listed.
		return nil
	}
	if err == nil {
		err = s.fs.SyncDir(s.path(startDir))
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.folders[pool] = true
	return nil
}

func (s *Store) hasFolder(pool string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.folders[pool]
}

// forgetFolder tells whether the folder of a pool was noted as durable, and no longer is.
func (s *Store) forgetFolder(pool string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	noted := s.folders[pool]
	delete(s.folders, pool)
	return noted
}

// prune deletes what is too much of the starts of a replica, of which saved is the last. That they are gone need not be
// durable: what comes back goes with the next.
func (s *Store) prune(saved StartRecord) error {
	names, err := s.startNames(saved.PoolID)
	if err != nil {
		return err
	}
	own := filepath.Join(saved.PoolID, strconv.Itoa(saved.Replica)+"-g")
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, own) })
	if len(names) <= s.starts {
		return nil
	}
	starts, _, err := load[StartRecord](s, names)
	if err != nil {
		return err
	}
	starts = slices.DeleteFunc(starts, func(r StartRecord) bool { return r.Generation == saved.Generation })
	slices.SortFunc(starts, newestFirst)
	for _, old := range starts[min(len(starts), s.starts-1):] {
		if err := s.fs.Remove(s.path(startDir, old.PoolID, startName(old.Replica, old.Generation))); err != nil && !isMissing(err) {
			return err
		}
	}
	return nil
}

// startNames lists the folder of a pool, with names below startDir. A pool without starts has none.
func (s *Store) startNames(pool string) ([]string, error) {
	names, err := s.fs.ReadDir(s.path(startDir, pool))
	if isMissing(err) {
		return nil, nil
	}
	if errors.Is(err, syscall.ENOTDIR) { // A file in place of the folder.
		_, err = s.quarantine(StartRecord{}.kind(), pool)
		return nil, err
	}
	for i := range names {
		names[i] = filepath.Join(pool, names[i])
	}
	return names, err
}

// Starts returns what is kept of the starts of a pool, newest first, which is on disk then. What is no record is moved to the
// quarantine and left out.
func (s *Store) Starts(poolID string) ([]StartRecord, error) {
	if err := checkReplica(poolID, 0); err != nil {
		return nil, err
	}
	names, err := s.startNames(poolID)
	if err == nil && len(names) > 0 && !s.hasFolder(poolID) {
		err = s.settleFolder(poolID)
	}
	if err != nil {
		return nil, storageError("list the starts of pool "+poolID, err)
	}
	starts, _, err := load[StartRecord](s, names)
	if err != nil {
		return nil, storageError("read the starts of pool "+poolID, err)
	}
	slices.SortFunc(starts, newestFirst)
	return starts, nil
}

// Generations tells the highest generation of each replica of a pool, by index, of which a start is kept. It reads names only.
func (s *Store) Generations(poolID string) (map[int]uint64, error) {
	if err := checkReplica(poolID, 0); err != nil {
		return nil, err
	}
	names, err := s.startNames(poolID)
	if err != nil {
		return nil, storageError("list the starts of pool "+poolID, err)
	}
	highest := map[int]uint64{}
	for _, name := range names {
		if replica, generation, ok := parseStart(filepath.Base(name)); ok {
			highest[replica] = max(highest[replica], generation)
		}
	}
	return highest, nil
}

// RemoveStarts deletes all that is kept of the starts of a pool. If there is nothing, that is no error. No start of the
// pool may be saved meanwhile.
func (s *Store) RemoveStarts(poolID string) error {
	if err := checkReplica(poolID, 0); err != nil {
		return err
	}
	if err := s.removeStarts(poolID); err != nil {
		return storageError("remove the starts of pool "+poolID, err)
	}
	return nil
}

func (s *Store) removeStarts(pool string) error {
	s.forgetFolder(pool)
	names, err := s.startNames(pool)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := s.fs.Remove(s.path(startDir, name))
		if errors.Is(err, syscall.ENOTEMPTY) { // A folder, which is not ours.
			_, err = s.quarantine(StartRecord{}.kind(), name)
		}
		if err != nil && !isMissing(err) {
			return err
		}
	}
	if err := s.fs.Remove(s.path(startDir, pool)); err != nil && !isMissing(err) {
		return err
	}
	return s.fs.SyncDir(s.path(startDir))
}
