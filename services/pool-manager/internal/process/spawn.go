// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// CoreDumps says whether the kernel may write a core file of an engine.
type CoreDumps int

// The zero value forbids core files: one of an engine is as large as its model.
const (
	NoCoreDumps CoreDumps = iota
	KeepCoreDumps
)

// Command is what to start. Nothing of the manager's own environment or descriptors reaches the engine.
type Command struct {
	Executable  string    // absolute path; required.
	Args        []string  // without the program's own name.
	Env         []string  // NAME=value, complete; see BaseEnv. The marks are put in front, other Reserved names left out.
	Dir         string    // absolute working directory; empty is "/".
	LogPath     string    // absolute; both output streams are appended, created with mode 0600; required.
	Nonce       string    // required, unique to this start; see NewNonce.
	Manager     string    // by which Strays finds the start again; empty: never.
	Pool        string    // for whom it is, as is Replica and Generation: told to people and by Strays; empty: not told.
	Replica     string    // as in Pool.
	Generation  uint64    // as in Pool; 0: not told.
	CoreDumps   CoreDumps // zero: none.
	OOMScoreAdj int       // -1000 to 1000, for the whole tree; zero keeps the manager's own.
}

// Process is one started engine: the root of a tree of processes. It stays usable after the exit of the root, to look
// at and to stop what the root left behind.
type Process struct {
	host    *Host
	id      Identity
	oomBase oomBaseline
	fd      *pidfd
	child   bool // started by this Host, which then collects its exit.
	started time.Time
	release context.CancelFunc

	done    chan struct{}
	watched chan struct{} // closed when the watcher has ended: after done, or by Release.
	exit    ExitStatus    // written before done is closed.

	samples shared[Vitals]
	meter   meter // of samples alone, which never overlap.

	mu       sync.Mutex      // mu guards what follows.
	known    map[int]uint64  // pid -> start ticks of the members seen last.
	foreign  map[uint64]bool // inodes of listeners that the whole tree did not have.
	judgedAt time.Time       // when foreign was found.
}

// Spawn starts the command in a session of its own: stdin is empty, output goes to the log file, and the engine
// lives on when the manager ends. On error nothing is left running; the log file may be. The reason of the error is
// DiskFull where the log file has no room and WorkerStartFailed otherwise.
func (h *Host) Spawn(c Command) (*Process, error) {
	if err := c.check(); err != nil {
		return nil, startError(c, err)
	}
	logFile, err := os.OpenFile(c.LogPath, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, startError(c, fmt.Errorf("open log: %w", err))
	}
	defer logFile.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, startError(c, err)
	}
	defer null.Close()

	base := h.oom.baseline(procPath(h.self, "cgroup")) // The engine begins in our group.
	started := time.Now()
	pid, handle, err := h.start(c, []uintptr{null.Fd(), logFile.Fd(), logFile.Fd()})
	if err != nil {
		return nil, startError(c, err)
	}
	p, err := h.settle(c, pid, handle)
	if err != nil {
		h.abort(pid)
		return nil, startError(c, err)
	}
	p.started, p.oomBase = started, base
	ctx, cancel := context.WithCancel(context.Background()) // The engine's life is bound to no caller; Release ends it.
	p.release = cancel
	go p.watch(ctx)
	return p, nil
}

// start makes the process with these files, its nonce and its mark, and takes it for ours. It returns its pidfd too, or -1.
func (h *Host) start(c Command, files []uintptr) (pid, handle int, err error) {
	attributes := &syscall.ProcAttr{
		Dir:   c.Dir,
		Env:   c.environ(),
		Files: files,
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &handle},
	}
	handle = -1
	h.fork.Lock()
	defer h.fork.Unlock()
	err = marking(markOf(c.Nonce), func() error {
		pid, err = syscall.ForkExec(c.Executable, append([]string{c.Executable}, c.Args...), attributes)
		if err == nil {
			h.mu.Lock()
			h.own[pid] = struct{}{}
			h.mu.Unlock()
		}
		return err
	})
	return pid, handle, err
}

// check fills Dir and refuses a command that would start something else than meant.
func (c *Command) check() error {
	if c.Dir == "" {
		c.Dir = "/"
	}
	for _, f := range []struct{ name, path string }{{"executable", c.Executable}, {"log path", c.LogPath}, {"directory", c.Dir}} {
		if !filepath.IsAbs(f.path) {
			return fmt.Errorf("%s %q is not an absolute path", f.name, f.path)
		}
	}
	if c.Nonce == "" {
		return errors.New("no nonce")
	}
	return c.checkMarks()
}

// settle applies the limits to a fresh child and takes its identity.
func (h *Host) settle(c Command, pid, handle int) (*Process, error) {
	if handle < 0 {
		return nil, errors.New("the kernel gave no pidfd")
	}
	fd, err := newPidfd(handle)
	if err != nil {
		return nil, err
	}
	p := &Process{
		host: h, fd: fd, child: true, done: make(chan struct{}), watched: make(chan struct{}), known: map[int]uint64{},
		id: Identity{BootID: h.bootID, PID: pid, Executable: c.Executable, Nonce: c.Nonce},
	}
	st, err := readStat(pid)
	if err == nil {
		err = limit(c, pid)
	}
	if err != nil {
		fd.close()
		return nil, err
	}
	p.id.StartTicks = st.StartTicks
	p.known[pid] = st.StartTicks
	p.id.Executable = p.Identity().Executable
	return p, nil
}

func limit(c Command, pid int) error {
	var core unix.Rlimit
	if c.CoreDumps == KeepCoreDumps {
		if err := unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &core); err != nil {
			return fmt.Errorf("read core limit: %w", err)
		}
		core.Cur = core.Max
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_CORE, &core, nil); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("set core limit: %w", err)
	}
	if c.OOMScoreAdj == 0 {
		return nil
	}
	if err := os.WriteFile(procPath(pid, "oom_score_adj"), []byte(strconv.Itoa(c.OOMScoreAdj)), 0); err != nil {
		return fmt.Errorf("set oom score: %w", err)
	}
	return nil
}

// abort ends a child that could not be settled and collects it. Its pid is safe to use: nobody else collects it.
func (h *Host) abort(pid int) {
	_ = unix.Kill(-pid, unix.SIGKILL)
	for {
		if _, err := unix.Wait4(pid, nil, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	h.disown(pid)
}

func startError(c Command, err error) error {
	why := reason.WorkerStartFailed
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		why = reason.DiskFull
	}
	return reason.New(why, "start engine "+c.Executable, reason.Cause(err), reason.Meta("executable", c.Executable),
		reason.Remedy("see that it is a program for this machine, and that the state directory has room"))
}
