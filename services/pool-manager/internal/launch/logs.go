// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/enginelog"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// logsOfUndone is how many logs of other starts stay when a start is undone: the replica may go on to be what an older
// start has made of it.
const logsOfUndone = 8

// FileLogs are logs in files, in a folder for each pool.
type FileLogs struct {
	dir string
}

// NewFileLogs returns the logs below an absolute folder. It makes nothing.
func NewFileLogs(dir string) (*FileLogs, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("launch: log folder %q is not an absolute path", dir)
	}
	return &FileLogs{dir: dir}, nil
}

// Begin makes the folder of the pool and removes what a start of the same name has left.
func (f *FileLogs) Begin(pool registry.PoolID, index int, generation uint64) (string, error) {
	dir := filepath.Join(f.dir, string(pool))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", storageError("make the folder for logs", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("%d-%d.log", index, generation))
	return path, f.Remove(path)
}

// Remove removes the log of a start, with what was trimmed from it.
func (f *FileLogs) Remove(path string) error {
	return removeFiles(filepath.Dir(path), func(name string) bool { return strings.HasPrefix(name, filepath.Base(path)) })
}

// Settle removes the logs of a replica's starts but the one at path, those in use and the newest others.
func (f *FileLogs) Settle(path string, others int, inUse func(path string) bool) error {
	dir, own := filepath.Split(path)
	index, _, _ := strings.Cut(own, "-")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return storageError("look for logs", err)
	}
	old := func(name string) bool {
		return strings.HasPrefix(name, index+"-") && !strings.HasPrefix(name, own) && !inUse(logOf(dir, name))
	}
	var generations []uint64
	for _, entry := range entries {
		if old(entry.Name()) {
			generations = append(generations, generationOf(entry.Name()))
		}
	}
	slices.Sort(generations)
	generations = slices.Compact(generations)
	gone := generations[:max(0, len(generations)-others)]
	return removeFiles(dir, func(name string) bool { return old(name) && slices.Contains(gone, generationOf(name)) })
}

// logOf returns the log that a file of the folder is, or was trimmed from.
func logOf(dir, name string) string {
	base, _, _ := strings.Cut(name, ".log")
	return filepath.Join(dir, base+".log")
}

// generationOf reads the name of a log; 0, which is none, if it is not one of ours.
func generationOf(name string) uint64 {
	_, rest, _ := strings.Cut(name, "-")
	digits, _, _ := strings.Cut(rest, ".")
	generation, _ := strconv.ParseUint(digits, 10, 64)
	return generation
}

// removeFiles removes the files of a folder whose names match, as many as it can.
func removeFiles(dir string, match func(name string) bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return storageError("look for logs", err)
	}
	for _, entry := range entries {
		if !match(entry.Name()) {
			continue
		}
		if removeErr := os.Remove(filepath.Join(dir, entry.Name())); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, storageError("remove a log", removeErr))
		}
	}
	return err
}

// Pools returns the pools that have a folder, by name.
func (f *FileLogs) Pools() ([]registry.PoolID, error) {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, storageError("look for logs", err)
	}
	pools := make([]registry.PoolID, len(entries))
	for i, entry := range entries {
		pools[i] = registry.PoolID(entry.Name())
	}
	return pools, nil
}

// RemovePool removes the folder of a pool with all that is in it.
func (f *FileLogs) RemovePool(pool registry.PoolID) error {
	if err := os.RemoveAll(filepath.Join(f.dir, string(pool))); err != nil {
		return storageError("remove logs", err)
	}
	return nil
}

// Tail returns the last n lines, as enginelog does.
func (f *FileLogs) Tail(path string, n int) ([]string, error) {
	tail, err := enginelog.Tail(path, n)
	if err != nil {
		return nil, err
	}
	lines := make([]string, len(tail))
	for i, line := range tail {
		lines[i] = line.Text
	}
	return lines, nil
}

// Size is of what was not trimmed.
func (f *FileLogs) Size(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, fmt.Errorf("look at log: %w", err)
	}
	return info.Size(), nil
}

// Follow calls line until ctx ends, which is nil. It takes one inotify instance.
func (f *FileLogs) Follow(ctx context.Context, path string, line func(text string)) error {
	return enginelog.Follow(ctx, path, 0, func(l enginelog.Line) error {
		line(l.Text)
		return nil
	})
}

// Keep trims the log whenever it is too large, as enginelog does.
func (f *FileLogs) Keep(ctx context.Context, path string) error {
	return (enginelog.Keeper{Path: path}).Run(ctx)
}

// holdLog keeps a log from being removed to make room, while its engine may run, until dropLog.
func (l *Launcher) holdLog(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.logs[path] = true
}

func (l *Launcher) dropLog(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.logs, path)
}

func (l *Launcher) logInUse(path string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.logs[path]
}

// settleLogs removes logs of other starts now that it is known what became of this one. What cannot be removed is in the
// way of nothing.
func (e *Engine) settleLogs(others int) {
	if err := e.launcher.config.Logs.Settle(e.info.LogPath, others, e.launcher.logInUse); err != nil {
		e.launcher.config.Logger.Warn("old logs were not removed", zap.String("pool_id", string(e.request.Pool)),
			zap.String("replica_id", string(e.request.Replica)), zap.Error(err))
	}
}

// DeleteLogs removes every log of a pool. Nothing of the pool may run.
func (l *Launcher) DeleteLogs(pool registry.PoolID) error { return l.config.Logs.RemovePool(pool) }

// KeepOnly removes the logs of every other pool. One that cannot be removed is in the way of nothing.
func (l *Launcher) KeepOnly(pools map[registry.PoolID]bool) {
	found, err := l.config.Logs.Pools()
	removed := 0
	for _, pool := range found {
		if pools[pool] {
			continue
		}
		if removeErr := l.config.Logs.RemovePool(pool); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		removed++
	}
	if err != nil {
		l.config.Logger.Warn("logs of forgotten pools were not removed", zap.Error(err))
	}
	if removed > 0 {
		l.config.Logger.Info("logs of forgotten pools were removed", zap.Int("pools", removed))
	}
}
