// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

func TestPreparedRecords(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	must(t, s.PutPrepared("b", []byte(`{"v": 1,  "s":"a\u00e9"}`)))
	must(t, s.PutPrepared("a", []byte(`[2]`)))
	must(t, s.PutPrepared("a", []byte(`[3]`)))
	records, errs, err := s.ListPrepared(t.Context())
	must(t, err)
	want := []store.PreparedRecord{{ID: "a", Data: []byte(`[3]`)}, {ID: "b", Data: []byte(`{"v": 1,  "s":"a\u00e9"}`)}}
	if diff := cmp.Diff(want, records); diff != "" || len(errs) > 0 {
		t.Errorf("records (-want +got):\n%s%v", diff, errs)
	}
	if _, err := s.Prepared("c"); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("got %v, want absent", err)
	}
	for _, id := range []string{"", ".", "..", "a/b", "-a", "../../x"} {
		if err := s.PutPrepared(id, []byte(`1`)); reason.Of(err) != reason.InvalidParams {
			t.Errorf("PutPrepared(%q) = %v, want INVALID_PARAMS", id, err)
		}
	}
	if err := s.PutPrepared("d", []byte(`not json`)); err == nil {
		t.Error("a record that is not JSON was accepted")
	}
}

func TestTornRecords(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		tear func(data []byte) []byte
	}{
		{name: "empty", tear: func([]byte) []byte { return nil }},
		{name: "cut", tear: func(data []byte) []byte { return data[:len(data)/2] }},
		{name: "zeros", tear: func(data []byte) []byte { return make([]byte, len(data)) }},
		{name: "one bit", tear: func(data []byte) []byte { return bytes.Replace(data, []byte("value"), []byte("valud"), 1) }},
		{name: "another schema", tear: func(data []byte) []byte { return bytes.Replace(data, []byte(`"schema":1`), []byte(`"schema":9`), 1) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s, _ := newStore(t)
			must(t, s.PutPrepared("good", []byte(`1`)))
			must(t, s.PutPrepared("torn", []byte(`"value"`)))
			must(t, s.PutResolution("main", "value"))
			tearAll(t, s.Root(), test.tear)
			records, errs, err := s.ListPrepared(t.Context())
			must(t, err)
			if len(records) != 1 || records[0].ID != "good" || len(errs) != 1 {
				t.Errorf("records %v, errors %v; want the good one and one error", records, errs)
			}
			if _, err := s.Prepared("torn"); !errors.Is(err, store.ErrAbsent) {
				t.Errorf("got %v, want absent", err)
			}
			if value, err := s.Resolution("main"); !errors.Is(err, store.ErrAbsent) {
				t.Errorf("got %q, %v, want absent", value, err)
			}
			kept, err := os.ReadDir(filepath.Join(s.Root(), "quarantine"))
			must(t, err)
			if len(kept) != 2 {
				t.Errorf("%d records in quarantine, want 2", len(kept))
			}
		})
	}
}

func tearAll(t *testing.T, root string, tear func([]byte) []byte) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(root, "resolutions", "*"))
	must(t, err)
	for _, path := range append(paths, filepath.Join(root, "prepared", "torn.json")) {
		data, err := os.ReadFile(path)
		must(t, err)
		must(t, os.Remove(path))
		must(t, os.WriteFile(path, tear(data), 0o444))
	}
}

func TestResolutions(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	must(t, s.PutResolution("git https://host/x main", "abc"))
	must(t, s.PutResolution("git https://host/x main", "def"))
	value, err := s.Resolution("git https://host/x main")
	must(t, err)
	if value != "def" {
		t.Errorf("got %q, want the last one", value)
	}
	if _, err := s.Resolution("another"); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("got %v, want absent", err)
	}
}

func FuzzRecord(f *testing.F) {
	dir := f.TempDir()
	s, err := store.Open(store.Config{Root: filepath.Join(dir, "root")})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.PutPrepared("a", []byte(`{"x":[1,2]}`)); err != nil {
		f.Fatal(err)
	}
	path := filepath.Join(s.Root(), "prepared", "a.json")
	good, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"schema":1,"sha256":"","payload":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = os.Remove(path)
		must(t, os.WriteFile(path, data, 0o444))
		got, err := s.Prepared("a")
		if err == nil && !bytes.Contains(data, got) {
			t.Errorf("%q gave %q", data, got)
		}
		if err != nil && !errors.Is(err, store.ErrAbsent) {
			t.Errorf("%q: %v, want absent", data, err)
		}
	})
}
