// SPDX-License-Identifier: Apache-2.0

// Package trust decides whether a file may be executed: it lies below a configured root and has the digest that its
// preparation recorded.
//
// A Verifier remembers the digests of files that have not changed since, by device, inode, size and both change times,
// so that checking again costs microseconds. A file changed so recently that another change could bear the same times
// is hashed again next time. Between a check and the execution the file could be replaced by whoever may write to the
// root: roots must be writable by the provisioner only. A Verifier may be used by many goroutines; it stores nothing
// on disk.
package trust

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

const (
	// maxRemembered bounds the digests kept: a few engines have a few thousand files.
	maxRemembered = 32768
	// unsettled is how long after a change the times of a file cannot be told from those of a second change.
	unsettled = 50 * time.Millisecond
	// readBytes is how much is hashed between two looks at the context.
	readBytes = 1 << 20
)

// Config says what is trusted.
type Config struct {
	// Roots are absolute folders, at least one. Links in their paths are followed, once. One that is not there yet trusts
	// nothing until it is.
	Roots []string
}

// File is what should be there.
type File struct {
	Path      string // absolute.
	SHA256    string // 64 hexadecimal digits.
	SizeBytes int64
}

// Verifier checks files.
type Verifier struct {
	roots []string

	mu       sync.Mutex        // mu guards what follows.
	resolved map[string]string // root -> its path without links, once it was there.
	known    map[stamp]string  // state of a file -> its sha256.
}

// stamp tells one state of one file from all others.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// New returns a Verifier that trusts what is below the roots.
func New(c Config) (*Verifier, error) {
	if len(c.Roots) == 0 {
		return nil, errors.New("trusted roots: none given")
	}
	v := &Verifier{resolved: map[string]string{}, known: map[stamp]string{}}
	for _, root := range c.Roots {
		if !filepath.IsAbs(root) || filepath.Clean(root) == "/" {
			return nil, fmt.Errorf("trusted root %q: must be an absolute path and not /", root)
		}
		v.roots = append(v.roots, filepath.Clean(root))
	}
	return v, nil
}

// Check returns nil if the file may be executed, and blocks while it is hashed. The reason of the error is
// UntrustedArtifact if it is no regular file below a root, or has no recorded digest; DigestMismatch, with want and
// got, if it is another file than was prepared or is gone; StorageFailed if it cannot be read. The end of ctx is
// returned as its cause.
func (v *Verifier) Check(ctx context.Context, f File) error {
	if _, err := hex.DecodeString(f.SHA256); err != nil || len(f.SHA256) != 2*sha256.Size {
		return refuse(f.Path, "has no sha256 recorded")
	}
	if !filepath.IsAbs(f.Path) {
		return refuse(f.Path, "is not an absolute path")
	}
	fd, err := unix.Open(f.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // A FIFO must not block us.
	if errors.Is(err, fs.ErrNotExist) {
		return mismatch(f, "nothing", err)
	}
	if err != nil {
		return unreadable(f.Path, err)
	}
	defer unix.Close(fd)
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)) // Of what was opened, whatever the name means by now.
	if err != nil {
		return unreadable(f.Path, err)
	}
	if !v.below(real) {
		return refuse(f.Path, "is outside the trusted roots "+strings.Join(v.roots, ", "))
	}
	was, err := stampOf(fd)
	if err != nil {
		return refuse(f.Path, err.Error())
	}
	if was.size != f.SizeBytes {
		return mismatch(f, fmt.Sprintf("%d bytes instead of %d", was.size, f.SizeBytes), nil)
	}
	got, err := v.digest(ctx, fd, was)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("check %s: %w", f.Path, context.Cause(ctx))
		}
		return unreadable(f.Path, err)
	}
	if got != strings.ToLower(f.SHA256) {
		return mismatch(f, got, nil)
	}
	return nil
}

// below tells whether a path without links lies in a root.
func (v *Verifier) below(path string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, root := range v.roots {
		real, ok := v.resolved[root]
		if !ok {
			var err error
			if real, err = filepath.EvalSymlinks(root); err != nil {
				continue
			}
			v.resolved[root] = real
		}
		if strings.HasPrefix(path, real+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// digest returns the sha256 of an open file that was in the state was.
func (v *Verifier) digest(ctx context.Context, fd int, was stamp) (string, error) {
	v.mu.Lock()
	known, ok := v.known[was]
	v.mu.Unlock()
	if ok {
		return known, nil
	}
	began := time.Now()
	h := sha256.New()
	for buf := make([]byte, readBytes); ; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", err
		}
		if n == 0 {
			break
		}
		h.Write(buf[:n])
	}
	sum := hex.EncodeToString(h.Sum(nil))
	is, err := stampOf(fd)
	if err != nil {
		return "", err
	}
	if is != was {
		return "", errors.New("it changed while it was read")
	}
	if began.Sub(time.Unix(was.ctime.Unix())) > unsettled {
		v.remember(was, sum)
	}
	return sum, nil
}

func (v *Verifier) remember(s stamp, sum string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.known) >= maxRemembered {
		clear(v.known) // Hashing again is right, only slower.
	}
	v.known[s] = sum
}

func stampOf(fd int) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return stamp{}, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp{}, errors.New("is not a regular file")
	}
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}

func refuse(path, why string) error {
	return reason.New(reason.UntrustedArtifact, fmt.Sprintf("%s %s: it must not be executed", path, why),
		reason.Meta("path", path), reason.Remedy("prepare the engine again, or add its folder to the trusted roots"))
}

func mismatch(f File, got string, cause error) error {
	return reason.New(reason.DigestMismatch, fmt.Sprintf("%s is not what was prepared: want sha256 %s, got %s", f.Path, f.SHA256, got),
		reason.Cause(cause), reason.Meta("path", f.Path), reason.Meta("want", f.SHA256), reason.Meta("got", got),
		reason.Remedy("prepare the engine again"))
}

func unreadable(path string, err error) error {
	return reason.New(reason.StorageFailed, "check "+path, reason.Cause(err), reason.Meta("path", path),
		reason.Remedy("see that its file system is sound, and that the pool manager may read it"))
}
