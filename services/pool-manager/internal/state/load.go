// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
)

const (
	// tempPrefix is of files that a manager of schema 1 was writing when it ended.
	tempPrefix = ".tmp-"
	// maxAside is the longest name in the quarantine, but for a count: any file system has room for both.
	maxAside = 200
)

// Quarantined is a file that could not be used and was moved aside.
type Quarantined struct {
	Name   string // its name in the folder that it was found in.
	Path   string // where it is now.
	PoolID string // the pool that it was of, as far as its name tells; else empty.
	Reason string
}

// Loaded is what the directory held of engines.
type Loaded struct {
	Records     []Record // by file name.
	Quarantined []Quarantined
}

// Load returns every good record of an engine, and moves every file that is none to the quarantine. It fails only if the
// directory cannot be read or a bad file cannot be moved; what it has moved until then stays moved. What Open has put
// aside is told here, too.
func (s *Store) Load() (Loaded, error) {
	records, aside, err := loadAll[Record](s)
	return Loaded{Records: records, Quarantined: append(aside, s.aside...)}, err
}

// loadAll reads the folder of a kind.
func loadAll[T content](s *Store) ([]T, []Quarantined, error) {
	var none T
	names, err := s.fs.ReadDir(s.path(none.kind().dir))
	if err != nil {
		return nil, nil, storageError("list "+none.kind().name+" records", err)
	}
	found, aside, err := load[T](s, names)
	if err != nil {
		return found, aside, storageError("read "+none.kind().name+" records", err)
	}
	return found, aside, nil
}

// load reads the files of these names below the folder of the kind. Those that are missing are left out, those that are
// no records are moved aside.
func load[T content](s *Store, names []string) (found []T, aside []Quarantined, err error) {
	var none T
	k := none.kind()
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) { // An interrupted Save; it had not returned.
			if err := s.fs.Remove(s.path(k.dir, name)); err != nil && !isMissing(err) {
				return found, aside, err
			}
			continue
		}
		text, bad := s.fs.ReadFile(s.path(k.dir, name))
		if isMissing(bad) {
			continue
		}
		if bad != nil && !errors.Is(bad, ErrNotRegular) {
			return found, aside, bad
		}
		if bad == nil {
			var v T
			if v, bad = decode[T](name, text); bad == nil {
				found = append(found, v)
				continue
			}
		}
		moved, err := s.quarantine(k, name)
		if isMissing(err) { // Another reader was faster.
			continue
		}
		if err != nil {
			return found, aside, err
		}
		aside = append(aside, Quarantined{Name: filepath.Base(name), Path: moved, PoolID: k.poolOf(name), Reason: bad.Error()})
	}
	return found, aside, nil
}

// quarantine moves a file of a kind aside under a name that is free and tells where it was.
func (s *Store) quarantine(k kind, name string) (string, error) {
	taken, err := s.fs.ReadDir(s.path(quarantineDir))
	if err != nil {
		return "", err
	}
	used := map[string]bool{}
	for _, t := range taken {
		used[t] = true
	}
	from := s.path(k.dir, name)
	if k.dir != recordDir && k.dir != "" {
		name = k.name + "-" + strings.ReplaceAll(name, string(filepath.Separator), "-")
	}
	name = name[:min(len(name), maxAside)]
	to := name
	for n := 1; used[to]; n++ {
		to = name + "." + strconv.Itoa(n)
	}
	if err := s.fs.Rename(from, s.path(quarantineDir, to)); err != nil {
		return "", err
	}
	return s.path(quarantineDir, to), errors.Join(s.fs.SyncDir(s.path(quarantineDir)), s.fs.SyncDir(filepath.Dir(from)))
}
