// SPDX-License-Identifier: Apache-2.0

// Package process owns engine processes: it starts them, knows them again, sees them exit and stops all of their tree.
//
// A process is known by boot id, pid, start time, executable and a nonce in its environment, never by its pid alone
// (G2). It is started in a session of its own, with its output in a file, so that it survives the manager. A stop is
// complete only when nothing of the tree is left (G9): root, session, process group, descendants, and whatever carries
// the nonce or the mark of the start. The mark is a limit that the kernel hands down and nothing else uses, so a daemon
// that left session and parent, closed its files and dropped its environment is found by it, by a later manager too.
// Beyond that is a process that does all this and sets its own limit of file locks, before anything looked at the tree.
// Exits are seen through pidfds, at once and without polling; that the kernel killed for lack of memory is told only on
// the kernel's own word. Looks at all processes are shared by those who ask at the same time. Nothing here restarts,
// decides or writes a record. All exported functions and methods may be called at once from several goroutines.
package process

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// firstInherited is the first descriptor after stdin, stdout and stderr.
const firstInherited = 3

// Host is the process table of this machine as one manager sees it: the children it started, and a way to look at
// everything else. A program has one Host, because two would reap each other's children, and its processes could get
// each other's mark; so could what the program starts without its Host.
type Host struct {
	bootID string
	self   int

	looks     shared[census]
	listening shared[[]Listener]
	oom       *oomSources

	// fork is held from before a fork until its pid is in own, and while strays are reaped, so that the exit of a child
	// of ours is never taken by the reaper, and that a child never gets the mark of another.
	fork sync.Mutex

	mu  sync.Mutex       // mu guards own; taken after fork.
	own map[int]struct{} // direct children whose exit has not been collected.
}

// New returns a Host of the running machine. It starts nothing, and marks every descriptor that this program inherited
// close-on-exec, so that no engine inherits it in turn. It fails where /proc or pidfds are not available, and where this
// program's hard limit of file locks is not unlimited.
func New() (*Host, error) {
	if err := unix.CloseRange(firstInherited, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("mark inherited descriptors close-on-exec (Linux 5.11 or newer is needed): %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("open a pidfd: %w", err)
	}
	if err := unix.Close(fd); err != nil {
		return nil, fmt.Errorf("close a pidfd: %w", err)
	}
	var locks unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_LOCKS, nil, &locks); err != nil {
		return nil, fmt.Errorf("read limit of file locks: %w", err)
	}
	if err := markable(locks); err != nil {
		return nil, err
	}
	return &Host{
		bootID: strings.TrimSpace(string(boot)), self: os.Getpid(), own: map[int]struct{}{}, oom: newOOMSources("/"),
	}, nil
}

// SetSubreaper makes orphans of this program's descendants children of this program, so that a daemonising engine
// stays in its tree. It holds until the program ends and is not inherited. Run must then be running.
func SetSubreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	return nil
}

// Run collects the exits of adopted orphans until ctx ends, and returns nil. It leaves those of processes that Spawn
// started, but takes those of every other child: while it runs, nothing else in the program may start processes.
// Without it, and with SetSubreaper, dead orphans stay as zombies.
func (h *Host) Run(ctx context.Context) error {
	died := make(chan os.Signal, 1)
	signal.Notify(died, unix.SIGCHLD)
	defer signal.Stop(died)
	for {
		h.reap(childrenOfSelf())
		select {
		case <-died:
		case <-ctx.Done():
			return nil
		}
	}
}

// reap collects those of the pids that are dead children of this program and that Spawn did not start.
func (h *Host) reap(pids []int) {
	h.fork.Lock()
	defer h.fork.Unlock()
	for _, pid := range pids {
		h.mu.Lock()
		_, ours := h.own[pid]
		h.mu.Unlock()
		if !ours {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // A living child answers 0, one that is none ECHILD.
		}
	}
}

// childrenOfSelf lists the children of this program, started or adopted; at least the dead, while there are any.
func childrenOfSelf() []int {
	files, _ := filepath.Glob("/proc/self/task/*/children")
	if len(files) == 0 {
		return deadChildrenOfSelf()
	}
	var pids []int
	for _, file := range files {
		list, err := os.ReadFile(file)
		if err != nil {
			continue // The thread is gone and its children moved to another.
		}
		for word := range strings.FieldsSeq(string(list)) {
			if pid, err := strconv.Atoi(word); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// deadChildrenOfSelf is for kernels that do not list children (no CONFIG_PROC_CHILDREN). The kernel names one that has
// not been collected; only then are all processes looked at for more.
func deadChildrenOfSelf() []int {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	if err != nil || info.Signo == 0 {
		return nil
	}
	all, err := snapshot()
	if err != nil {
		return nil // The next child that dies is reason to look again.
	}
	var pids []int
	self := os.Getpid()
	for pid, s := range all {
		if s.PPID == self && s.dead() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (h *Host) disown(pid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.own, pid)
}
