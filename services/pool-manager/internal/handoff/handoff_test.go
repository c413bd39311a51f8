// SPDX-License-Identifier: Apache-2.0

package handoff

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

func testEntry() Entry {
	return Entry{
		Engine: "kind", EngineVersion: "v1 (abc)", ProvisioningMode: "source", URL: "http://127.0.0.1:43121",
		PoolID: "chat", ReplicaID: "chat-0", Model: Model{ID: "m", Path: "/models/m.gguf"}, Flags: []string{"--ctx", "2048"},
		SlotsTotal: 4, SlotsFree: 3, PID: 42,
	}
}

// golden is the format that other programs read.
const golden = `{
  "engine": "kind",
  "engine_version": "v1 (abc)",
  "provisioning_mode": "source",
  "url": "http://127.0.0.1:43121",
  "pool_id": "chat",
  "replica_id": "chat-0",
  "model": {
    "id": "m",
    "path": "/models/m.gguf"
  },
  "flags": [
    "--ctx",
    "2048"
  ],
  "device_mask": "",
  "slots_total": 4,
  "slots_free": 3,
  "pid": 42
}
`

func openDir(t testing.TB, path string) *Dir {
	t.Helper()
	d, err := Open(Config{Dir: path})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func names(t testing.TB, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	all := []string{}
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestPublishAndWithdraw(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "run", "handoff")
	d := openDir(t, dir)
	path, err := d.Publish(testEntry())
	if err != nil || path != filepath.Join(dir, "chat-0.json") {
		t.Fatalf("Publish: %q, %v", path, err)
	}
	got, err := os.ReadFile(path)
	if diff := cmp.Diff(golden, string(got)); err != nil || diff != "" {
		t.Errorf("file: %v (-want +got):\n%s", err, diff)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("file: %v, %v; want mode 0644", info, err)
	}
	bare := testEntry()
	bare.ReplicaID, bare.Flags = "chat-1", nil
	path, err = d.Publish(bare)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !strings.Contains(string(got), `"flags": []`) {
		t.Errorf("file without flags: %s, %v; want an empty list", got, err)
	}
	for range 2 {
		if err := d.Withdraw("chat-0"); err != nil {
			t.Errorf("Withdraw: %v", err)
		}
	}
	if got, want := names(t, dir), []string{"chat-1.json"}; !slices.Equal(got, want) {
		t.Errorf("files: got %q, want %q", got, want)
	}
}

func TestBadIDs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir)
	for _, tt := range []struct{ name, pool, replica string }{
		{"no pool", "", "-0"},
		{"of another pool", "chat", "code-0"},
		{"pool alone", "chat", "chat"},
		{"upwards", "..", "..-0/../../x"},
		{"slash", "a/b", "a/b-0"},
		{"hidden", ".a", ".a-0"},
		{"zero byte", "a\x00", "a\x00-0"},
		{"long", "a", "a-" + strings.Repeat("0", maxID)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := testEntry()
			e.PoolID, e.ReplicaID = tt.pool, tt.replica
			if path, err := d.Publish(e); reason.Of(err) != reason.InvalidParams {
				t.Errorf("Publish: %q, %v; want InvalidParams", path, err)
			}
		})
	}
	if err := d.Withdraw("../x"); reason.Of(err) != reason.InvalidParams {
		t.Errorf("Withdraw of a path: %v; want InvalidParams", err)
	}
}

func TestKeepRemovesOnlyWhatIsNotWanted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir)
	if _, err := d.Publish(testEntry()); err != nil {
		t.Fatal(err)
	}
	wanted := testEntry()
	wanted.ReplicaID, wanted.PID = "chat-3", 43
	if _, err := d.Publish(wanted); err != nil {
		t.Fatal(err)
	}
	foreign := map[string]string{
		"config.json":   `{"key": "value"}`,
		"chat-1.json":   golden, // A copy under another name.
		"broken-0.json": `{"pool_id": "broken",`,
		"notes.txt":     golden,
	}
	for name, text := range foreign {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("chat-1.json", filepath.Join(dir, "chat-2.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, tempPrefix+"123"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d = openDir(t, dir)
	want := []string{"broken-0.json", "chat-0.json", "chat-1.json", "chat-2.json", "chat-3.json", "config.json", "notes.txt"}
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("files after Open: got %q, want %q", got, want)
	}
	asked := map[string]int{}
	err := d.Keep(func(e Entry) bool {
		asked[e.ReplicaID] = e.PID
		return e.PID == 43
	})
	if diff := cmp.Diff(map[string]int{"chat-0": 42, "chat-3": 43}, asked); err != nil || diff != "" {
		t.Errorf("Keep: %v, asked about (-want +got):\n%s", err, diff)
	}
	want = slices.DeleteFunc(want, func(name string) bool { return name == "chat-0.json" })
	if got := names(t, dir); !slices.Equal(got, want) {
		t.Errorf("files after Keep: got %q, want %q", got, want)
	}
}

func TestStorageErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Open(Config{Dir: "relative"}); reason.Of(err) != reason.InvalidParams {
		t.Errorf("Open of a relative path: %v", err)
	}
	if _, err := Open(Config{Dir: "/proc/handoff"}); reason.Of(err) != reason.StorageFailed {
		t.Errorf("Open where nothing can be created: %v", err)
	}
	gone := openDir(t, filepath.Join(dir, "gone"))
	if err := os.Remove(filepath.Join(dir, "gone")); err != nil {
		t.Fatal(err)
	}
	if err := gone.Keep(func(Entry) bool { return true }); reason.Of(err) != reason.StorageFailed {
		t.Errorf("Keep without the directory: %v", err)
	}
	d := openDir(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "chat-0.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Publish(testEntry()); reason.Of(err) != reason.StorageFailed {
		t.Errorf("Publish over a folder: %v", err)
	}
	if got, want := names(t, dir), []string{"chat-0.json"}; !slices.Equal(got, want) {
		t.Errorf("files after a failed Publish: got %q, want %q", got, want)
	}
	if got := reason.Of(storageError("write", &os.PathError{Err: unix.ENOSPC})); got != reason.DiskFull {
		t.Errorf("reason without space: %v", got)
	}
}

// TestReadersSeeWholeFiles reads while the file is replaced.
func TestReadersSeeWholeFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	d := openDir(t, dir)
	e := testEntry()
	path, err := d.Publish(e)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	wrote := make(chan error, 1)
	go func() {
		var err error
		for i := 0; ctx.Err() == nil && err == nil; i++ {
			e.Flags = append(e.Flags[:2], strings.Repeat("x", i%5000))
			_, err = d.Publish(e)
		}
		wrote <- err
	}()
	for i := range 2000 {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var got Entry
		if err := json.Unmarshal(text, &got); err != nil || got.PID != 42 {
			t.Fatalf("reading %d: %q, %v", i, text, err)
		}
	}
	cancel()
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

func BenchmarkPublish(b *testing.B) {
	d := openDir(b, b.TempDir())
	for b.Loop() {
		if _, err := d.Publish(testEntry()); err != nil {
			b.Fatal(err)
		}
	}
}
