// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// KeeperCommand is the command of this program that runs Keep. A demo starts it and finds it by this name.
const KeeperCommand = "demo-keeper"

// Keep is told the pids of its parent's children, one a line. At the end of in, which comes with the parent's end however
// that comes about, it asks each of them to end, once, and returns. A process that is no child of the parent is left alone.
//
// The kernel would tell a child of its parent's death too, but once for each thread of the parent, and a daemon takes the
// second request for impatience and leaves its engines behind.
func Keep(in io.Reader) error {
	var kept []int
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		handle, err := openSibling(lines.Text())
		if err != nil {
			return err
		}
		kept = append(kept, handle)
	}
	errs := []error{lines.Err()}
	for _, handle := range kept {
		if err := unix.PidfdSendSignal(handle, unix.SIGTERM, nil, 0); !errors.Is(err, unix.ESRCH) { // it may have ended already
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// openSibling is a handle of a process whose parent is ours. The handle is taken first and the parentage looked at after.
func openSibling(text string) (handle int, err error) {
	pid, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("read pid %q: %w", text, err)
	}
	handle, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, fmt.Errorf("open process %d: %w", pid, err)
	}
	stat, err := os.ReadFile(filepath.Join("/proc", text, "stat"))
	if err != nil {
		return 0, fmt.Errorf("read process %d: %w", pid, err)
	}
	if sibling, _ := parseStat(pid, string(stat)); sibling.parent != os.Getppid() {
		return 0, fmt.Errorf("keep process %d: it is no child of process %d", pid, os.Getppid())
	}
	return handle, nil
}

// keeper is a process that runs Keep for this one. It has its own process group, so that what ends this process by its
// group does not reach it.
type keeper struct {
	command *exec.Cmd
	pids    io.WriteCloser
}

func startKeeper() (*keeper, error) {
	k := &keeper{command: exec.Command("/proc/self/exe", KeeperCommand)}
	k.command.Args[0] = KeeperCommand
	k.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if k.pids, err = k.command.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	if err := k.command.Start(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	return k, nil
}

// mind makes the keeper end a child of this process when this process has ended.
func (k *keeper) mind(pid int) error {
	if _, err := fmt.Fprintln(k.pids, pid); err != nil {
		return fmt.Errorf("tell keeper of process %d: %w", pid, err)
	}
	return nil
}

// end ends the keeper. What it minds must have ended before.
func (k *keeper) end() {
	if k == nil {
		return
	}
	_ = k.pids.Close()   // it ends by that
	_ = k.command.Wait() // what it could not end the audit finds
}
