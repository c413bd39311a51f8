// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"time"
)

// A lock held by another process is tried again after firstLockRetry, growing to lastLockRetry: the wait of a second
// process is for a download or a build, so its delay is small against what it waits for.
const (
	firstLockRetry = 2 * time.Millisecond
	lastLockRetry  = 100 * time.Millisecond
)

// locks excludes the callers of one name: those of this process by a channel, so that they wait without waking up, and
// other processes by a file lock.
type locks struct {
	dir string
	fs  FS

	// mu guards slots and the callers count of each slot. It is never held while waiting or during disk operations.
	mu    sync.Mutex
	slots map[string]*slot
}

type slot struct {
	turn    chan struct{} // holds one token while a caller of this process has the lock
	callers int
}

// acquire blocks until the caller holds name, ctx is done (its cause is returned) or the lock file cannot be used.
// release must be called exactly once.
func (l *locks) acquire(ctx context.Context, name string) (release func(), err error) {
	s := l.join(name)
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		l.leave(name, s)
		return nil, fmt.Errorf("wait for %s: %w", name, context.Cause(ctx))
	}
	file, err := l.acquireFile(ctx, name)
	if err != nil {
		<-s.turn
		l.leave(name, s)
		return nil, err
	}
	return func() {
		_ = file.Close()
		<-s.turn
		l.leave(name, s)
	}, nil
}

func (l *locks) join(name string) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.slots[name]
	if s == nil {
		s = &slot{turn: make(chan struct{}, 1)}
		l.slots[name] = s
	}
	s.callers++
	return s
}

func (l *locks) leave(name string, s *slot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s.callers--
	if s.callers == 0 {
		delete(l.slots, name)
	}
}

func (l *locks) acquireFile(ctx context.Context, name string) (io.Closer, error) {
	path := filepath.Join(l.dir, fileName(name)+".lock")
	for delay := firstLockRetry; ; delay = min(2*delay, lastLockRetry) {
		file, err := l.fs.TryLock(path)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, ErrLocked) {
			return nil, diskError("lock "+name, path, 0, err)
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("wait for another process to release %s: %w", name, context.Cause(ctx))
		}
	}
}

// fileName turns any text into one short path element.
func fileName(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:16])
}
