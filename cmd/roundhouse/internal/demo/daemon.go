// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// The daemons' programs.
const (
	provisionerProgram = "engine-provisioner"
	poolManagerProgram = "pool-managerd"
)

const (
	// stopTimeout is how long a daemon may take to end: longer than its own limit of 10 s for calls under way.
	stopTimeout = 20 * time.Second
	// tailLines is how much of a daemon's log a failure shows.
	tailLines = 20
	// tailBytes bounds how much of the log is read for that.
	tailBytes = 64 << 10
)

// daemonPaths are the programs to start.
type daemonPaths struct{ provisioner, poolManager string }

// findDaemons looks in dir and then in PATH, and names everything that is in neither.
func findDaemons(dir string) (daemonPaths, error) {
	var missing []string
	find := func(program string) string {
		beside := filepath.Join(dir, program)
		if path, err := exec.LookPath(beside); err == nil {
			return path
		}
		path, err := exec.LookPath(program)
		if err != nil {
			missing = append(missing, program)
		}
		return path
	}
	paths := daemonPaths{provisioner: find(provisionerProgram), poolManager: find(poolManagerProgram)}
	if len(missing) > 0 {
		return daemonPaths{}, reason.New(reason.ToolMissing,
			fmt.Sprintf("%s: neither in %s nor in PATH", strings.Join(missing, " and "), dir),
			reason.Remedy("build them with `make build`, or put them beside this program"))
	}
	return paths, nil
}

// daemon is a running program of ours. It has its own process group, so that a Ctrl-C of the terminal does not reach it.
type daemon struct {
	name    string
	log     string
	process *os.Process
	// done is closed when the program has ended and state is set.
	done  chan struct{}
	state *os.ProcessState
}

// start runs a program with its output in a log file of the stage. If this process is killed, the program is asked to
// end, as by stop. The stage's keeper must have been started.
func (s *stage) start(name, path string, args ...string) (*daemon, error) {
	d := &daemon{name: name, log: s.path(name + ".log"), done: make(chan struct{})}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own
	command := exec.Command(path, args...)
	command.Stdout, command.Stderr = log, log
	command.Env = append(os.Environ(), "TMPDIR="+s.path("tmp"))
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		return nil, reason.New(reason.ToolMissing, fmt.Sprintf("%s cannot be started", path),
			reason.Remedy("build it again with `make build`"), reason.Cause(err))
	}
	d.process = command.Process
	go func() { // ended by the process's end, which stop waits for
		defer close(d.done)
		_ = command.Wait() // the state tells more than the error
		d.state = command.ProcessState
	}()
	return d, s.keeper.mind(d.process.Pid)
}

// stop ends the program: a request first, force after stopTimeout or when ctx ends. It returns when the program is gone
// and tells whether force was needed.
func (d *daemon) stop(ctx context.Context) (forced bool) {
	if d == nil {
		return false
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	_ = d.process.Signal(syscall.SIGTERM) // it may have ended already
	select {
	case <-d.done:
		return false
	case <-ctx.Done():
	case <-timer.C:
	}
	_ = d.process.Kill()
	<-d.done
	return true
}

// ended is an error if the program has ended, which it must not before it is stopped.
func (d *daemon) ended() error {
	select {
	case <-d.done:
		return reason.New(reason.Internal, fmt.Sprintf("%s has ended by itself: %s", d.name, d.state),
			reason.Remedy("see its last words above"))
	default:
		return nil
	}
}

// whileAlive runs action and ends it early if the program ends.
func (d *daemon) whileAlive(ctx context.Context, action func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // ended by the return of this function
		select {
		case <-d.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := action(ctx)
	if err != nil {
		if ended := d.ended(); ended != nil {
			return ended
		}
	}
	return err
}

// logTails are the last words of both daemons.
func (s *stage) logTails() string {
	var text strings.Builder
	for _, d := range []*daemon{s.provisioner, s.poolManager} {
		if d == nil {
			continue
		}
		fmt.Fprintf(&text, "last words of %s:\n", d.name)
		for _, line := range tail(d.log) {
			fmt.Fprintf(&text, "  %s\n", line)
		}
	}
	return text.String()
}

// tail is the last lines of a file; a file that cannot be read has none.
func tail(path string) []string {
	file, err := os.Open(path)
	if err != nil {
		return []string{err.Error()}
	}
	defer func() { _ = file.Close() }() // only read
	info, err := file.Stat()
	if err != nil {
		return []string{err.Error()}
	}
	data := make([]byte, min(info.Size(), tailBytes))
	n, _ := file.ReadAt(data, info.Size()-int64(len(data))) // what was read is shown
	lines := strings.Split(string(bytes.TrimSpace(data[:n])), "\n")
	return lines[max(0, len(lines)-tailLines):]
}
