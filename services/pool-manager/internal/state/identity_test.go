// SPDX-License-Identifier: Apache-2.0

package state

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTheIDStays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	id := s.ManagerID()
	if len(id) != 32 || id == openDir(t, t.TempDir()).ManagerID() {
		t.Errorf("the id is %q", id)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openDir(t, dir)
		if got := s.ManagerID(); got != id {
			t.Errorf("the id was %q, now it is %q", id, got)
		}
	}
}

// A damaged id is moved aside and told of; the new one stays.
func TestDamagedID(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(path string) error{
		"torn":    func(path string) error { return os.Truncate(path, 20) },
		"empty":   func(path string) error { return os.Truncate(path, 0) },
		"foreign": func(path string) error { return os.WriteFile(path, []byte("buy milk"), 0o600) },
		"no id": func(path string) error {
			return os.WriteFile(path, seal(identity{}.kind(), schema, `{"id":""}`), 0o600)
		},
		"a folder": replaceByFolder,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openDir(t, dir)
			id := s.ManagerID()
			if err := s.Save(testRecord("a", 1)); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := damage(filepath.Join(dir, idName)); err != nil {
				t.Fatal(err)
			}
			s = openDir(t, dir)
			again := s.ManagerID()
			if len(again) != 32 || again == id {
				t.Errorf("the id was %q, now it is %q; want another", id, again)
			}
			got := mustLoad(t, s)
			if len(got.Records) != 1 || len(got.Quarantined) != 1 || got.Quarantined[0].Name != idName || got.Quarantined[0].PoolID != "" {
				t.Errorf("loaded %+v, want one record and the damaged id", got)
			}
			if _, err := os.Lstat(filepath.Join(dir, quarantineDir, idName)); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = openDir(t, dir)
			if got := s.ManagerID(); got != again {
				t.Errorf("the new id was %q, now it is %q", again, got)
			}
			if got := mustLoad(t, s); len(got.Quarantined) != 0 {
				t.Errorf("quarantined again: %+v", got.Quarantined)
			}
		})
	}
}

func replaceByFolder(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.MkdirAll(filepath.Join(path, "full"), 0o700)
}
