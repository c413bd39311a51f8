// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// A published tree is DIR/files, what was published, and DIR/manifest.json, the record of it.
const (
	filesName    = "files"
	manifestName = "manifest.json"
)

// File modes in a published tree: nobody writes, and only what was executable stays so.
const (
	treeFileMode = 0o444
	treeExecMode = 0o555
	treeDirMode  = 0o555
)

// TreeFile is one file of a published engine.
type TreeFile struct {
	// Path is relative to the engine's directory, with slashes.
	Path string `json:"path"`
	// Mode has the permission bits.
	Mode fs.FileMode `json:"mode"`
	// Digest is empty for a symbolic link.
	Digest Digest `json:"digest,omitempty"`
	// Link is the target of a symbolic link, else empty.
	Link string `json:"link,omitempty"`
	// Stamp tells a later look-up that nobody wrote to the file.
	Stamp
}

// sealer makes the files of one staged tree read-only and durable, and lists them.
type sealer struct {
	store *Store
	root  *os.Root // of the tree, to prove where links lead
}

// seal does all of dir, whose path in the tree is below, and returns its files sorted by path.
func (t sealer) seal(ctx context.Context, dir, below string) ([]TreeFile, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	entries, err := t.store.fs.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []TreeFile
	for _, entry := range entries {
		name, full := path.Join(below, entry.Name()), filepath.Join(dir, entry.Name())
		if entry.IsDir() {
			inner, err := t.seal(ctx, full, name)
			if err != nil {
				return nil, err
			}
			files = append(files, inner...)
			continue
		}
		file, err := t.sealFile(ctx, full, name)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	if err := t.store.fs.SyncDir(dir); err != nil {
		return nil, err
	}
	return files, t.store.fs.Chmod(dir, treeDirMode)
}

func (t sealer) sealFile(ctx context.Context, full, name string) (TreeFile, error) {
	info, err := t.store.fs.Lstat(full)
	if err != nil {
		return TreeFile{}, err
	}
	sealed := TreeFile{Path: name, Mode: treeFileMode, Stamp: StampOf(info)}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return t.sealLink(full, sealed)
	case !info.Mode().IsRegular():
		return TreeFile{}, reason.New(reason.UntrustedArtifact, fmt.Sprintf("engine file %s is neither a file nor a link", name),
			reason.Meta("entry", name), reason.Remedy(trustRemedy))
	case info.Mode()&0o100 != 0:
		sealed.Mode = treeExecMode
	}
	if err := t.store.fs.Chmod(full, sealed.Mode); err != nil {
		return TreeFile{}, err
	}
	if info, err = t.store.fs.Lstat(full); err != nil { // its mode was a change
		return TreeFile{}, err
	}
	sealed.Stamp = StampOf(info)
	sealed.Digest, err = t.store.hashDurably(full, newCounter(ctx, 0, nil))
	return sealed, err
}

// trustRemedy is for an engine that has what no engine should have.
const trustRemedy = "use a package or source that you trust"

// sealLink accepts only a link to something in the tree: what an engine runs and reads must be what was hashed.
func (t sealer) sealLink(full string, sealed TreeFile) (TreeFile, error) {
	target, err := t.store.fs.Readlink(full)
	if err != nil {
		return TreeFile{}, err
	}
	if _, err := t.root.Stat(sealed.Path); err != nil {
		return TreeFile{}, reason.New(reason.UntrustedArtifact,
			fmt.Sprintf("engine file %s is a link to %s, which is not a file of the engine", sealed.Path, target),
			reason.Meta("entry", sealed.Path), reason.Cause(err), reason.Remedy(trustRemedy))
	}
	sealed.Mode, sealed.Link = 0o777, target
	return sealed, nil
}

// hashDurably returns the digest of a file, read through hasher, whose content it has made durable.
func (s *Store) hashDurably(path string, hasher *counter) (Digest, error) {
	file, err := s.fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	_, err = io.CopyBuffer(onlyWriter{hasher}, onlyReader{file}, make([]byte, copyChunkBytes))
	if err == nil {
		err = file.Sync()
	}
	return hasher.digest(), errors.Join(err, file.Close())
}

// publishTree writes the manifest into staged, makes it durable and renames it to final. What is at final, which the caller
// has found to be no good, goes to quarantine.
func (s *Store) publishTree(staged, final string, manifest json.RawMessage) error {
	if err := s.writeRecord(filepath.Join(staged, manifestName), manifest); err != nil {
		return err
	}
	if err := s.quarantine(final); err != nil {
		return err
	}
	return s.appear(staged, final) // G20
}

// loadTree hands the manifest of the published tree dir to intact, which tells whether the tree still is what the
// manifest says. A tree without a whole manifest, or one that is not intact, is absent.
func (s *Store) loadTree(dir string, intact func(manifest json.RawMessage) (bool, error)) error {
	manifest, err := s.readRecord(filepath.Join(dir, manifestName))
	if errors.Is(err, errTorn) {
		return fmt.Errorf("%s: %w: %w", dir, err, ErrAbsent)
	}
	if err != nil {
		return diskError("look up "+dir, dir, 0, err)
	}
	whole, err := intact(manifest)
	if err != nil {
		return diskError("look up "+dir, dir, 0, err)
	}
	if !whole {
		return fmt.Errorf("%s was changed: %w", dir, ErrAbsent)
	}
	return nil
}

// unchanged tells whether the file at path still is what its stamp was taken of.
func (s *Store) unchanged(path string, want Stamp) (bool, error) {
	info, err := s.fs.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && StampOf(info) == want, err
}
