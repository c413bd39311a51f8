// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Blob is one verified file of the store. Nobody but the store has a name for it, and nobody may write to it.
type Blob struct {
	Digest Digest
	// Path is absolute. The file must not be written to.
	Path string
	// Size is in bytes.
	Size int64
}

// Blob looks up verified content. It returns an error that wraps ErrAbsent when the store does not have it, and when the
// file is not the one that was hashed, by its stamp: Recover tells whether it is any good.
func (s *Store) Blob(digest Digest) (Blob, error) {
	if !digest.valid() {
		return Blob{}, fmt.Errorf("look up blob %.100q: %w", string(digest), ErrAbsent)
	}
	path, sidecar := s.blobPaths(digest)
	info, err := s.fs.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Blob{}, fmt.Errorf("look up blob %s: %w", digest, ErrAbsent)
	}
	if err != nil {
		return Blob{}, diskError("look up blob", path, 0, err)
	}
	payload, err := s.readRecord(sidecar)
	if err != nil && !errors.Is(err, ErrAbsent) && !errors.Is(err, errTorn) {
		return Blob{}, diskError("look up blob", sidecar, 0, err)
	}
	var known Stamp
	if err == nil {
		err = json.Unmarshal(payload, &known)
	}
	if err != nil || !info.Mode().IsRegular() || known != StampOf(info) {
		return Blob{}, fmt.Errorf("look up blob %s: changed since it was verified: %w", digest, ErrAbsent)
	}
	return Blob{Digest: digest, Path: path, Size: info.Size()}, nil
}

// Recover looks up verified content, and hashes the file when Blob cannot tell that it is the one that was hashed: a store
// that was copied or restored has all its files, and none with its old stamp. The right content is a blob again; any other
// goes to quarantine and is absent. progress, if not nil, gets the bytes hashed so far and the size.
func (s *Store) Recover(ctx context.Context, digest Digest, progress func(done, total int64)) (Blob, error) {
	if blob, err := s.Blob(digest); err == nil || !errors.Is(err, ErrAbsent) || !digest.valid() {
		return blob, err
	}
	release, err := s.lock(ctx, "blob "+string(digest))
	if err != nil {
		return Blob{}, err
	}
	defer release()
	blob, err := s.Blob(digest)
	if err == nil || !errors.Is(err, ErrAbsent) {
		return blob, err
	}
	path, sidecar := s.blobPaths(digest)
	info, statErr := s.fs.Lstat(path)
	if errors.Is(statErr, fs.ErrNotExist) {
		return Blob{}, err
	}
	if statErr != nil {
		return Blob{}, diskError("look up blob", path, 0, statErr)
	}
	same, hashErr := s.holds(ctx, path, info, digest, progress)
	if hashErr != nil {
		return Blob{}, endError(ctx, "verify blob "+string(digest), path, 0, hashErr)
	}
	if !same {
		return Blob{}, errors.Join(err, s.quarantine(path, sidecar))
	}
	return s.noteBlob(digest)
}

// holds tells whether the file at path is a plain one of this content. The content is durable and read-only then.
func (s *Store) holds(ctx context.Context, path string, info fs.FileInfo, digest Digest, progress func(done, total int64)) (bool, error) {
	if !info.Mode().IsRegular() {
		return false, nil
	}
	if err := s.fs.Chmod(path, readOnlyMode); err != nil {
		return false, err
	}
	before, err := s.fs.Lstat(path)
	if err != nil {
		return false, err
	}
	got, err := s.hashDurably(path, newCounter(ctx, before.Size(), progress))
	if err != nil {
		return false, err
	}
	after, err := s.fs.Lstat(path)
	return err == nil && got == digest && StampOf(before) == StampOf(after), err
}

