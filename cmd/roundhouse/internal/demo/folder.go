// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// folderPrefix begins the name of every run's folder.
	folderPrefix = "roundhouse-demo-"
	// unready ends the name of a folder whose lock is not held yet.
	unready = ".new"
	// lockName is the file in a run's folder that the run holds locked. Pool managers have one of that name in their state.
	lockName = "lock"
	// stateName is the pool manager's state in a run's folder.
	stateName = "state"
)

// folder is the folder of one run. From the moment it has its name its lock is held, until the run ends or is killed.
type folder struct {
	path string
	lock *os.File
}

// newFolder makes an empty folder in parent.
func newFolder(parent string) (folder, error) {
	early, err := os.MkdirTemp(parent, folderPrefix+"*"+unready)
	if err != nil {
		return folder{}, err
	}
	lock, err := os.OpenFile(filepath.Join(early, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return folder{}, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return folder{}, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	path := strings.TrimSuffix(early, unready)
	return folder{path: path, lock: lock}, os.Rename(early, path)
}

// keep makes the folder one that nobody removes.
func (f folder) keep() error {
	if err := os.Remove(filepath.Join(f.path, lockName)); err != nil {
		return fmt.Errorf("keep %s: %w", f.path, err)
	}
	return f.lock.Close()
}

// remove deletes the folder with all that is in it.
func (f folder) remove() error {
	if err := os.RemoveAll(f.path); err != nil {
		return fmt.Errorf("remove %s: %w", f.path, err)
	}
	return f.lock.Close()
}

// sweep removes the folders in parent of this user's runs that were killed, and names them. What cannot be removed stays.
func sweep(parent string) (removed []string) {
	for name := range names(parent) {
		path := filepath.Join(parent, name)
		if strings.HasPrefix(name, folderPrefix) && !strings.HasSuffix(name, unready) && abandoned(path) && os.RemoveAll(path) == nil {
			removed = append(removed, path)
		}
	}
	return removed
}

// abandoned tells whether a run's folder has a lock that its run does not hold any more, and no pool manager that ends.
func abandoned(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(owner.Uid) != os.Geteuid() {
		return false
	}
	lock := filepath.Join(path, lockName)
	if _, err := os.Lstat(lock); err != nil {
		return false
	}
	return !held(lock) && !held(filepath.Join(path, stateName, lockName))
}
