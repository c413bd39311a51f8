// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// markerName is the file that says that a checkout is whole. Its first word is the form of the folder.
const markerName = "complete"

func markerLine(commit string) string { return "1 " + commit + "\n" }

// empty makes dir an empty folder. The marker goes first.
func empty(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, markerName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// seal writes the marker after everything else has reached the disk, so that it holds across a power failure.
func seal(dir, commit string) error {
	d, err := os.Open(dir)
	if err != nil {
		return storage("seal checkout", err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return storage("write checkout to disk", err)
	}
	temp := filepath.Join(dir, markerName+".new")
	if err := writeSynced(temp, markerLine(commit)); err != nil {
		return storage("seal checkout", err)
	}
	if err := os.Rename(temp, filepath.Join(dir, markerName)); err != nil {
		return storage("seal checkout", err)
	}
	if err := d.Sync(); err != nil {
		return storage("seal checkout", err)
	}
	return nil
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, werr := f.WriteString(text)
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