// noteBlob keeps the stamp of the file that lies as the blob of digest, which has been hashed, and returns the blob.
func (s *Store) noteBlob(digest Digest) (Blob, error) {
	path, sidecar := s.blobPaths(digest)
	info, err := s.fs.Lstat(path)
	if err == nil {
		var payload json.RawMessage
		if payload, err = json.Marshal(StampOf(info)); err == nil {
			err = s.writeRecord(sidecar, payload)
		}
	}
	if err != nil {
		return Blob{}, diskError("keep stamp of blob "+string(digest), sidecar, 0, err)
	}
	return Blob{Digest: digest, Path: path, Size: info.Size()}, nil
}

// publishBlob makes the file staged, whose content has been hashed to digest, visible and returns it. If the store has
// the blob already, staged is left where it is.
func (s *Store) publishBlob(ctx context.Context, staged string, digest Digest) (Blob, error) {
	release, err := s.lock(ctx, "blob "+string(digest))
	if err != nil {
		return Blob{}, err
	}
	defer release()
	if blob, err := s.Blob(digest); err == nil || !errors.Is(err, ErrAbsent) {
		return blob, err
	}
	path, sidecar := s.blobPaths(digest)
	if err := s.quarantine(path, sidecar); err != nil {
		return Blob{}, err
	}
	if err := s.publishFile(staged, path); err != nil {
		return Blob{}, diskError("publish blob "+string(digest), path, 0, err)
	}
	blob, err := s.noteBlob(digest)
	if err != nil {
		return Blob{}, errors.Join(err, s.fs.Rename(path, staged)) // for the next try
	}
	return blob, nil
}

// publishFile gives a file its name. It is no blob before its stamp is kept, which a rename changes: one whose stamp was
// not kept any more is found by Recover.
func (s *Store) publishFile(staged, path string) error {
	if err := s.fs.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return err
	}
	if err := s.fs.SyncDir(filepath.Dir(filepath.Dir(path))); err != nil {
		return err
	}
	if err := s.syncFile(staged); err != nil {
		return err
	}
	return s.appear(staged, path) // G20
}

// Discard removes a blob that turned out to be of no use; one that the store does not have is no error. Who else has looked
// it up may find it gone, and an open file of it stays readable. Blobs of published models must not be discarded.
func (s *Store) Discard(ctx context.Context, digest Digest) error {
	release, err := s.lock(ctx, "blob "+string(digest))
	if err != nil {
		return err
	}
	defer release()
	path, sidecar := s.blobPaths(digest)
	for _, name := range []string{path, sidecar} { // a sidecar without a blob means nothing
		if err := s.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return diskError("discard blob", name, 0, err)
		}
	}
	return nil
}

func (s *Store) blobPaths(digest Digest) (path, sidecar string) {
	name := digest.Hex()
	path = s.path("blobs", "sha256", name[:2], name)
	return path, path + ".json"
}

func mismatch(name string, want, got Digest) error {
	return reason.New(reason.DigestMismatch, fmt.Sprintf("%s has sha256 %s, wanted %s", name, got.Hex(), want.Hex()),
		reason.Meta("want", want.Hex()), reason.Meta("got", got.Hex()),
		reason.Remedy("check the digest that was asked for, and where the file comes from"))
}

// counter hashes what it is given, tells progress, and stops the writer when its context is done.
type counter struct {
	ctx         context.Context //nolint:containedctx // lives for one call
	hash        interface{ Write([]byte) (int, error) }
	digest      func() Digest
	done, total int64
	progress    func(done, total int64)
}

func newCounter(ctx context.Context, total int64, progress func(done, total int64)) *counter {
	h := sha256.New()
	return &counter{ctx: ctx, hash: h, digest: func() Digest { return digestOf(h) }, total: total, progress: progress}
}

func (c *counter) Write(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.hash.Write(b)
	c.done += int64(n)
	if c.progress != nil {
		c.progress(c.done, c.total)
	}
	return n, err
}

// onlyReader hides every other method, so that io.CopyBuffer uses the buffer it was given.
type onlyReader struct{ io.Reader }
