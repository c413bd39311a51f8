// SPDX-License-Identifier: Apache-2.0

package process

import (
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// oomLag is how much later than its signal the kernel may log whom it killed for lack of memory: it does so just
	// after, and the killed may end in between.
	oomLag = 20 * time.Millisecond
	// oomPause is between two looks at the log for that.
	oomPause = time.Millisecond
)

// oomSources is where the kernel tells whom it kills for lack of memory. Its log is exact and decides where it can be
// read without a gap; the counters of memory cgroups decide elsewhere.
type oomSources struct {
	log     *kernelLog // nil: not to be read here.
	cgroups cgroups

	mu        sync.Mutex        // mu guards explained.
	explained map[string]uint64 // path of a counter -> how many of its kills have been found to be of which engine.
}

// newOOMSources finds the sources below a root, which is / but in tests.
func newOOMSources(root string) *oomSources {
	return &oomSources{
		log: openKernelLog(root), cgroups: findCgroups(filepath.Join(root, "proc/self/mountinfo")), explained: map[string]uint64{},
	}
}

// oomBaseline is what the sources told when a process began to be ours.
type oomBaseline struct {
	seq     uint64 // the newest record of the log.
	counter string // the counter of the process's cgroup; empty if there is none.
	kills   uint64
}

// baseline returns what the sources tell now, the group being that of a process's /proc/PID/cgroup. What was before does
// not count for the process.
func (o *oomSources) baseline(cgroupFile string) oomBaseline {
	b := oomBaseline{counter: o.cgroups.counterOf(cgroupFile)}
	if kills, err := readKills(b.counter); err == nil {
		b.kills = kills
	} else {
		b.counter = ""
	}
	if o.log != nil {
		b.seq = o.log.news().seq
	}
	return b
}

// killed tells whether the kernel says that it killed a root that SIGKILL has ended or, with it, a member. Of a root whose
// end is unknown only the log can tell.
func (o *oomSources) killed(b oomBaseline, root int, members []int, exit ExitStatus) bool {
	byKill, unknown := exit.Signal == syscall.SIGKILL, exit.Signal == 0 && exit.Code == CodeUnknown
	if !byKill && !unknown {
		return false
	}
	suspects := []int{root}
	if byKill {
		suspects = append(suspects, members...)
	}
	for limit := time.Now().Add(oomLag); o.log != nil; {
		news := o.log.news()
		if news.names(suspects, b.seq) {
			return true
		}
		if news.lostSince(b.seq) {
			break
		}
		if !o.grown(b) || !time.Now().Before(limit) {
			return false
		}
		<-time.After(oomPause)
	}
	return byKill && o.claim(b)
}

// grown tells whether the kernel has killed anybody in the process's cgroup since. It counts before it kills.
func (o *oomSources) grown(b oomBaseline) bool {
	kills, err := readKills(b.counter)
	return err == nil && kills > b.kills
}

// claim takes one kill in the process's cgroup for the process, so that one kill never explains two ends.
func (o *oomSources) claim(b oomBaseline) bool {
	kills, err := readKills(b.counter)
	if err != nil {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	explained := max(b.kills, o.explained[b.counter])
	if kills <= explained {
		return false
	}
	o.explained[b.counter] = explained + 1
	return true
}

// oomKilled tells whether the kernel ended the root of p, or with it one of those seen before, for lack of memory.
func (p *Process) oomKilled(seen map[int]uint64) bool {
	return p.host.oom.killed(p.oomBase, p.id.PID, slices.Collect(maps.Keys(seen)), p.exit)
}
