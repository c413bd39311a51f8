// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// statBytes is more than a line of /proc/PID/stat can have: 52 numbers and a name.
const statBytes = 2048

// stat is what /proc/PID/stat tells about one process.
type stat struct {
	Member
	threads  int
	faults   uint64 // page faults, those of collected children included.
	cpuTicks uint64 // time on a CPU, that of collected children included.
	rssPages uint64
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
	const (
		state, parent, group, session      = 0, 1, 2, 3
		minorFaults, majorFaultsOfChildren = 7, 10
		userTime, systemTimeOfChildren     = 11, 14
		threads, start, resident           = 17, 19, 21
	)
	rest := strings.Fields(line[shut+1:])
	if len(rest) <= resident || len(rest[state]) != 1 {
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
	for _, f := range []struct {
		to          *uint64
		first, last int
	}{
		{&s.StartTicks, start, start}, {&s.faults, minorFaults, majorFaultsOfChildren},
		{&s.cpuTicks, userTime, systemTimeOfChildren}, {&s.rssPages, resident, resident},
	} {
		for _, text := range rest[f.first : f.last+1] {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				return stat{}, fmt.Errorf("parse process status %q: %w", line, err)
			}
			*f.to += n
		}
	}
	return s, nil
}
