// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"encoding/json"
	"fmt"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// known is what a request led to once.
type known struct {
	Digest  store.Digest `json:"digest"`
	Archive store.Digest `json:"archive,omitempty"`
	Name    string       `json:"name"`
}

func (k known) result(blob store.Blob) Result {
	return Result{Blob: blob, Name: k.Name, Archive: k.Archive}
}

// recall returns what an earlier fetch of the request found; the blob may be gone since.
func (f *Fetcher) recall(req Request) (known, error) {
	key := f.requestKey(req)
	if req.Ref.Scheme == SchemeFile {
		file, err := f.openFile(req)
		if err != nil {
			return known{}, err
		}
		info, err := file.Stat()
		_ = file.Close()
		if err != nil {
			return known{}, fmt.Errorf("recall %s: %w", reason.Redact(req.Ref.String()), err)
		}
		key = fileKey(req.Ref, info)
	}
	text, err := f.cfg.Store.Resolution(key)
	if err != nil {
		return known{}, err
	}
	var found known
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		return known{}, fmt.Errorf("recall %s: %w", reason.Redact(req.Ref.String()), err)
	}
	return found, nil
}

// remember keeps what the request of key led to.
func (f *Fetcher) remember(key string, result Result) error {
	text, err := json.Marshal(known{Digest: result.Blob.Digest, Archive: result.Archive, Name: result.Name})
	if err != nil {
		return fmt.Errorf("remember %s: %w", reason.Redact(key), err)
	}
	return f.cfg.Store.PutResolution(key, string(text))
}

// requestKey names all that decides what a package reference leads to.
func (f *Fetcher) requestKey(req Request) string {
	registry := f.cfg.NPMRegistryURL
	if req.Ref.Scheme == SchemePyPI {
		registry = f.cfg.PyPIIndexURL + " " + f.cfg.Platform.String()
	}
	return fmt.Sprintf("fetch %s archive=%s from %s", req.Ref, req.Archive, redact(registry))
}
