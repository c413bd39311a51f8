// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"maps"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// vitalsAge is how long a new member of a tree may stay unknown to Vitals. What it did is then counted in full.
	vitalsAge = 5 * time.Second
	// tick is the unit of times in /proc/PID/stat: USER_HZ, which is 100 wherever we run.
	tick = 10 * time.Millisecond
	// ioBytes is more than /proc/PID/io can have.
	ioBytes = 512
)

// Vitals is what a tree has done until At. IOBytes, Faults and CPU never shrink from one call to a later one of the same
// Process, whoever of the tree ended in between; that any of them grew is progress.
type Vitals struct {
	At      time.Time
	IOBytes uint64        // read and written by calls, files or not, and fetched from disks; 0 where the kernel does not tell.
	Faults  uint64        // page faults: how a mapped model loads.
	RSS     uint64        // memory in use now in bytes; what several members share is counted for each.
	CPU     time.Duration // on all CPUs together.
	PIDs    int           // living members now.
}

// Vitals returns what the tree of p has done in total, a start that was attached from its own beginning. Of a tree that
// has ended it returns the last totals and no members. It costs some reads for each member; only where nobody else has
// looked at all processes for seconds does it do so, and a member is missed until then.
func (p *Process) Vitals() (Vitals, error) { return p.samples.get(0, p.sample) }

func (p *Process) sample() (Vitals, error) {
	all, err := p.host.census(vitalsAge)
	if err != nil {
		return Vitals{}, err
	}
	known := p.members()
	pids := maps.Clone(known)
	for pid, r := range p.meter.last {
		pids[pid] = r.startTicks
	}
	for _, m := range p.host.treeIn(all, p.id, known) {
		pids[m.PID] = m.StartTicks
	}
	v := Vitals{At: time.Now()}
	now := make(map[int]reading, len(pids))
	for pid, ticks := range pids {
		s, err := readStat(pid)
		if err != nil || s.StartTicks != ticks {
			continue // It has ended and was collected.
		}
		now[pid] = reading{startTicks: ticks, parent: s.PPID, work: work{io: readIO(pid), faults: s.faults, cpuTicks: s.cpuTicks}}
		if !s.dead() {
			v.PIDs++
			v.RSS += s.rssPages * uint64(os.Getpagesize())
		}
	}
	p.meter.add(now)
	v.IOBytes, v.Faults, v.CPU = p.meter.total.io, p.meter.total.faults, time.Duration(p.meter.total.cpuTicks)*tick
	return v, nil
}

// work is what a process has done, its collected children included: the kernel adds theirs to its own.
type work struct {
	io, faults, cpuTicks uint64
}

// reading is one process as it was sampled.
type reading struct {
	startTicks uint64
	parent     int
	work
}

// meter adds up the work of a tree whose members come and go.
type meter struct {
	total work
	last  map[int]reading // members, the dead until they are collected.
}

// add counts what each member did since it was sampled last. A member that is gone was collected by its parent, to whose
// work the kernel then added all of its own: what had been counted of it is not counted there again.
func (m *meter) add(now map[int]reading) {
	gone := map[int]reading{}
	for pid, r := range m.last {
		if n, ok := now[pid]; !ok || n.startTicks != r.startTicks {
			gone[pid] = r
		}
	}
	counted := map[int]work{}
	for _, r := range gone {
		heir := heirOf(r, gone)
		counted[heir] = counted[heir].plus(r.work)
	}
	for pid, n := range now {
		before := counted[pid]
		if last := m.last[pid]; last.startTicks == n.startTicks {
			before = before.plus(last.work)
			n.work = n.most(last.work) // What may not be read any more has not shrunk.
			now[pid] = n
		}
		m.total = m.total.plus(n.minus(before))
	}
	m.last = now
}

// heirOf returns the nearest ancestor of a process that is not gone itself.
func heirOf(r reading, gone map[int]reading) int {
	heir := r.parent
	for range gone {
		parent, ok := gone[heir]
		if !ok {
			break
		}
		heir = parent.parent
	}
	return heir
}

func (w work) plus(o work) work {
	return work{io: w.io + o.io, faults: w.faults + o.faults, cpuTicks: w.cpuTicks + o.cpuTicks}
}

// minus stops at 0.
func (w work) minus(o work) work {
	return work{io: w.io - min(w.io, o.io), faults: w.faults - min(w.faults, o.faults), cpuTicks: w.cpuTicks - min(w.cpuTicks, o.cpuTicks)}
}

func (w work) most(o work) work {
	return work{io: max(w.io, o.io), faults: max(w.faults, o.faults), cpuTicks: max(w.cpuTicks, o.cpuTicks)}
}

// readIO returns the bytes that a process has read and written; 0 if it may not be asked.
func readIO(pid int) uint64 {
	fd, err := unix.Open(procPath(pid, "io"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var buf [ioBytes]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return 0
	}
	return parseIO(buf[:n])
}

// parseIO adds up what /proc/PID/io tells of bytes by call and of those fetched from disks.
func parseIO(text []byte) uint64 {
	var sum uint64
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(line, []byte(": "))
		switch string(name) {
		case "rchar", "wchar", "read_bytes":
			n, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
			if err == nil { // Something else is not a count.
				sum += n
			}
		}
	}
	return sum
}
