// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// firstPIDNamespace is the namespace in whose numbers the kernel's log names processes (PROC_PID_INIT_INO).
	firstPIDNamespace = "pid:[4026531836]"
	// recordBytes is more than a record of /dev/kmsg can have.
	recordBytes = 16 << 10
	// kernelPriorities are those of records of the kernel itself; other facilities have higher ones.
	kernelPriorities = 8
	// victimsKept is how many of the killed are remembered: far more than die between a kill and the look at it.
	victimsKept = 512
)

// killedLine is how the kernel logs that it killed a process for lack of memory: of the machine, of a cgroup, of a cpuset.
var killedLine = regexp.MustCompile(`(?i)^(?:memory cgroup )?out of memory(?: \([^)]*\))?: killed process (\d+) `)

// kernelLog reads from the kernel's log whom it kills for lack of memory, from when it was opened on.
type kernelLog struct {
	read   func([]byte) (int, error) // one record at a time; EAGAIN at the end, EPIPE where records were lost.
	reads  shared[kernelNews]
	latest kernelNews // of reads alone, which never overlap.
}

// kernelNews is what was read until now.
type kernelNews struct {
	seq     uint64 // of the newest record.
	lost    uint64 // of the first record after the last gap; 0 if there was none.
	broken  bool   // the log cannot be read any more.
	victims []victim
}

type victim struct {
	seq uint64
	pid int
}

// openKernelLog returns the log of the machine, or nil where it may not be read or does not speak of our pids. It stays
// open until the program ends.
func openKernelLog(root string) *kernelLog {
	if space, err := os.Readlink(filepath.Join(root, "proc/self/ns/pid")); err != nil || space != firstPIDNamespace {
		return nil
	}
	fd, err := unix.Open(filepath.Join(root, "dev/kmsg"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	return &kernelLog{read: func(b []byte) (int, error) { return unix.Read(fd, b) }}
}

// news returns everything up to the newest record; it does not wait for more.
func (l *kernelLog) news() kernelNews {
	news, _ := l.reads.get(0, func() (kernelNews, error) {
		l.latest = l.latest.and(l.read)
		return l.latest, nil
	})
	return news
}

// and reads on.
func (n kernelNews) and(read func([]byte) (int, error)) kernelNews {
	n.victims = slices.Clone(n.victims)
	buf := make([]byte, recordBytes)
	lost := false
	for !n.broken {
		size, err := read(buf)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EPIPE):
			lost = true
		case errors.Is(err, unix.EAGAIN):
			if lost {
				n.lost = n.seq + 1
			}
			return n
		case err != nil || size == 0:
			n.broken = true
		default:
			if seq, text, ok := parseRecord(buf[:size]); ok {
				n.seq = seq
				if lost {
					n.lost, lost = seq, false
				}
				n.hear(text)
			}
		}
	}
	return n
}

// hear remembers whom a record says that the kernel killed.
func (n *kernelNews) hear(text []byte) {
	found := killedLine.FindSubmatch(text)
	if found == nil {
		return
	}
	pid, err := strconv.Atoi(string(found[1]))
	if err != nil {
		return
	}
	n.victims = append(n.victims, victim{seq: n.seq, pid: pid})
	n.victims = n.victims[max(0, len(n.victims)-victimsKept):]
}

// parseRecord splits "6,seq,usec,-;text\n KEY=value\n". There is no text in what somebody else than the kernel wrote.
func parseRecord(record []byte) (seq uint64, text []byte, ok bool) {
	prefix, rest, ok := bytes.Cut(record, []byte(";"))
	fields := bytes.Split(prefix, []byte(","))
	if !ok || len(fields) < 3 {
		return 0, nil, false
	}
	seq, err := strconv.ParseUint(string(fields[1]), 10, 64)
	if priority, err := strconv.ParseUint(string(fields[0]), 10, 32); err == nil && priority < kernelPriorities {
		text, _, _ = bytes.Cut(rest, []byte("\n"))
	}
	return seq, text, err == nil
}

// names tells whether one of the pids was killed after the record.
func (n kernelNews) names(pids []int, after uint64) bool {
	return slices.ContainsFunc(n.victims, func(v victim) bool { return v.seq > after && slices.Contains(pids, v.pid) })
}

// lostSince tells whether a victim after the record may not have been read.
func (n kernelNews) lostSince(seq uint64) bool { return n.broken || n.lost > seq }
