// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"archive/zip"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

type kind int

const (
	kindFile kind = iota + 1
	kindDir
	kindSymlink
	kindHardLink
)

// entry is one member of an archive of either format. Its name is clean, local and stripped.
type entry struct {
	name       string
	kind       kind
	executable bool
	// target is that of a link: as stored for a symbolic link, clean and stripped for a hard link.
	target string
	// open gives the content of a regular file, before the next entry is asked for.
	open func() (io.ReadCloser, error)
}

// each calls visit for every entry in order. Damage of the archive is UNTRUSTED_ARTIFACT; the error of visit ends it.
func (a *Archive) each(ctx context.Context, visit func(entry) error) error {
	if a.format == formatZip {
		return a.eachZip(ctx, visit)
	}
	var stream io.Reader = io.NewSectionReader(a.file, 0, a.size)
	if a.format == formatTarGzip {
		unzipped, err := gzip.NewReader(stream)
		if err != nil {
			return damaged(err)
		}
		// A tar ends before its gzip stream does; what follows may be large, and nobody reads it.
		stream = unzipped
	}
	return a.eachTar(ctx, tar.NewReader(stream), visit)
}

func (a *Archive) eachTar(ctx context.Context, members *tar.Reader, visit func(entry) error) error {
	for seen := 0; ; seen++ {
		if ctx.Err() != nil {
			return fmt.Errorf("read archive: %w", context.Cause(ctx))
		}
		header, err := members.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return damaged(err)
		}
		if seen > a.opts.Limits.Files {
			return refuse(header.Name, fmt.Sprintf("is more than the %d entries that are allowed", a.opts.Limits.Files))
		}
		e, keep, err := a.tarEntry(header)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		e.open = func() (io.ReadCloser, error) { return io.NopCloser(members), nil }
		if err := visit(e); err != nil {
			return err
		}
	}
}

func (a *Archive) tarEntry(header *tar.Header) (e entry, keep bool, err error) {
	if header.Typeflag == tar.TypeXGlobalHeader {
		return entry{}, false, nil
	}
	name, keep, err := a.entryName(header.Name)
	if err != nil || !keep {
		return entry{}, false, err
	}
	if header.Mode&0o6000 != 0 {
		return entry{}, false, refuse(header.Name, "has a set-user-id or set-group-id bit")
	}
	e = entry{name: name, executable: header.Mode&0o111 != 0}
	switch header.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.kind = kindFile
	case tar.TypeDir:
		e.kind = kindDir
	case tar.TypeSymlink:
		e.kind, e.target = kindSymlink, header.Linkname
	case tar.TypeLink:
		e.kind = kindHardLink
		if e.target, keep, err = a.entryName(header.Linkname); err != nil || !keep {
			return entry{}, false, refuse(header.Name, "is a link to "+clip(header.Linkname)+", outside the archive")
		}
	default:
		return entry{}, false, refuse(header.Name, "is neither a file nor a folder nor a link")
	}
	return e, true, nil
}

func (a *Archive) eachZip(ctx context.Context, visit func(entry) error) error {
	directory, err := zip.NewReader(a.file, a.size)
	if err != nil && !errors.Is(err, zip.ErrInsecurePath) {
		return damaged(err)
	}
	if len(directory.File) > a.opts.Limits.Files {
		return refuse(directory.File[a.opts.Limits.Files].Name, fmt.Sprintf("is more than the %d entries that are allowed", a.opts.Limits.Files))
	}
	for _, member := range directory.File {
		if ctx.Err() != nil {
			return fmt.Errorf("read archive: %w", context.Cause(ctx))
		}
		e, keep, err := a.zipEntry(member)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

func (a *Archive) zipEntry(member *zip.File) (e entry, keep bool, err error) {
	name, keep, err := a.entryName(member.Name)
	if err != nil || !keep {
		return entry{}, false, err
	}
	mode := member.Mode()
	if mode&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
		return entry{}, false, refuse(member.Name, "has a set-user-id or set-group-id bit")
	}
	e = entry{name: name, executable: mode&0o111 != 0, open: func() (io.ReadCloser, error) {
		content, err := member.Open()
		if err != nil {
			return nil, damaged(err)
		}
		return content, nil
	}}
	switch {
	case mode.IsDir():
		e.kind = kindDir
	case mode.IsRegular():
		e.kind = kindFile
	case mode&fs.ModeType == fs.ModeSymlink:
		e.kind = kindSymlink
		e.target, err = zipLinkTarget(member)
	default:
		err = refuse(member.Name, "is neither a file nor a folder nor a link")
	}
	return e, err == nil, err
}

func zipLinkTarget(member *zip.File) (string, error) {
	content, err := member.Open()
	if err != nil {
		return "", damaged(err)
	}
	target, err := io.ReadAll(io.LimitReader(content, maxLinkBytes+1))
	if err := errors.Join(err, content.Close()); err != nil {
		return "", damaged(err)
	}
	return string(target), nil
}

// entryName makes a stored name clean and strips it. keep is false for the folders that stripping removes.
func (a *Archive) entryName(stored string) (name string, keep bool, err error) {
	name, err = cleanName(stored)
	if err != nil || name == "." {
		return "", false, err
	}
	for range a.opts.Strip {
		_, rest, found := strings.Cut(name, "/")
		if !found {
			return "", false, nil
		}
		name = rest
	}
	return name, true, nil
}

// cleanName refuses every name that is not a plain relative path. A folder's trailing slash and leading "./" are dropped.
func cleanName(stored string) (string, error) {
	if stored == "" || len(stored) > maxNameBytes {
		return "", refuse(stored, "has no name or too long a name")
	}
	if strings.ContainsAny(stored, "\\\x00") {
		return "", refuse(stored, "has a backslash or a zero byte in its name")
	}
	if path.IsAbs(stored) {
		return "", refuse(stored, "has an absolute name")
	}
	parts := strings.Split(stored, "/")
	if len(parts) > maxDepth {
		return "", refuse(stored, "lies too deep")
	}
	for _, part := range parts {
		if part == ".." {
			return "", refuse(stored, "has .. in its name")
		}
		if len(part) > maxComponentBytes {
			return "", refuse(stored, "has too long a name")
		}
	}
	return path.Clean(stored), nil
}

func damaged(err error) error {
	return reason.New(reason.UntrustedArtifact, "archive is damaged", reason.Cause(err),
		reason.Remedy("fetch it again, and check its digest"))
}
