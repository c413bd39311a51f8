// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// CodeUnknown is the Code of a root that died by a signal or whose status could not be had, because an earlier
// manager started it.
const CodeUnknown = -1

// ExitStatus is how the root of a tree ended.
type ExitStatus struct {
	Code       int            // exit code, or CodeUnknown.
	Signal     syscall.Signal // what killed it; 0 if nothing did or it is not known.
	CoreDumped bool
	OOMKilled  bool          // the kernel says that it killed the root, or with it a member, for lack of memory; never a guess.
	Uptime     time.Duration // from the start, on the monotonic clock; since Attach for an attached process.
	At         time.Time     // when the exit was seen.
}

// String says it in a word or two: "exit 1", "signal killed", "killed for lack of memory", "exit unknown".
func (e ExitStatus) String() string {
	switch {
	case e.OOMKilled:
		return "killed for lack of memory"
	case e.Signal != 0:
		return fmt.Sprintf("signal %v", e.Signal)
	case e.Code == CodeUnknown:
		return "exit unknown"
	default:
		return fmt.Sprintf("exit %d", e.Code)
	}
}

// Identity returns what to record of the process. Take it again once the engine is ready: a launcher that execs the
// engine changes the executable, and only the newest is recognised by Attach.
func (p *Process) Identity() Identity {
	id := p.id
	if exe, err := executableOf(id.PID); err == nil && !p.fd.exited() {
		id.Executable = exe
	} else if exe, err := filepath.EvalSymlinks(id.Executable); err == nil {
		id.Executable = exe
	}
	return id
}

// Done is closed once the root has exited and, for a child of this program, was collected. Members of its tree may
// live on; see Tree and Stop.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit returns how the root ended. Before Done is closed it returns the zero value.
func (p *Process) Exit() ExitStatus {
	select {
	case <-p.done:
		return p.exit
	default:
		return ExitStatus{}
	}
}

// Release gives up the hold without touching the process: Done is then not closed by a later exit, and the exit is
// not collected. It is for a manager that ends while its engines go on. Repeating it does nothing.
func (p *Process) Release() {
	p.release()
	<-p.watched
	p.fd.close()
}

// watch waits for the exit of the root, looks at what it leaves, and collects it. In this order the root's pid still
// names its session, so that no member is missed afterwards.
func (p *Process) watch(ctx context.Context) {
	defer close(p.watched)
	if err := p.fd.wait(ctx); err != nil {
		return
	}
	seen := p.members()
	p.exit = ExitStatus{Code: CodeUnknown, Uptime: time.Since(p.started), At: time.Now()}
	left, err := p.Tree()
	if p.child {
		p.collect()
	}
	if p.oomKilled(seen) {
		p.exit.OOMKilled, p.exit.Signal = true, syscall.SIGKILL
	}
	if err == nil && len(left) == 0 {
		p.fd.close()
	}
	close(p.done)
}

// collect takes the exit status of a child that has exited.
func (p *Process) collect() {
	var status unix.WaitStatus
	pid, err := unix.Wait4(p.id.PID, &status, 0, nil)
	for errors.Is(err, unix.EINTR) {
		pid, err = unix.Wait4(p.id.PID, &status, 0, nil)
	}
	p.host.disown(p.id.PID)
	switch {
	case err != nil || pid != p.id.PID:
	case status.Exited():
		p.exit.Code = status.ExitStatus()
	case status.Signaled():
		p.exit.Signal, p.exit.CoreDumped = status.Signal(), status.CoreDump()
	}
}
