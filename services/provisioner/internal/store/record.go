// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
)

const (
	recordSchema   = 1
	maxRecordBytes = 64 << 20
)

// errTorn says that a record is not what was once written.
var errTorn = errors.New("damaged record")

// envelope is how a record lies on disk: sha256 covers the bytes of payload exactly as they stand.
type envelope struct {
	Schema  int             `json:"schema"`
	SHA256  string          `json:"sha256"`
	Payload json.RawMessage `json:"payload"`
}

// writeRecord durably replaces the record at path by payload, one JSON value. A failure leaves the old record.
func (s *Store) writeRecord(path string, payload json.RawMessage) error {
	payload = bytes.TrimSpace(payload)
	if !json.Valid(payload) {
		return fmt.Errorf("write record %s: payload is not JSON", path)
	}
	sum := sha256.Sum256(payload)
	data := fmt.Appendf(nil, "{\"schema\":%d,\"sha256\":%q,\"payload\":%s}\n", recordSchema, hex.EncodeToString(sum[:]), payload)
	staged := s.temp()
	if err := s.writeFile(staged, int64(len(data)), bytes.NewReader(data)); err != nil {
		_ = s.fs.Remove(staged)
		return err
	}
	if err := s.fs.Rename(staged, path); err != nil {
		_ = s.fs.Remove(staged)
		return err
	}
	return s.fs.SyncDir(filepath.Dir(path)) // G12
}

// readRecord returns the payload of the record at path. It wraps ErrAbsent when there is none and errTorn when its
// checksum or schema is not as written.
func (s *Store) readRecord(path string) (json.RawMessage, error) {
	data, err := s.readFile(path, maxRecordBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read record %s: %w", path, ErrAbsent)
	}
	if err != nil {
		return nil, fmt.Errorf("read record %s: %w", path, err)
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, fmt.Errorf("read record %s: %w: %w", path, errTorn, err)
	}
	sum := sha256.Sum256(e.Payload)
	if e.Schema != recordSchema || e.SHA256 != hex.EncodeToString(sum[:]) {
		return nil, fmt.Errorf("read record %s: %w", path, errTorn)
	}
	return e.Payload, nil
}

// loadRecord is readRecord for callers that treat a torn record as absent: also, and the record, go to quarantine.
func (s *Store) loadRecord(path string, also ...string) (json.RawMessage, error) {
	payload, err := s.readRecord(path)
	if errors.Is(err, errTorn) {
		if err := s.quarantine(append(also, path)...); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	return payload, diskError("read record", path, 0, err)
}

// PutPrepared durably keeps one JSON value under id, replacing what was there. A failure leaves the old value.
func (s *Store) PutPrepared(id string, record json.RawMessage) error {
	if err := checkKey("prepared_id", id); err != nil {
		return err
	}
	path := s.path("prepared", id+".json")
	return diskError("keep prepared record "+id, path, int64(len(record)), s.writeRecord(path, record))
}

// Prepared returns the bytes that PutPrepared got under id. It wraps ErrAbsent when there are none; a torn record goes
// to quarantine and is absent.
func (s *Store) Prepared(id string) (json.RawMessage, error) {
	if err := checkKey("prepared_id", id); err != nil {
		return nil, err
	}
	return s.loadRecord(s.path("prepared", id+".json"))
}

// PreparedRecord is one value kept by PutPrepared.
type PreparedRecord struct {
	ID   string
	Data json.RawMessage
}

// ListPrepared returns every whole record, by id. What could not be read is told in errs, one error each, and does not
// keep the others back; torn records are in quarantine after it. err is set when the folder itself cannot be read.
func (s *Store) ListPrepared(ctx context.Context) (records []PreparedRecord, errs []error, err error) {
	dir := s.path("prepared")
	entries, err := s.fs.ReadDir(dir)
	if err != nil {
		return nil, nil, diskError("list prepared records", dir, 0, err)
	}
	for _, entry := range entries {
		if ctx.Err() != nil {
			return nil, nil, fmt.Errorf("list prepared records: %w", context.Cause(ctx))
		}
		id, ok := strings.CutSuffix(entry.Name(), ".json")
		if !ok {
			continue
		}
		data, err := s.loadRecord(filepath.Join(dir, entry.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("prepared record %s: %w", id, err))
			continue
		}
		records = append(records, PreparedRecord{ID: id, Data: data})
	}
	return records, errs, nil
}

// PutResolution durably keeps what a mutable name (a git ref, a registry version) was resolved to. key is any text.
func (s *Store) PutResolution(key, value string) error {
	payload, err := json.Marshal([2]string{key, value})
	if err != nil {
		return fmt.Errorf("keep resolution of %s: %w", key, err)
	}
	path := s.path("resolutions", fileName(key)+".json")
	return diskError("keep resolution of "+key, path, int64(len(payload)), s.writeRecord(path, payload))
}

// Resolution returns the value last kept for key, or an error that wraps ErrAbsent.
func (s *Store) Resolution(key string) (string, error) {
	payload, err := s.loadRecord(s.path("resolutions", fileName(key)+".json"))
	if err != nil {
		return "", err
	}
	var pair [2]string
	if err := json.Unmarshal(payload, &pair); err != nil || pair[0] != key {
		return "", fmt.Errorf("resolution of %s: %w", key, ErrAbsent)
	}
	return pair[1], nil
}
