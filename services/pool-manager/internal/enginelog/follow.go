// SPDX-License-Identifier: Apache-2.0

package enginelog

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Follow calls emit for each line from offset on, as soon as it is written, until ctx ends or emit fails. When ctx
// ends it emits what was written until then, an unfinished last line too, and returns nil: a caller that cancels once
// the engine has exited misses nothing. An error of emit is returned as it is, and ends it at once. The file must exist.
// Each call takes one inotify instance of the user's limit.
func Follow(ctx context.Context, path string, offset int64, emit func(Line) error) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	defer f.Close()
	w, err := watch(path)
	if err != nil {
		return fmt.Errorf("follow log: %w", err)
	}
	defer w.Close()
	stop := context.AfterFunc(ctx, func() { _ = w.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	r := reader{file: f, next: offset}
	events := make([]byte, 4096)
	for {
		ended := ctx.Err() != nil // Looked at before reading, so that the last reading comes after the end.
		if err := r.drain(emit); err != nil {
			return err
		}
		if ended {
			if l, ok := r.rest(); ok {
				return emit(l)
			}
			return nil
		}
		if _, err := w.Read(events); err != nil && ctx.Err() == nil {
			return fmt.Errorf("follow log %s: %w", path, err)
		}
	}
}

// watch returns a file that can be read whenever the file at path was written or truncated.
func watch(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("create inotify instance (see fs.inotify.max_user_instances): %w", err)
	}
	w := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	return w, nil
}
