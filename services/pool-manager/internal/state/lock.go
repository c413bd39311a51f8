// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

const lockName = "lock"

// ErrLocked is what a *LockedError is.
var ErrLocked = errors.New("state directory is in use")

// LockedError says that another program has the state directory.
type LockedError struct {
	Path string // of the lock file.
	PID  int    // who has it; 0 if it has not said so.
}

// Error names the file and the holder, and says what to do.
func (e *LockedError) Error() string {
	return fmt.Sprintf("%s: %s is locked by pid %d: end that program, or use another state directory", ErrLocked, e.Path, e.PID)
}

// Is makes a LockedError an ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// lock is held as long as its file is open. The descriptor is close-on-exec: an engine must not inherit the lock.
type lock struct {
	file *os.File
}

func acquire(path string) (*lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		text, _ := io.ReadAll(io.LimitReader(f, 32))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return nil, errors.Join(&LockedError{Path: path, PID: pid}, f.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	if err := f.Truncate(0); err == nil {
		// The pid is for people; the lock holds without it.
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &lock{file: f}, nil
}

func (l *lock) release() { _ = l.file.Close() }
