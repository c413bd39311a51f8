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
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

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
	Roots []string // absolute folders, at least one. Links in them are followed; one that is not there yet trusts nothing.
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

	mu    sync.Mutex // mu guards known.
	known map[stamp]string
}

// stamp tells one state of one file from all others.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// New returns a Verifier that trusts what is below the roots.
func New(c Config) (*Verifier, error) {
	if len(c.Roots) == 0 {
		return nil, errors.New("trusted roots: none given")
	}
	v := &Verifier{known: map[stamp]string{}}
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
	real, err := filepath.EvalSymlinks(f.Path)
	if errors.Is(err, os.ErrNotExist) {
		return mismatch(f, "nothing", err)
	}
	if err != nil {
		return unreadable(f.Path, err)
	}
	if !v.below(real) {
		return refuse(f.Path, "is outside the trusted roots "+strings.Join(v.roots, ", "))
	}
	file, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NONBLOCK, 0) // A FIFO must not block us.
	if err != nil {
		return unreadable(f.Path, err)
	}
	defer file.Close()
	was, err := stampOf(file)
	if err != nil {
		return refuse(f.Path, "is not a regular file")
	}
	if was.size != f.SizeBytes {
		return mismatch(f, fmt.Sprintf("%d bytes instead of %d", was.size, f.SizeBytes), nil)
	}
	got, err := v.digest(ctx, file, was)
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
	for _, root := range v.roots {
		real, err := filepath.EvalSymlinks(root)
		if err == nil && strings.HasPrefix(path, real+string(filepath.Separator)) {
			return true
		}
	}
	return false
}

// digest returns the sha256 of an open file that was in the state was.
func (v *Verifier) digest(ctx context.Context, file *os.File, was stamp) (string, error) {
	v.mu.Lock()
	known, ok := v.known[was]
	v.mu.Unlock()
	if ok {
		return known, nil
	}
	began := time.Now()
	h := sha256.New()
	for {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		_, err := io.CopyN(h, file, readBytes)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
	}
	sum := hex.EncodeToString(h.Sum(nil))
	is, err := stampOf(file)
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

func stampOf(file *os.File) (stamp, error) {
	info, err := file.Stat()
	if err != nil {
		return stamp{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return stamp{}, errors.New("not a regular file")
	}
	return stamp{dev: uint64(st.Dev), ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
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
	return reason.New(reason.StorageFailed, "check "+path, reason.Cause(err), reason.Meta("path", path))
}
