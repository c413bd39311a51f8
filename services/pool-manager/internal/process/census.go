// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// census is every process of this machine by pid, as one look at the process table found it.
type census map[int]*sighting

// sighting is one process of a census. Its marks are read when they are first asked for, and once.
type sighting struct {
	stat

	limitOnce sync.Once
	limit     uint64 // see markOf.
	envOnce   sync.Once
	env       marks
}

// census returns a look at all processes that began after the call, or at most age before it.
func (h *Host) census(age time.Duration) (census, error) { return h.looks.get(age, snapshot) }

// snapshot reads every process.
func snapshot() (census, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	all := make(census, len(names))
	buf := make([]byte, statBytes)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, err := readStatInto(buf, pid); err == nil { // An error: it has just gone.
			all[pid] = &sighting{stat: s}
		}
	}
	return all, nil
}

// bears tells whether the process has the mark of a start or its nonce.
func (s *sighting) bears(nonce string, mark uint64) bool {
	s.limitOnce.Do(func() { s.limit = limitOf(s.PID) })
	return s.limit == mark || nonce != "" && s.marks().Nonce == nonce
}

// marks returns what the environment of the process tells of its start; nothing if it may not be read.
func (s *sighting) marks() marks {
	s.envOnce.Do(func() { s.env = readMarks(s.PID) })
	return s.env
}
