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
	"os"
	"path/filepath"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Blob is one verified file of the store, or of the user when it was imported by a hard link.
type Blob struct {
	Digest Digest
	// Path is absolute. The file must not be written to.
	Path string
	// Size is in bytes.
	Size int64
}

// fingerprint is what the store remembers of a file it has hashed, to notice without hashing that it was changed.
type fingerprint struct {
	SizeBytes    int64 `json:"size_bytes"`
	ModifiedNano int64 `json:"modified_unix_nano"`
}

func fingerprintOf(info fs.FileInfo) fingerprint {
	return fingerprint{SizeBytes: info.Size(), ModifiedNano: info.ModTime().UnixNano()}
}

// Blob looks up verified content. It returns an error that wraps ErrAbsent when the store does not have it. A blob whose
// file was changed since it was hashed goes to quarantine and is absent.
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
	var known fingerprint
	if err == nil {
		err = json.Unmarshal(payload, &known)
	}
	if err != nil || !info.Mode().IsRegular() || known != fingerprintOf(info) {
		if err := s.quarantine(path, sidecar); err != nil {
			return Blob{}, err
		}
		return Blob{}, fmt.Errorf("look up blob %s: changed since it was verified: %w", digest, ErrAbsent)
	}
	return Blob{Digest: digest, Path: path, Size: info.Size()}, nil
}

// Import makes an open file of the user a blob. On the store's own file system the blob is a second name (hard link) of
// the user's file, whose mode and content are left alone; elsewhere it is a copy. A file whose sha256 is not want is
// DIGEST_MISMATCH and leaves nothing; an empty want accepts any. progress, if not nil, gets the bytes hashed so far and
// the size. A file that changes while it is read is UNTRUSTED_ARTIFACT.
func (s *Store) Import(ctx context.Context, file *os.File, want Digest, progress func(done, total int64)) (Blob, error) {
	before, err := file.Stat()
	if err != nil {
		return Blob{}, diskError("import file", file.Name(), 0, err)
	}
	if !before.Mode().IsRegular() {
		return Blob{}, reason.New(reason.InvalidParams, file.Name()+" is not a regular file", reason.Meta("path", file.Name()))
	}
	staged := s.temp()
	defer func() { _ = s.fs.Remove(staged) }()

	hasher := newCounter(ctx, before.Size(), progress)
	source := io.TeeReader(io.NewSectionReader(file, 0, before.Size()), hasher)
	if linkErr := s.fs.LinkOpen(file, staged); linkErr == nil {
		_, err = io.CopyBuffer(io.Discard, onlyReader{source}, make([]byte, copyChunkBytes))
	} else {
		err = s.writeFile(staged, before.Size(), onlyReader{source})
	}
	if err != nil {
		return Blob{}, endError(ctx, "import "+file.Name(), file.Name(), before.Size(), err)
	}
	after, err := file.Stat()
	if err != nil {
		return Blob{}, diskError("import file", file.Name(), 0, err)
	}
	if fingerprintOf(after) != fingerprintOf(before) {
		return Blob{}, reason.New(reason.UntrustedArtifact, file.Name()+" was changed while it was read",
			reason.Meta("path", file.Name()), reason.Remedy("try again when nothing writes to the file"))
	}
	got := hasher.digest()
	if want != "" && got != want {
		return Blob{}, mismatch(file.Name(), want, got)
	}
	return s.publishBlob(ctx, staged, got)
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
	info, err := s.fs.Lstat(staged)
	if err != nil {
		return Blob{}, diskError("publish blob", staged, 0, err)
	}
	if err := s.publishFile(staged, path, sidecar, info); err != nil {
		return Blob{}, diskError(fmt.Sprintf("publish blob %s", digest), path, info.Size(), err)
	}
	return Blob{Digest: digest, Path: path, Size: info.Size()}, nil
}

// publishFile writes the sidecar first: a blob without one is never trusted, a sidecar without a blob means nothing.
func (s *Store) publishFile(staged, path, sidecar string, info fs.FileInfo) error {
	if err := s.fs.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return err
	}
	if err := s.fs.SyncDir(filepath.Dir(filepath.Dir(path))); err != nil {
		return err
	}
	if err := s.syncFile(staged); err != nil {
		return err
	}
	payload, err := json.Marshal(fingerprintOf(info))
	if err != nil {
		return err
	}
	if err := s.writeRecord(sidecar, payload); err != nil {
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
