// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// settleTimeout is how long processes that were told to end may take to be gone.
const settleTimeout = 5 * time.Second

// leftovers are what a run left behind that it should not have, in words.
type leftovers struct {
	processes []string
	sockets   []string
	files     []string
	// forced names the daemons that had to be killed.
	forced []string
}

// Counts are how many things a run left behind; all are 0 after a good one.
type Counts struct {
	Processes int `json:"processes"`
	Sockets   int `json:"sockets"`
	TempFiles int `json:"temp_files"`
}

func (l leftovers) count() Counts {
	return Counts{Processes: len(l.processes), Sockets: len(l.sockets), TempFiles: len(l.files)}
}

// err names what is left; nil if nothing is.
func (l leftovers) err() error {
	all := slices.Concat(l.processes, l.sockets, l.files, l.forced)
	if len(all) == 0 {
		return nil
	}
	return reason.New(reason.StopFailed, "left behind: "+strings.Join(all, "; "),
		reason.Remedy("this is a defect of Roundhouse: please report it with the lines above"))
}

// adoptDescendants makes this process the parent of every descendant whose own parent ends.
func adoptDescendants() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper of the demo's processes: %w", err)
	}
	return nil
}

// clear stops the daemons, looks for what is left, and kills whatever process is. It returns when no descendant lives.
func (s *stage) clear(ctx context.Context) leftovers {
	var left leftovers
	if s.pools != nil {
		s.pools.drainNow(ctx)
		s.pools.close()
	}
	for _, d := range []*daemon{s.poolManager, s.provisioner} {
		if d.stop(ctx) {
			left.forced = append(left.forced, d.name+" had to be killed")
		}
	}
	s.keeper.end()
	left.processes = s.endDescendants()
	left.sockets = s.openSockets(ctx)
	left.files = s.tempFiles()
	return left
}

// endDescendants names the live descendants, and kills until there are none.
func (s *stage) endDescendants() []string {
	var named []string
	deadline := time.Now().Add(settleTimeout)
	for first := true; ; first = false {
		reapOrphans()
		alive := descendants(os.Getpid())
		if first {
			for _, p := range alive {
				named = append(named, fmt.Sprintf("process %d (%s)", p.pid, p.name))
			}
		}
		if len(alive) == 0 || time.Now().After(deadline) {
			return named
		}
		for _, p := range alive {
			killAndWait(p.pid)
		}
	}
}

// killAndWait ends one descendant and returns when it is gone, or after a second. A pid that another process has got
// meanwhile is not touched: the handle is taken first and the parentage looked at after.
func killAndWait(pid int) {
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone
	}
	defer func() { _ = unix.Close(handle) }() // nothing to lose
	if !slices.ContainsFunc(descendants(os.Getpid()), func(p process) bool { return p.pid == pid }) {
		return
	}
	if err := unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0); err != nil {
		return // gone
	}
	poll := []unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}
	_, _ = unix.Poll(poll, int(time.Second.Milliseconds())) // the caller looks again
}

// reapOrphans takes the exit states of the children that have ended. The daemons were waited for before.
func reapOrphans() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if pid <= 0 || err != nil {
			return
		}
	}
}

// process is a live process.
type process struct {
	pid, parent int
	name        string
}

// descendants are the live processes below root, zombies left out. A process that cannot be read is not ours.
func descendants(root int) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]process{}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join("/proc", entry.Name(), "stat"))
		if err != nil {
			continue // gone
		}
		if p, alive := parseStat(pid, string(data)); alive {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	var found []process
	for queue := []int{root}; len(queue) > 0; queue = queue[1:] {
		for _, child := range children[queue[0]] {
			found = append(found, child)
			queue = append(queue, child.pid)
		}
	}
	return found
}

// parseStat reads /proc/PID/stat: "pid (name) state parent ...". The name may hold anything.
func parseStat(pid int, stat string) (p process, alive bool) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	fields := strings.Fields(stat[end+1:])
	if len(fields) < 2 {
		return process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, false
	}
	return process{pid: pid, parent: parent, name: stat[open+1 : end]}, fields[0] != "Z" && fields[0] != "X"
}

// openSockets names the sockets in the stage's folder, and the endpoints that still answer.
func (s *stage) openSockets(ctx context.Context) []string {
	var found []string
	_ = filepath.WalkDir(s.folder.path, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type()&fs.ModeSocket != 0 {
			found = append(found, "socket "+path)
		}
		return nil
	})
	for _, address := range s.endpoints {
		dialer := net.Dialer{Timeout: time.Second}
		connection, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = connection.Close() // only asked whether somebody answers
			found = append(found, "listener "+address)
		}
	}
	return found
}

// tempFiles names what lies in the folders for temporary files: the run's own, and the store's as far as it is new and
// does not belong to another provisioner that shares the store.
func (s *stage) tempFiles() []string {
	var found []string
	for name := range names(s.path("tmp")) {
		found = append(found, "file "+s.path(filepath.Join("tmp", name)))
	}
	for name := range names(filepath.Join(s.store, "tmp")) {
		path := filepath.Join(s.store, "tmp", name)
		if _, before := s.storeBefore[name]; !before && !held(strings.TrimSuffix(path, lockSuffix)+lockSuffix) {
			found = append(found, "file "+path)
		}
	}
	slices.Sort(found)
	return found
}

// lockSuffix ends the name of the file that a provisioner holds locked while it uses the folder beside it.
const lockSuffix = ".lock"

// held tells whether a process holds the lock file.
func held(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// names are what a folder holds; a folder that is not there holds nothing.
func names(dir string) map[string]struct{} {
	entries, _ := os.ReadDir(dir)
	found := make(map[string]struct{}, len(entries))
	for _, entry := range entries {
		found[entry.Name()] = struct{}{}
	}
	return found
}
