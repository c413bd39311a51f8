// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"io/fs"
	"syscall"
)

// Stamp tells, without reading it, whether a file still is what it was: the kernel sets the time of change at every write,
// also at one after which the other times are set back. Equal stamps are of one file that nobody wrote to in between, as
// far as the clock of its file system can tell. A copy of a file, also one from a backup, has another stamp.
type Stamp struct {
	SizeBytes    int64  `json:"size_bytes"`
	ModifiedNano int64  `json:"modified_unix_nano"`
	ChangedNano  int64  `json:"changed_unix_nano"`
	Inode        uint64 `json:"inode"`
}

// StampOf returns the stamp of a file.
func StampOf(info fs.FileInfo) Stamp {
	stamp := Stamp{SizeBytes: info.Size(), ModifiedNano: info.ModTime().UnixNano()}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		stamp.ChangedNano, stamp.Inode = stat.Ctim.Nano(), stat.Ino
	}
	return stamp
}

// String is different for different stamps.
func (s Stamp) String() string {
	return fmt.Sprintf("inode=%d size=%d modified=%d changed=%d", s.Inode, s.SizeBytes, s.ModifiedNano, s.ChangedNano)
}
