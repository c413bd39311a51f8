// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Partial is content on its way into the store: an append-only file that outlives the process, held by one caller at a
// time. Only Commit makes it visible. A Partial is used by one goroutine.
type Partial struct {
	store   *Store
	key     string
	dir     string
	data    string
	file    File
	release func()
	offset  int64
	sha256  hash.Hash
	hashes  []hash.Hash // sha256 and those of the caller
}

// Partial waits until this caller alone, among all processes, holds the partial content of key, which may be any text
// (an address, a digest). What an earlier holder wrote, killed or not, is kept and hashed again: Offset tells how much.
// Each of also sees the whole content as well, from its first byte. Every Partial must be closed.
func (s *Store) Partial(ctx context.Context, key string, also ...hash.Hash) (*Partial, error) {
	release, err := s.lock(ctx, "partial "+key)
	if err != nil {
		return nil, err
	}
	p := &Partial{store: s, key: key, dir: s.path("partial", fileName(key)), release: release, sha256: sha256.New()}
	p.data = filepath.Join(p.dir, "data")
	p.hashes = append([]hash.Hash{p.sha256}, also...)
	if err := p.open(ctx); err != nil {
		_ = p.Close()
		return nil, endError(ctx, "open partial content of "+key, p.data, 0, err)
	}
	return p, nil
}

func (p *Partial) open(ctx context.Context) error {
	if err := p.store.fs.MkdirAll(p.dir, secretDirMode); err != nil {
		return err
	}
	file, err := p.store.fs.OpenFile(p.data, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, fs.ErrPermission) { // a commit was cut after the file became read-only
		if err := p.store.fs.Chmod(p.data, 0o600); err != nil {
			return err
		}
		file, err = p.store.fs.OpenFile(p.data, os.O_RDWR, 0)
	}
	if err != nil {
		return err
	}
	p.file = file
	chunk := make([]byte, copyChunkBytes)
	for ctx.Err() == nil {
		n, err := file.Read(chunk)
		p.sum(chunk[:n])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (p *Partial) sum(b []byte) {
	for _, h := range p.hashes {
		_, _ = h.Write(b) // a hash never fails
	}
	p.offset += int64(len(b))
}

// Offset returns how many bytes the partial has.
func (p *Partial) Offset() int64 { return p.offset }

// Write appends b. After an error the partial may have a part of b, which Offset counts.
func (p *Partial) Write(b []byte) (int, error) {
	n, err := p.file.Write(b)
	p.sum(b[:n])
	if err != nil {
		return n, diskError("write partial content", p.data, int64(len(b)), err)
	}
	return n, nil
}

// Reserve fails with DISK_FULL when the file system has no room for the partial to grow to totalBytes. It holds nothing:
// a later Write can still find the disk full.
func (p *Partial) Reserve(totalBytes int64) error {
	return p.store.reserve(p.dir, totalBytes-p.offset)
}

// Note returns what SetNote last kept for this content, or nil.
func (p *Partial) Note() json.RawMessage {
	payload, err := p.store.readRecord(filepath.Join(p.dir, "note.json"))
	if err != nil {
		return nil // without its note the content cannot be resumed safely, and callers start again
	}
	return payload
}

// SetNote durably keeps one JSON value beside the content, such as the validator of a download.
func (p *Partial) SetNote(note json.RawMessage) error {
	path := filepath.Join(p.dir, "note.json")
	return diskError("keep note", path, int64(len(note)), p.store.writeRecord(path, note))
}

// Reset drops all content and the note; Offset is 0 after it.
func (p *Partial) Reset() error {
	err := p.store.fs.Remove(filepath.Join(p.dir, "note.json"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = p.file.Truncate(0)
	}
	if err == nil {
		_, err = p.file.Seek(0, io.SeekStart)
	}
	if err != nil {
		return diskError("reset partial content", p.data, 0, err)
	}
	for _, h := range p.hashes {
		h.Reset()
	}
	p.offset = 0
	return nil
}

// Commit makes the content a blob if its sha256 is want; an empty want accepts any. Content of another digest is dropped
// with DIGEST_MISMATCH. After any other error the content is kept for the next holder. Either way the partial is closed.
func (p *Partial) Commit(ctx context.Context, want Digest) (Blob, error) {
	defer func() { _ = p.Close() }()
	got := digestOf(p.sha256)
	if want != "" && got != want {
		if err := p.Discard(); err != nil {
			return Blob{}, err
		}
		return Blob{}, mismatch(p.key, want, got)
	}
	if err := p.store.fs.Chmod(p.data, readOnlyMode); err != nil {
		return Blob{}, diskError("commit", p.data, 0, err)
	}
	blob, err := p.store.publishBlob(ctx, p.data, got)
	if err == nil {
		_ = p.Discard() // the content is safe; what cannot be removed now is dropped by the next holder
	}
	return blob, err
}

// Discard drops the content and closes the partial.
func (p *Partial) Discard() error {
	if p.release == nil {
		return nil
	}
	err := p.store.removeTree(p.dir)
	p.offset = 0
	return errors.Join(diskError("discard partial content", p.dir, 0, err), p.Close())
}

// Close lets the next caller have the partial; the content stays, if there is any. Closing again does nothing.
func (p *Partial) Close() error {
	if p.release == nil {
		return nil
	}
	release := p.release
	p.release = nil
	var err error
	if p.file != nil {
		err = p.file.Close()
		if p.offset == 0 {
			err = errors.Join(err, p.store.removeTree(p.dir))
		}
	}
	release()
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return diskError("close partial content of "+p.key, p.data, 0, err)
	}
	return nil
}
