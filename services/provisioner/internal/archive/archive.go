// SPDX-License-Identifier: Apache-2.0

// Package archive reads files out of zip (wheels), tar and tar.gz archives that nobody has vouched for.
//
// An archive can hurt nothing outside the directory it is extracted to, and cannot fill the disk: everything is written
// through os.Root, links must stay inside, only files, folders and links are made, and files, bytes and the compression
// ratio have caps. A refused archive is an UNTRUSTED_ARTIFACT error that names the entry; what was written before the
// refusal stays in the directory, which the caller throws away. An Archive is used by one goroutine.
package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Default caps. The largest archives that are prepared today are engine wheels of some hundred megabytes and models.
const (
	defaultFiles      = 100_000
	defaultBytes      = 256 << 30
	defaultRatio      = 200
	ratioFreeBytes    = 64 << 20 // below this a ratio tells nothing: a few sparse files exceed any
	maxNameBytes      = 4096
	maxComponentBytes = 255
	maxLinkBytes      = 4096
	maxDepth          = 64
	copyChunkBytes    = 256 << 10
)

// Limits caps what one archive may bring.
type Limits struct {
	// Files counts files, links and folders. Zero means 100000.
	Files int
	// Bytes is the sum of all content. Zero means 256 GiB.
	Bytes int64
	// FileBytes is the content of one file. Zero means Bytes.
	FileBytes int64
	// Ratio is content bytes per archive byte; it counts from 64 MiB of content on. Zero means 200.
	Ratio int64
}

// Options says how to read an archive.
type Options struct {
	Limits Limits
	// Strip drops so many leading folders from every name, as the one that every npm package has. Entries that have no
	// more are skipped.
	Strip int
}

// Archive is one open archive file.
type Archive struct {
	file   *os.File
	size   int64
	format format
	opts   Options
}

type format int

const (
	formatZip format = iota + 1
	formatTar
	formatTarGzip
)

// Open tells the format by the first bytes of the file at path. A file of no known format is UNTRUSTED_ARTIFACT. The
// Archive must be closed.
func Open(path string, opts Options) (*Archive, error) {
	opts.Limits = withDefaults(opts.Limits)
	file, err := os.Open(path)
	if err != nil {
		return nil, reason.New(reason.StorageFailed, "open archive", reason.Meta("path", path), reason.Cause(err), reason.Remedy(storageRemedy))
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, reason.New(reason.StorageFailed, "open archive", reason.Meta("path", path), reason.Cause(err), reason.Remedy(storageRemedy))
	}
	found, err := detect(file)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &Archive{file: file, size: info.Size(), format: found, opts: opts}, nil
}

// Close ends the use of the archive.
func (a *Archive) Close() error { return a.file.Close() }

// Extract writes everything into dir, which must exist and be empty. The same entry twice, a name that is absolute or
// has "..", a link that leaves dir, a device, a set-user-id bit and an exceeded cap are refused.
func (a *Archive) Extract(ctx context.Context, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return reason.New(reason.StorageFailed, "extract into "+dir, reason.Meta("path", dir), reason.Cause(err), reason.Remedy(storageRemedy))
	}
	defer func() { _ = root.Close() }()
	w := &writer{ctx: ctx, root: root, made: map[string]kind{}, budget: newBudget(a.opts.Limits, a.size)}
	return a.each(ctx, w.write)
}

// Member writes the content of the regular file named name to out and returns its size. The whole archive is read, so
// that a second entry of that name is noticed and refused; out has received the first by then. A missing member is an
// INVALID_PARAMS error.
func (a *Archive) Member(ctx context.Context, name string, out io.Writer) (int64, error) {
	if _, err := cleanName(name); err != nil {
		return 0, reason.New(reason.InvalidParams, fmt.Sprintf("archive member %.300q is not a relative path", name),
			reason.Remedy("give the path inside the archive, with slashes and without .."))
	}
	budget := newBudget(a.opts.Limits, a.size)
	found, size := 0, int64(0)
	err := a.each(ctx, func(e entry) error {
		if e.name != name {
			return nil
		}
		found++
		if e.kind != kindFile || found > 1 {
			return refuse(e.name, "is not one regular file")
		}
		content, err := e.open()
		if err != nil {
			return err
		}
		size, err = budget.copy(ctx, e.name, out, content)
		return errors.Join(err, content.Close())
	})
	if err != nil {
		return 0, err
	}
	if found == 0 {
		return 0, reason.New(reason.InvalidParams, fmt.Sprintf("archive has no member %q", name), reason.Meta("member", name),
			reason.Remedy("give the path of a file inside the archive"))
	}
	return size, nil
}

func withDefaults(l Limits) Limits {
	if l.Files == 0 {
		l.Files = defaultFiles
	}
	if l.Bytes == 0 {
		l.Bytes = defaultBytes
	}
	if l.FileBytes == 0 {
		l.FileBytes = l.Bytes
	}
	if l.Ratio == 0 {
		l.Ratio = defaultRatio
	}
	return l
}

func detect(file io.ReaderAt) (format, error) {
	const ustarOffset = 257
	head := make([]byte, 512)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, reason.New(reason.StorageFailed, "read archive", reason.Cause(err), reason.Remedy(storageRemedy))
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("PK\x03\x04")), bytes.HasPrefix(head, []byte("PK\x05\x06")):
		return formatZip, nil
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return formatTarGzip, nil
	case len(head) > ustarOffset+5 && string(head[ustarOffset:ustarOffset+5]) == "ustar":
		return formatTar, nil
	}
	return 0, reason.New(reason.UntrustedArtifact, "not a zip, tar or tar.gz archive",
		reason.Remedy("give an archive in one of these formats"))
}

// storageRemedy is for what the disk does to an archive, which is not the archive's fault.
const storageRemedy = "check space, permissions and health of the file system that holds the store"

// refuse is the error for an entry that is not taken.
func refuse(entry, why string) error {
	return reason.New(reason.UntrustedArtifact, fmt.Sprintf("archive entry %.300q %s", entry, why), reason.Meta("entry", clip(entry)),
		reason.Remedy("use an archive from a source that you trust"))
}

// clip makes a stored name fit to be shown.
func clip(name string) string { return strings.ToValidUTF8(name[:min(len(name), 300)], "?") }
