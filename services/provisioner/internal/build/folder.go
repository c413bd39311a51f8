// SPDX-License-Identifier: Apache-2.0

package build

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// ownName is the folder, in a build folder, of what is not cmake's.
const ownName = ".roundhouse"

// folder is a build folder.
type folder struct{ path string }

// openFolder makes the folders of a build. It refuses a folder that holds something else than a build.
func openFolder(path, ccache string) (*folder, error) {
	d := &folder{path}
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, storage("open build folder", err)
	}
	if _, err := os.Stat(d.own()); err != nil && len(entries) > 0 {
		return nil, storage("open build folder", fmt.Errorf("%s holds files that are no build's", path))
	}
	if err := os.RemoveAll(d.temp()); err != nil {
		return nil, storage("clear build folder", err)
	}
	for _, dir := range []string{d.home(), d.temp(), ccache} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, storage("make build folder", err)
		}
	}
	return d, nil
}

func (d *folder) own() string    { return filepath.Join(d.path, ownName) }
func (d *folder) home() string   { return filepath.Join(d.own(), "home") }
func (d *folder) temp() string   { return filepath.Join(d.own(), "tmp") }
func (d *folder) recipe() string { return filepath.Join(d.own(), "recipe") }

// configured tells whether the folder was configured to its end with this fingerprint.
func (d *folder) configured(fingerprint string) bool {
	was, err := os.ReadFile(d.recipe())
	_, ninja := os.Stat(filepath.Join(d.path, "build.ninja"))
	return err == nil && ninja == nil && string(was) == fingerprint
}

// clear removes all that cmake and ninja left. The fingerprint goes first.
func (d *folder) clear() error {
	if err := os.Remove(d.recipe()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return storage("clear build folder", err)
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return storage("clear build folder", err)
	}
	for _, e := range entries {
		if e.Name() == ownName {
			continue
		}
		if err := os.RemoveAll(filepath.Join(d.path, e.Name())); err != nil {
			return storage("clear build folder", err)
		}
	}
	return nil
}

// keep records that the folder was configured. A torn record is no fingerprint, and is configured again.
func (d *folder) keep(fingerprint string) error {
	if err := os.WriteFile(d.recipe(), []byte(fingerprint), 0o600); err != nil {
		return storage("record recipe", err)
	}
	return nil
}

// close removes what compilers left in their temporary folder.
func (d *folder) close() error {
	if err := os.RemoveAll(d.temp()); err != nil {
		return storage("clear build folder", err)
	}
	return nil
}

// storage is StorageFailed, or DiskFull when that is why.
func storage(attempt string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull(attempt, err)
	}
	return reason.New(reason.StorageFailed, attempt, reason.Cause(err),
		reason.Remedy("check permissions and health of the file system that holds the store, and that nobody else writes to its builds"))
}
