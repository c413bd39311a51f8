// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// markVariable is in the environment of all that a Run starts.
const markVariable = "ROUNDHOUSE_RUN="

// mark tells the processes of one Run from all others.
type mark struct{ owner, nonce string }

func newMark(owner string) mark { return mark{ownerHash(owner), rand.Text()} }

func ownerHash(owner string) string {
	sum := sha256.Sum256([]byte(owner))
	return hex.EncodeToString(sum[:12])
}

func (m mark) env() string { return markVariable + m.owner + "." + m.nonce }

// stat is what the kernel says of a process.
type stat struct {
	pid, session int
	alive        bool   // not a zombie
	started      uint64 // in clock ticks since boot
}

// member picks the processes of p: those in its session, and those with its mark that have left it.
func (p *process) member() func(stat) bool {
	leader, _ := readStat(p.cmd.Process.Pid) // not reaped, so it is there
	variable := []byte(p.mark.env())
	return func(s stat) bool {
		return s.session == leader.pid || s.started >= leader.started && hasVariable(s.pid, variable, exactly)
	}
}

// ownedBy picks the processes of every Run with owner.
func ownedBy(owner string) func(stat) bool {
	prefix := []byte(markVariable + ownerHash(owner) + ".")
	return func(s stat) bool { return hasVariable(s.pid, prefix, bytes.HasPrefix) }
}

func exactly(a, b []byte) bool { return bytes.Equal(a, b) }

func hasVariable(pid int, want []byte, match func(variable, want []byte) bool) bool {
	env, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false // gone, or another user's
	}
	for variable := range bytes.SplitSeq(env, []byte{0}) {
		if match(variable, want) {
			return true
		}
	}
	return false
}

// killAll sends SIGKILL to all that pick picks until none is alive, and returns the pids that outlived survivorWait.
// A process is signalled only through a descriptor that was opened before it was picked. It takes two looks in a row to
// believe that none is left: one is born behind the first look's back when its parent ends at that moment.
func killAll(pick func(stat) bool) []int {
	deadline := time.Now().Add(survivorWait)
	for empty := 0; ; {
		fds, pids := openAll(pick)
		if len(fds) == 0 {
			if empty++; empty == 2 {
				return nil
			}
			continue
		}
		empty = 0
		for _, fd := range fds {
			_ = unix.PidfdSendSignal(int(fd.Fd), unix.SIGKILL, nil, 0) // ESRCH: it has gone
		}
		late := awaitAll(fds, deadline)
		for _, fd := range fds {
			_ = unix.Close(int(fd.Fd))
		}
		if late {
			return pids
		}
	}
}

// openAll opens a descriptor of every living process that pick picks.
func openAll(pick func(stat) bool) (fds []unix.PollFd, pids []int) {
	self := os.Getpid()
	for _, pid := range processes() {
		if s, ok := readStat(pid); !ok || !s.alive || pid == self || !pick(s) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has gone
		}
		// The pid may have changed hands before it was opened; from here on it cannot.
		if s, ok := readStat(pid); !ok || !s.alive || !pick(s) {
			_ = unix.Close(fd)
			continue
		}
		fds = append(fds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		pids = append(pids, pid)
	}
	return fds, pids
}

// awaitAll blocks until all have ended, and tells whether the deadline came first.
func awaitAll(fds []unix.PollFd, deadline time.Time) (late bool) {
	for _, fd := range fds {
		one := []unix.PollFd{fd}
		for {
			wait := time.Until(deadline)
			if wait <= 0 {
				return true
			}
			n, err := unix.Poll(one, int(wait.Milliseconds())+1)
			if n == 1 || err != nil && !errors.Is(err, unix.EINTR) {
				break
			}
		}
	}
	return false
}

func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Fields of /proc/PID/stat, counted from the one after the program's name.
const (
	statState   = 0
	statSession = 3
	statThreads = 17
	statStarted = 19
)

func readStat(pid int) (stat, bool) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	// The name stands in parentheses and may hold any byte.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) <= statStarted {
		return stat{}, false
	}
	session, err1 := strconv.Atoi(string(fields[statSession]))
	threads, err2 := strconv.Atoi(string(fields[statThreads]))
	started, err3 := strconv.ParseUint(string(fields[statStarted]), 10, 64)
	if errors.Join(err1, err2, err3) != nil {
		return stat{}, false
	}
	state := fields[statState][0]
	// A first thread that has ended before the others looks like a zombie.
	alive := state != 'Z' && state != 'X' || threads > 1
	return stat{pid: pid, session: session, alive: alive, started: started}, true
}
