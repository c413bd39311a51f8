// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Want is what a failed call must tell.
type Want struct {
	Code   codes.Code
	Reason reason.Reason
	// Field is one of the fields that it names; empty means that it need not name one.
	Field string
	// Metadata must all be there; an empty value stands for any.
	Metadata map[string]string
	// Message is a part of its message; empty means any.
	Message string
}

// Check fails the test unless err is what is wanted, with a message and a remedy.
func (w Want) Check(tb testing.TB, err error) {
	tb.Helper()
	e, ok := reason.As(err)
	if !ok {
		tb.Errorf("error = %v, want %v with reason %v", err, w.Code, w.Reason)
		return
	}
	if code := status.Code(err); code != w.Code || e.Reason != w.Reason {
		tb.Errorf("error = %v %v, want %v %v: %v", code, e.Reason, w.Code, w.Reason, err)
	}
	if w.Field != "" && !slices.ContainsFunc(e.Fields, func(f reason.FieldViolation) bool { return f.Name == w.Field }) {
		tb.Errorf("error names the fields %v, want %s: %v", e.Fields, w.Field, err)
	}
	for key, want := range w.Metadata {
		if got, ok := e.Metadata[key]; !ok || want != "" && got != want {
			tb.Errorf("metadata %s = %q, want %q: %v", key, got, want, err)
		}
	}
	if e.Remedy == "" {
		tb.Errorf("error has no remedy: %v", err)
	}
	if e.Message == "" || !strings.Contains(err.Error(), w.Message) {
		tb.Errorf("error = %q, want one that says %q", err.Error(), w.Message)
	}
}

// StoreFiles are the files in the node's store that hold something of an engine or a model: all but locks and records of
// what a reference means.
func (n *Node) StoreFiles() []string {
	var found []string
	for _, folder := range []string{"blobs", "engines", "models", "builds", "sources", "prepared", "partial", "tmp", "quarantine"} {
		_ = filepath.WalkDir(filepath.Join(n.Store, folder), func(path string, entry fs.DirEntry, err error) error {
			if err == nil && !entry.IsDir() {
				found = append(found, strings.TrimPrefix(path, n.Store+"/"))
			}
			return nil
		})
	}
	return found
}

// WriteFile writes a file below the node's root and returns its path. One with the same content is left as it is.
func (n *Node) WriteFile(tb testing.TB, name string, data []byte) string {
	tb.Helper()
	path := filepath.Join(n.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatalf("make folder: %v", err)
	}
	if was, err := os.ReadFile(path); err == nil && bytes.Equal(was, data) {
		return path
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		tb.Fatalf("write file: %v", err)
	}
	return path
}
