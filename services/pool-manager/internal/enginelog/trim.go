// SPDX-License-Identifier: Apache-2.0

package enginelog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// OldSuffix is added to the path of a log for what was trimmed from it.
const OldSuffix = ".1"

// Keeper keeps the log of one engine small.
type Keeper struct {
	Path     string
	MaxBytes int64         // size above which the log is trimmed; zero is 64 MiB.
	Every    time.Duration // how often the size is looked at; zero is 5 s.
}

// Run trims the log whenever it is found too large, until ctx ends, which is nil, or a trim fails. Disk taken is at most
// twice MaxBytes plus what the engine writes in Every.
func (k Keeper) Run(ctx context.Context) error {
	every := k.Every
	if every == 0 {
		every = 5 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := k.Trim(time.Now()); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Trim moves the content of a log larger than MaxBytes to path.1, in place of what was there, and empties the log: the
// engine holds the file open and goes on appending to it. The first line then says so, with the time. What the engine
// writes between the last reading and the emptying is lost, which that line says too. On a full disk the old content is
// given up. It tells whether it trimmed; an error before that leaves the log as it was.
func (k Keeper) Trim(now time.Time) (bool, error) {
	limit := k.MaxBytes
	if limit == 0 {
		limit = 64 << 20
	}
	info, err := os.Stat(k.Path)
	if err != nil {
		return false, fmt.Errorf("trim log: %w", err)
	}
	if info.Size() <= limit {
		return false, nil
	}
	f, err := os.OpenFile(k.Path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return false, fmt.Errorf("trim log: %w", err)
	}
	defer f.Close()
	moved, err := k.moveOld(f, limit)
	if err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return false, fmt.Errorf("trim log %s: %w", k.Path, err)
	}
	if err := f.Truncate(0); err != nil {
		return false, fmt.Errorf("trim log: %w", err)
	}
	_, err = fmt.Fprintf(f, "[roundhouse %s: log trimmed, its last %d bytes are in %s; lines written at this moment may be lost]\n",
		now.UTC().Format(time.RFC3339Nano), moved, k.Path+OldSuffix)
	if err != nil {
		return true, fmt.Errorf("mark trimmed log: %w", err)
	}
	return true, nil
}

// moveOld copies the last limit bytes of the log to where old content goes, and returns their number.
func (k Keeper) moveOld(f *os.File, limit int64) (moved int64, err error) {
	temp := k.Path + OldSuffix + ".tmp"
	old, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() {
		if closeErr := old.Close(); err == nil {
			err = closeErr
		}
		if err == nil {
			err = os.Rename(temp, k.Path+OldSuffix)
		}
		if err != nil {
			moved = 0
			_ = os.Remove(temp)
		}
	}()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, err
	}
	if _, err := f.Seek(max(0, end-limit), io.SeekStart); err != nil {
		return 0, err
	}
	return io.Copy(old, f)
}
