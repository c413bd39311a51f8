// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

func TestStamp(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte(content), 0o644))
	info, err := os.Stat(path)
	must(t, err)
	var stat unix.Stat_t
	must(t, unix.Stat(path, &stat))
	want := store.Stamp{SizeBytes: stat.Size, ModifiedNano: stat.Mtim.Nano(), ChangedNano: stat.Ctim.Nano(), Inode: stat.Ino}
	if got := store.StampOf(info); got != want {
		t.Errorf("stamp %+v, want %+v", got, want)
	}
	texts := map[string]bool{}
	for _, stamp := range []store.Stamp{{}, {SizeBytes: 1}, {ModifiedNano: 1}, {ChangedNano: 1}, {Inode: 1}} {
		texts[stamp.String()] = true
	}
	if len(texts) != 5 {
		t.Errorf("five stamps have the texts %v", texts)
	}
}
