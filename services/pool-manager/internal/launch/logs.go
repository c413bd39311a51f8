// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// logsOfUndone is how many logs of other starts stay when a start is undone: the replica may go on to be what an older
// start has made of it.
const logsOfUndone = 8

// newLog makes the folder of a pool's logs and returns where the log of this start goes, where nothing is yet. The logs
// of other starts stay.
func (l *Launcher) newLog(request Request) (string, error) {
	dir := filepath.Join(l.config.LogDir, string(request.Pool))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", storageError("make the folder for logs", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("%d-%d.log", request.Index, request.Generation))
	return path, removeLog(path)
}

// removeLog removes the log of a start, with what was trimmed from it.
func removeLog(path string) error {
	return removeFiles(filepath.Dir(path), func(name string) bool { return strings.HasPrefix(name, filepath.Base(path)) })
}

// keepLogs removes the logs of a replica's starts but the one at path and the newest others.
func keepLogs(path string, others int) error {
	dir, own := filepath.Split(path)
	index, _, _ := strings.Cut(own, "-")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return storageError("look for logs", err)
	}
	var generations []uint64
	for _, entry := range entries {
		if name := entry.Name(); strings.HasPrefix(name, index+"-") && !strings.HasPrefix(name, own) {
			generations = append(generations, generationOf(name))
		}
	}
	slices.Sort(generations)
	generations = slices.Compact(generations)
	old := generations[:max(0, len(generations)-others)]
	return removeFiles(dir, func(name string) bool {
		return strings.HasPrefix(name, index+"-") && !strings.HasPrefix(name, own) && slices.Contains(old, generationOf(name))
	})
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

// settleLogs removes logs of other starts now that it is known what became of this one. What cannot be removed is in the
// way of nothing.
func (e *Engine) settleLogs(others int) {
	if err := keepLogs(e.info.LogPath, others); err != nil {
		e.launcher.config.Logger.Warn("old logs were not removed", zap.String("pool_id", string(e.request.Pool)),
			zap.String("replica_id", string(e.request.Replica)), zap.Error(err))
	}
}

// DeleteLogs removes every log of a pool. Nothing of the pool may run.
func (l *Launcher) DeleteLogs(pool registry.PoolID) error {
	if err := os.RemoveAll(filepath.Join(l.config.LogDir, string(pool))); err != nil {
		return storageError("remove logs", err)
	}
	return nil
}

// forgetLogs removes the logs of every pool. One that cannot be removed is in the way of nothing.
func (l *Launcher) forgetLogs() {
	entries, err := os.ReadDir(l.config.LogDir)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	removed := 0
	for _, entry := range entries {
		if removeErr := l.DeleteLogs(registry.PoolID(entry.Name())); removeErr != nil {
			err = errors.Join(err, removeErr)
			continue
		}
		removed++
	}
	switch {
	case err != nil:
		l.config.Logger.Warn("logs of an earlier manager were not removed", zap.Error(err))
	case removed > 0:
		l.config.Logger.Info("logs of an earlier manager were removed", zap.Int("pools", removed))
	}
}
