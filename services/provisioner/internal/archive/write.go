// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

const (
	plainFileMode = 0o644
	execFileMode  = 0o755
	folderMode    = 0o755
)

// writer makes the entries of one archive below root.
type writer struct {
	ctx    context.Context //nolint:containedctx // lives for one call
	root   *os.Root
	made   map[string]kind // every name so far, folders that entries imply included
	budget *budget
}

func (w *writer) write(e entry) error {
	if err := w.makeFolders(path.Dir(e.name), e.name); err != nil {
		return err
	}
	if have, twice := w.made[e.name]; twice {
		if have == kindDir && e.kind == kindDir {
			return nil
		}
		return refuse(e.name, "comes twice")
	}
	if err := w.remember(e.name, e.kind); err != nil {
		return err
	}
	switch e.kind {
	case kindDir:
		return diskError(e.name, w.root.Mkdir(e.name, folderMode))
	case kindSymlink:
		return w.symlink(e)
	case kindHardLink:
		if w.made[e.target] != kindFile {
			return refuse(e.name, fmt.Sprintf("is a link to %.300q, which is no file before it", e.target))
		}
		w.made[e.name] = kindFile
		return diskError(e.name, w.root.Link(e.target, e.name))
	case kindFile:
		return w.file(e)
	}
	return refuse(e.name, "is of an unknown kind")
}

// makeFolders makes dir and its parents. No link is ever one of them: that an entry stays where its name says must not
// depend on entries before it.
func (w *writer) makeFolders(dir, forEntry string) error {
	if dir == "." {
		return nil
	}
	switch have, known := w.made[dir]; {
	case known && have == kindDir:
		return nil
	case known:
		return refuse(forEntry, fmt.Sprintf("lies below %.300q, which is not a folder", dir))
	}
	if err := w.makeFolders(path.Dir(dir), forEntry); err != nil {
		return err
	}
	if err := w.remember(dir, kindDir); err != nil {
		return err
	}
	return diskError(dir, w.root.Mkdir(dir, folderMode))
}

func (w *writer) remember(name string, k kind) error {
	if len(w.made) >= w.budget.limits.Files {
		return refuse(name, fmt.Sprintf("is more than the %d files that are allowed", w.budget.limits.Files))
	}
	w.made[name] = k
	return nil
}

// symlink accepts a relative target whose ".." all come first: no parent of an entry is a link, so they lead where they
// seem to, and what follows them cannot leave the root again.
func (w *writer) symlink(e entry) error {
	inside := filepath.IsLocal(path.Join(path.Dir(e.name), e.target))
	if e.target == "" || len(e.target) > maxLinkBytes || strings.ContainsRune(e.target, 0) || path.IsAbs(e.target) ||
		path.Clean(e.target) != strings.TrimPrefix(e.target, "./") || !inside {
		return refuse(e.name, fmt.Sprintf("is a link to %.300q, outside the archive", e.target))
	}
	return diskError(e.name, w.root.Symlink(e.target, e.name))
}

func (w *writer) file(e entry) error {
	content, err := e.open()
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }()
	mode := fs.FileMode(plainFileMode)
	if e.executable {
		mode = execFileMode
	}
	out, err := w.root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return diskError(e.name, err)
	}
	_, err = w.budget.copy(w.ctx, e.name, out, content)
	return errors.Join(err, diskError(e.name, out.Close()))
}

// diskError types an error of the file system the archive is extracted to.
func diskError(name string, err error) error {
	if err == nil {
		return nil
	}
	code := reason.StorageFailed
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		code = reason.DiskFull
	}
	return reason.New(code, fmt.Sprintf("extract %.300q", name), reason.Cause(err),
		reason.Remedy(storageRemedy))
}

// budget counts content against the limits.
type budget struct {
	limits  Limits
	allowed int64 // bytes of content in all
	used    int64
}

func newBudget(limits Limits, archiveBytes int64) *budget {
	allowed := limits.Bytes
	if archiveBytes < allowed/limits.Ratio {
		allowed = min(allowed, max(ratioFreeBytes, archiveBytes*limits.Ratio))
	}
	return &budget{limits: limits, allowed: allowed}
}

// copy writes content to out until its end, a cap or the end of ctx. The sizes that the archive claims are not trusted.
func (b *budget) copy(ctx context.Context, name string, out io.Writer, content io.Reader) (int64, error) {
	chunk := make([]byte, copyChunkBytes)
	var size int64
	for {
		if ctx.Err() != nil {
			return size, fmt.Errorf("extract %.300q: %w", name, context.Cause(ctx))
		}
		n, readErr := content.Read(chunk)
		size, b.used = size+int64(n), b.used+int64(n)
		if size > b.limits.FileBytes || b.used > b.allowed {
			return size, refuse(name, fmt.Sprintf("goes beyond the limit of %d bytes a file and %d bytes in all for this archive", b.limits.FileBytes, b.allowed))
		}
		if _, err := out.Write(chunk[:n]); err != nil {
			return size, outputError(name, err)
		}
		if errors.Is(readErr, io.EOF) {
			return size, nil
		}
		if readErr != nil {
			return size, damaged(readErr)
		}
	}
}

func outputError(name string, err error) error {
	if _, typed := reason.As(err); typed {
		return fmt.Errorf("extract %.300q: %w", name, err)
	}
	return diskError(name, err)
}
