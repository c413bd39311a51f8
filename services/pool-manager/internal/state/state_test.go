// SPDX-License-Identifier: Apache-2.0

package state

import (
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
		PoolID: pool, Replica: 0, Generation: generation, Edition: 2, Manager: "5e1f", PreparedID: "sha256:ab", Phase: Started,
		Identity:   process.Identity{BootID: "boot", PID: 42, StartTicks: 7, Executable: "/bin/<engine> & co", Nonce: "n0nce"},
		Executable: "/bin/engine", LogPath: "/var/log/engine.log", Endpoint: "http://127.0.0.1:1", Port: 1,
		StartedBy: "restart", Adopted: true, ReadyAt: time.Date(2026, 1, 2, 3, 4, 7, 0, time.UTC),
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

func mustLoad(t testing.TB, s *Store) Loaded {
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
	if diff := cmp.Diff(want, mustLoad(t, s)); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := s.Remove(intent.Key()); err != nil {
			t.Errorf("Remove: %v", err)
		}
	}
	if diff := cmp.Diff(Loaded{Records: []Record{second}}, mustLoad(t, s)); diff != "" {
		t.Errorf("loaded after a removal (-want +got):\n%s", diff)
	}
	info, err := os.Stat(filepath.Join(dir, recordDir, "pool.A_1-x-0-g2.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v; want mode 0600", info, err)
	}
}

func TestKeysThatAreNoFileNames(t *testing.T) {
	t.Parallel()
	s := openDir(t, t.TempDir())
	for _, pool := range []string{"", ".", "..", "../../x", "a/b", ".hidden", "a\x00b", "a b", "ä", strings.Repeat("p", 300)} {
		engine := testRecord(pool, 1)
		_, startsErr := s.Starts(pool)
		for what, err := range map[string]error{
			"Save": s.Save(engine), "Remove": s.Remove(engine.Key()), "SavePool": s.SavePool(testPool(pool, 1)), "RemovePool": s.RemovePool(pool),
			"SaveStart": s.SaveStart(testStart(pool, 0, 1)), "Starts": startsErr, "RemoveStarts": s.RemoveStarts(pool),
		} {
			if reason.Of(err) != reason.InvalidParams {
				t.Errorf("%s of pool %q: got %v, want InvalidParams", what, pool, err)
			}
		}
	}
}

func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "taken", scratchDir, "1", "full"), 0o700); err != nil {
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
		{"the scratch folder cannot be emptied", filepath.Join(dir, "taken"), reason.StorageFailed, "directory not empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Open(Config{Dir: tt.dir})
			if s != nil || reason.Of(err) != tt.want || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Open(%s): %v, %v; want %v with %q", tt.dir, s, err, tt.want, tt.text)
			}
		})
	}
	if err := os.RemoveAll(filepath.Join(dir, "taken", scratchDir, "1")); err != nil {
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

// BenchmarkSave is what a start pays: a record in a new place, the same again, and its removal.
func BenchmarkSave(b *testing.B) {
	s := openDir(b, b.TempDir())
	r := testRecord("a", 0)
	for b.Loop() {
		r.Generation++
		for _, phase := range []Phase{Intended, Started} {
			r.Phase = phase
			if err := s.Save(r); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		if err := s.Remove(r.Key()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(2*b.N), "us/save")
}

func BenchmarkSaveStart(b *testing.B) {
	s := openDir(b, b.TempDir())
	r := testStart("a", 0, 0)
	for b.Loop() {
		r.Generation++
		r.StartedAt = r.StartedAt.Add(1)
		if err := s.SaveStart(r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	s := openDir(b, b.TempDir())
	for generation := range uint64(100) {
		if err := s.Save(testRecord("a", generation)); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if loaded, err := s.Load(); err != nil || len(loaded.Records) != 100 {
			b.Fatal(len(loaded.Records), err)
		}
	}
}
