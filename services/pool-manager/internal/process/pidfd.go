// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// signalGroup makes a signal sent through a pidfd go to the process group that the process leads or led
// (PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9).
const signalGroup = 1 << 2

// pidfd is a hold on one process that never comes to mean another, whatever becomes of its pid.
type pidfd struct {
	file *os.File
	raw  syscall.RawConn
}

// openPidfd takes a hold on the process that is at pid now; ErrGone if there is none.
func openPidfd(pid int) (*pidfd, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: the number now names a thread.
		return nil, fmt.Errorf("%w: pid %d", ErrGone, pid)
	}
	if err != nil {
		return nil, fmt.Errorf("open pidfd of %d: %w", pid, err)
	}
	return newPidfd(fd)
}

// newPidfd takes over the descriptor fd, whose waits then park a goroutine and no thread.
func newPidfd(fd int) (*pidfd, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("prepare pidfd: %w", err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("prepare pidfd: %w", err)
	}
	return &pidfd{file: file, raw: raw}, nil
}

// wait blocks until the process has exited, which is nil, or until ctx ends, which is its cause. One waiter at a time.
func (p *pidfd) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var exited bool
	err := p.raw.Read(func(fd uintptr) bool {
		exited = hasExited(int(fd))
		return exited || ctx.Err() != nil
	})
	switch {
	case exited:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return fmt.Errorf("wait on pidfd: %w", err)
	}
}

func hasExited(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return n == 1
		}
	}
}

// exited tells whether the process has exited, reaped or not.
func (p *pidfd) exited() bool {
	var exited bool
	err := p.raw.Control(func(fd uintptr) { exited = hasExited(int(fd)) })
	return err == nil && exited
}

// signal sends sig to the process, or with flags signalGroup to its group; ErrGone if nobody is there to get it.
func (p *pidfd) signal(sig syscall.Signal, flags int) error {
	var sent error
	if err := p.raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, flags) }); err != nil {
		return fmt.Errorf("signal %v: %w", sig, err)
	}
	if errors.Is(sent, unix.ESRCH) {
		return ErrGone
	}
	if sent != nil {
		return fmt.Errorf("signal %v: %w", sig, sent)
	}
	return nil
}

func (p *pidfd) close() { _ = p.file.Close() }
