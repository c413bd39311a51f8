// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// environCap bounds what is read of a foreign environment in bytes. Spawn puts the nonce first, so that it is found
// well before; the kernel itself allows a few MiB.
const environCap = 4 << 20

// statBytes is more than a line of /proc/PID/stat can have: 52 numbers and a name.
const statBytes = 2048

// stat is what /proc/PID/stat tells about one process.
type stat struct {
	Member
	threads int
}

// dead tells whether only the exit status is left. A process whose first thread ended while others run is alive,
// though the kernel shows it as Z.
func (s stat) dead() bool {
	return s.State == 'X' || s.State == 'x' || s.State == 'Z' && s.threads <= 1
}

func procPath(pid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/" + name
}

func readStat(pid int) (stat, error) {
	var buf [statBytes]byte
	return readStatInto(buf[:], pid)
}

// readStatInto is readStat with a buffer of the caller, for looks at all processes.
func readStatInto(buf []byte, pid int) (stat, error) {
	path := procPath(pid, "stat")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return stat{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, buf) // The kernel writes such a line at once.
	if err != nil {
		return stat{}, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return parseStat(string(buf[:n]))
}

// parseStat reads one line of /proc/PID/stat. The name in it may hold blanks and parentheses.
func parseStat(line string) (stat, error) {
	open, shut := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 1 || shut < open {
		return stat{}, fmt.Errorf("parse process status %q: no name in it", line)
	}
	const state, parent, group, session, threads, start = 0, 1, 2, 3, 17, 19
	rest := strings.Fields(line[shut+1:])
	if len(rest) <= start || len(rest[state]) != 1 {
		return stat{}, fmt.Errorf("parse process status %q: %d fields after the name", line, len(rest))
	}
	var s stat
	s.Comm, s.State = line[open+1:shut], rest[state][0]
	for _, f := range []struct {
		to   *int
		text string
	}{
		{&s.PID, strings.TrimSpace(line[:open])}, {&s.PPID, rest[parent]}, {&s.PGID, rest[group]},
		{&s.SID, rest[session]}, {&s.threads, rest[threads]},
	} {
		n, err := strconv.Atoi(f.text)
		if err != nil {
			return stat{}, fmt.Errorf("parse process status %q: %w", line, err)
		}
		*f.to = n
	}
	ticks, err := strconv.ParseUint(rest[start], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("parse process status %q: %w", line, err)
	}
	s.StartTicks = ticks
	return s, nil
}

// carriesNonce tells whether the environment that a process was started with has the nonce. One that may not be read,
// because it is another user's, has not.
func carriesNonce(pid int, nonce string) bool {
	if nonce == "" {
		return false
	}
	f, err := os.Open(procPath(pid, "environ"))
	if err != nil {
		return false
	}
	defer f.Close()
	environ, err := io.ReadAll(io.LimitReader(f, environCap))
	if err != nil {
		return false
	}
	want := []byte(NonceVar + "=" + nonce)
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		if bytes.Equal(entry, want) {
			return true
		}
	}
	return false
}
