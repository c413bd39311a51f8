// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

func testRecord(pool string, generation uint64) Record {
	return Record{
		PoolID: pool, Replica: 0, Generation: generation, PreparedID: "sha256:ab", Phase: Started,
		Identity:   process.Identity{BootID: "boot", PID: 42, StartTicks: 7, Executable: "/bin/<engine> & co", Nonce: "n0nce"},
		Executable: "/bin/engine", LogPath: "/var/log/engine.log", Endpoint: "http://127.0.0.1:1",
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), StartedAt: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC),
	}
}

func openDir(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func load(t testing.TB, s *Store) Loaded {
	t.Helper()
	loaded, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestRecordsComeBack(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "deep", "state")
	s := openDir(t, dir)
	intent := testRecord("pool.A_1-x", 1)
	intent.Phase, intent.Identity, intent.StartedAt = Intended, process.Identity{BootID: "boot", Nonce: "n0nce"}, time.Time{}
	second := testRecord("pool.A_1-x", 2)
	for _, r := range []Record{testRecord("pool.A_1-x", 1), intent, second} {
		if err := s.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir)
	want := Loaded{Records: []Record{intent, second}}
	if diff := cmp.Diff(want, load(t, s)); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := s.Remove(intent.Key()); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if diff := cmp.Diff(Loaded{Records: []Record{second}}, load(t, s)); diff != "" {
		t.Errorf("loaded after a removal (-want +got):\n%s", diff)
	}
	info, err := os.Stat(filepath.Join(dir, recordDir, "pool.A_1-x-0-g2.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v; want mode 0600", info, err)
	}
}

func TestBadFilesAreQuarantined(t *testing.T) {
	t.Parallel()
	good, err := encode(testRecord("a", 1))
	if err != nil {
		t.Fatal(err)
	}
	noNonce := testRecord("a", 1)
	noNonce.Identity.Nonce = ""
	unmarked, err := encode(noNonce)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, file string
		text       []byte
		want       string
	}{
		{"empty", "a-0-g1.json", nil, "torn"},
		{"torn", "a-0-g1.json", good[:len(good)/2], "torn"},
		{"something behind", "a-0-g1.json", append(bytes.Clone(good), '{'), "torn"},
		{"one digit changed", "a-0-g1.json", bytes.Replace(good, []byte(`"pid":42`), []byte(`"pid":43`), 1), "checksum"},
		{"a later schema", "a-0-g1.json", bytes.Replace(good, []byte(`"schema":1`), []byte(`"schema":2`), 1), "schema 2"},
		{"another's name", "b-0-g1.json", good, "belongs into a-0-g1.json"},
		{"another's file", "notes.txt", []byte("buy milk"), "torn or foreign"},
		{"no nonce", "a-0-g1.json", unmarked, "no nonce"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := openDir(t, dir)
			if err := s.Save(testRecord("z", 9)); err != nil {
				t.Fatal(err)
			}
			for round, moved := range []string{tt.file, tt.file + ".1"} {
				if err := os.WriteFile(filepath.Join(dir, recordDir, tt.file), tt.text, 0o600); err != nil {
					t.Fatal(err)
				}
				got := load(t, s)
				if len(got.Records) != 1 || got.Records[0].PoolID != "z" || len(got.Quarantined) != 1 {
					t.Fatalf("round %d: loaded %+v, want z and one quarantined", round, got)
				}
				q := got.Quarantined[0]
				if q.Name != tt.file || q.Path != filepath.Join(dir, quarantineDir, moved) || !strings.Contains(q.Reason, tt.want) {
					t.Errorf("round %d: quarantined %+v, want %s as %s for %q", round, q, tt.file, moved, tt.want)
				}
				if kept, err := os.ReadFile(q.Path); err != nil || !bytes.Equal(kept, tt.text) {
					t.Errorf("round %d: quarantine holds %q, %v", round, kept, err)
				}
			}
			if got := load(t, s); len(got.Quarantined) != 0 {
				t.Errorf("a later load quarantines again: %+v", got.Quarantined)
			}
		})
	}
}

func TestOddEntriesDoNotStopALoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	if err := os.Mkdir(filepath.Join(dir, recordDir, "folder.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, recordDir, "endless.json")); err != nil {
		t.Fatal(err)
	}
	if got := load(t, s); len(got.Quarantined) != 2 {
		t.Errorf("quarantined: %+v, want the folder and the link", got.Quarantined)
	}
}

func TestKeysThatAreNoFileNames(t *testing.T) {
	t.Parallel()
	s := openDir(t, t.TempDir())
	for _, pool := range []string{"", ".", "..", "../../x", "a/b", ".hidden", "a\x00b", "a b", "ä", strings.Repeat("p", 300)} {
		r := testRecord(pool, 1)
		if err := s.Save(r); reason.Of(err) != reason.InvalidParams {
			t.Errorf("Save of pool %q: got %v, want InvalidParams", pool, err)
		}
		if err := s.Remove(r.Key()); reason.Of(err) != reason.InvalidParams {
			t.Errorf("Remove of pool %q: got %v, want InvalidParams", pool, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "taken", recordDir, tempPrefix+"probe"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, dir string
		want      reason.Reason
		text      string
	}{
		{"relative", "state", reason.InvalidParams, "not an absolute path"},
		{"below a file", filepath.Join(dir, "file", "state"), reason.StorageFailed, "not a directory"},
		{"no such device", "/proc/state", reason.StorageFailed, "open state directory /proc/state"},
		{"not writable", "/proc/self", reason.StorageFailed, "give a directory that this user may write to"},
		{"the proof of writing fails", filepath.Join(dir, "taken"), reason.StorageFailed, "is a directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Open(Config{Dir: tt.dir})
			if s != nil || reason.Of(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Open(%s): %v, %v; want %v with %q", tt.dir, s, err, tt.want, tt.text)
			}
		})
	}
	if err := os.Remove(filepath.Join(dir, "taken", recordDir, tempPrefix+"probe")); err != nil {
		t.Fatal(err)
	}
	openDir(t, filepath.Join(dir, "taken")) // A failed Open has not kept the lock.
}

func TestOneStorePerDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	_, err := Open(Config{Dir: dir})
	var locked *LockedError
	if !errors.Is(err, ErrLocked) || !errors.As(err, &locked) || locked.PID != os.Getpid() || locked.Path != filepath.Join(dir, lockName) {
		t.Fatalf("a second Open: got %v, want locked by us", err)
	}
	if !strings.Contains(err.Error(), "use another state directory") {
		t.Errorf("%q does not say what to do", err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	openDir(t, dir)
}

// TestTheLockIsNotInherited starts a program while the lock is held, and takes the directory while it still runs. It is
// alone, because a fork has everybody's lock until its exec.
func TestTheLockIsNotInherited(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir)
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "600"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill()
		_, _ = p.Wait()
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openDir(t, dir)
}

func FuzzDecode(f *testing.F) {
	good, err := encode(testRecord("a", 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"schema":1,"sha256":"","record":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := decode("a-0-g1.json", text)
		if err == nil && (r.PoolID != "a" || r.Identity.Nonce == "") {
			t.Errorf("decode(%q): accepted %+v", text, r)
		}
	})
}

func BenchmarkSave(b *testing.B) {
	s := openDir(b, b.TempDir())
	r := testRecord("a", 1)
	for b.Loop() {
		if err := s.Save(r); err != nil {
			b.Fatal(err)
		}
	}
}
