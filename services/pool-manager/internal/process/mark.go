// SPDX-License-Identifier: Apache-2.0

package process

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// A start's mark is its soft limit of file locks (RLIMIT_LOCKS), which no kernel since Linux 2.4 looks at. Unlike the
// environment, the session and the parent, it stays with whatever the engine starts until somebody sets that very limit.

// markOf returns the mark of a start. Two starts have the same one as likely as 61 random bits agree.
func markOf(nonce string) uint64 {
	sum := sha256.Sum256([]byte(nonce))
	return binary.BigEndian.Uint64(sum[:])>>3 | 1<<61 // Below "unlimited", and far above what a person would set.
}

// limitOf returns the limit that may be the mark of a process; 0, which is none, if it may not be read, because the
// process is another user's.
func limitOf(pid int) uint64 {
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_LOCKS, nil, &limit); err != nil {
		return 0
	}
	return limit.Cur
}

// markable returns an error where a process with these limits of file locks cannot give marks.
func markable(locks unix.Rlimit) error {
	if locks.Max != unix.RLIM_INFINITY {
		return fmt.Errorf("the hard limit of file locks is %d: it has to be unlimited (ulimit -H -x)", locks.Max)
	}
	return nil
}

// marking calls fork while whatever this program starts gets the mark. Its own error means that fork was not called.
func marking(mark uint64, fork func() error) error {
	var before unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_LOCKS, nil, &before); err != nil {
		return fmt.Errorf("read limit of file locks: %w", err)
	}
	marked := unix.Rlimit{Cur: mark, Max: before.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_LOCKS, &marked, nil); err != nil {
		return fmt.Errorf("set limit of file locks: %w", err)
	}
	// What was in force before, under the same hard limit, is never refused.
	defer func() { _ = unix.Prlimit(0, unix.RLIMIT_LOCKS, &before, nil) }()
	return fork()
}
