// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Disk is a small file system of its own.
type Disk struct {
	// Path is where it is mounted.
	Path string
}

// NewDisk makes a file system of some size, such as 64k, that goes with the test. It needs the right to mount.
func NewDisk(tb testing.TB, size string) Disk {
	tb.Helper()
	dir, err := os.MkdirTemp("", "rhdisk") //nolint:usetesting // it must outlast the node, and its path must be short
	if err != nil {
		tb.Fatal(err)
	}
	disk := Disk{Path: dir}
	if err := unix.Mount("roundhouse-test", dir, "tmpfs", 0, "mode=0755,size="+size); err != nil {
		_ = os.Remove(dir)
		tb.Fatalf("mount a disk of %s: %v: run this test as root", size, err)
	}
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			tb.Errorf("unmount %s: %v", dir, err)
		}
		if err := os.Remove(dir); err != nil {
			tb.Errorf("remove %s: %v", dir, err)
		}
	})
	return disk
}

// Free is the room that is left, in bytes.
func (d Disk) Free(tb testing.TB) int64 {
	tb.Helper()
	var stat unix.Statfs_t
	if err := unix.Statfs(d.Path, &stat); err != nil {
		tb.Fatal(err)
	}
	return int64(stat.Bavail) * stat.Bsize
}

// Resize changes the size.
func (d Disk) Resize(tb testing.TB, size string) {
	tb.Helper()
	d.remount(tb, 0, "size="+size)
}

// SetReadOnly lets nobody write any more, not even root. Nobody may have a file open for writing.
func (d Disk) SetReadOnly(tb testing.TB) {
	tb.Helper()
	d.remount(tb, unix.MS_RDONLY, "")
}

func (d Disk) remount(tb testing.TB, flags uintptr, data string) {
	tb.Helper()
	if err := unix.Mount("", d.Path, "", unix.MS_REMOUNT|flags, data); err != nil {
		tb.Fatalf("remount %s: %v", d.Path, err)
	}
}

// Cover hides a folder behind an empty one in which nobody can write, not even root. The returned function takes it back.
func Cover(tb testing.TB, dir string) (uncover func()) {
	tb.Helper()
	if err := unix.Mount("roundhouse-test", dir, "tmpfs", unix.MS_RDONLY, "size=4k"); err != nil {
		tb.Fatalf("cover %s: %v: run this test as root", dir, err)
	}
	uncover = sync.OnceFunc(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			tb.Errorf("uncover %s: %v", dir, err)
		}
	})
	tb.Cleanup(uncover)
	return uncover
}
