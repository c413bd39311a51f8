// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

func (f *Fetcher) fetchFile(ctx context.Context, req Request, progress func(done, total int64)) (Result, error) {
	file, err := f.openFile(req)
	if err != nil {
		return Result{}, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat() // before it is read: what it becomes while and after that is not what is remembered
	if err != nil {
		return Result{}, reason.New(reason.StorageFailed, "read "+req.Ref.Path, reason.Cause(err), reason.Remedy("check the file system of the file"))
	}
	blob, err := f.cfg.Store.Import(ctx, file, req.Want, progress)
	if err != nil {
		return Result{}, err
	}
	result := Result{Blob: blob, Name: req.Ref.Base()}
	return result, f.remember(fileKey(req.Ref, info), result)
}

// openFile opens the regular file of a reference, which must lie below a root after all links were followed: what is
// opened is what was checked, whatever happens to the path meanwhile.
func (f *Fetcher) openFile(req Request) (*os.File, error) {
	resolved, lookErr := filepath.EvalSymlinks(req.Ref.Path)
	if lookErr != nil {
		resolved = req.Ref.Path // whether there is something outside the roots is not told
	}
	for _, configured := range f.cfg.FileRoots {
		root, err := filepath.EvalSymlinks(configured)
		if err != nil {
			continue // a root that does not exist has no files
		}
		if lookErr != nil {
			root = filepath.Clean(configured)
		}
		below, err := filepath.Rel(root, resolved)
		if err != nil || !filepath.IsLocal(below) {
			continue
		}
		if lookErr != nil {
			return nil, fileError(req, lookErr)
		}
		return openBelow(req, root, below)
	}
	return nil, reason.New(reason.UntrustedArtifact, fmt.Sprintf("%s is not below a folder that files may come from", req.Ref.Path),
		reason.Meta("path", req.Ref.Path), reason.Meta("file_roots", strings.Join(f.cfg.FileRoots, ":")),
		reason.Remedy("move the file below one of them ("+rootsText(f.cfg.FileRoots)+"), or add its folder to the provisioner's file roots"))
}

func openBelow(req Request, root, below string) (*os.File, error) {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return nil, fileError(req, err)
	}
	defer func() { _ = dir.Close() }()
	file, err := dir.OpenFile(below, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe without a writer must not block
	if err != nil {
		return nil, fileError(req, err)
	}
	info, err := file.Stat()
	if err == nil && info.Mode().IsRegular() {
		return file, nil
	}
	_ = file.Close()
	if err != nil {
		return nil, fileError(req, err)
	}
	what := "a device, pipe or socket"
	if info.IsDir() {
		what = "a directory"
	}
	return nil, reason.New(reason.InvalidParams, fmt.Sprintf("%s is %s, not a file", req.Ref.Path, what),
		reason.Meta("path", req.Ref.Path), reason.Remedy("name the file itself"))
}

func fileError(req Request, err error) error {
	options := []reason.Option{reason.Meta("path", req.Ref.Path), reason.Cause(err)}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return reason.New(req.Missing, req.Ref.Path+" does not exist", append(options, reason.Remedy("check the path on the provisioner's machine"))...)
	case errors.Is(err, fs.ErrPermission):
		return reason.New(reason.UntrustedArtifact, req.Ref.Path+" may not be read by the provisioner",
			append(options, reason.Remedy("let the provisioner's user read it"))...)
	}
	return reason.New(reason.InvalidParams, req.Ref.Path+" cannot be opened", append(options, reason.Remedy("name a plain file"))...)
}

func rootsText(roots []string) string {
	if len(roots) == 0 {
		return "none is configured"
	}
	return strings.Join(roots, ", ")
}

// fileKey names one content of one file: it changes when the file does, also when its times were set back.
func fileKey(ref Ref, info fs.FileInfo) string {
	return "file " + ref.Path + " " + store.StampOf(info).String()
}
