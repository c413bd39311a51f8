// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func mustStarts(t testing.TB, s *Store, pool string) []StartRecord {
	t.Helper()
	starts, err := s.Starts(pool)
	if err != nil {
		t.Fatal(err)
	}
	return starts
}

func mustSaveStarts(t testing.TB, s *Store, starts ...StartRecord) {
	t.Helper()
	for _, r := range starts {
		if err := s.SaveStart(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStartsComeBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	first, second, other := testStart("a", 0, 1), testStart("a", 0, 2), testStart("a", 1, 3)
	never := testStart("a", 1, 4) // It was not even made.
	never.PID, never.ReadyAt, never.Error, never.Class, never.Signal = 0, time.Time{}, "port 1 is taken", "UNSPECIFIED", ""
	never.StartedAt, never.Uptime, never.LastLines, never.EndedBy = first.StartedAt, 0, nil, "drain"
	mustSaveStarts(t, s, other, first, never, second, testStart("A", 0, 1))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir)
	if diff := cmp.Diff([]StartRecord{other, second, never, first}, mustStarts(t, s, "a")); diff != "" {
		t.Errorf("starts, newest first (-want +got):\n%s", diff)
	}
	first.EndedBy, first.LastLines = "stalled", []string{strings.Repeat("x", 16<<10)}
	mustSaveStarts(t, s, first)
	if diff := cmp.Diff([]StartRecord{other, second, never, first}, mustStarts(t, s, "a")); diff != "" {
		t.Errorf("after one was saved again (-want +got):\n%s", diff)
	}
	if got := mustStarts(t, s, "unknown"); len(got) != 0 {
		t.Errorf("an unknown pool has starts: %+v", got)
	}
}

// TestNewestStartsAreKept also makes the clock jump back: what was saved last stays, even if it seems to be the oldest.
func TestNewestStartsAreKept(t *testing.T) {
	t.Parallel()
	s := openDir(t, t.TempDir())
	mustSaveStarts(t, s, testStart("a", 1, 1), testStart("a", 10, 1))
	for generation := range uint64(maxStarts + 5) {
		mustSaveStarts(t, s, testStart("a", 1, 2+generation))
	}
	late := testStart("a", 1, 100)
	late.StartedAt = late.StartedAt.Add(-24 * time.Hour)
	mustSaveStarts(t, s, late)
	var want, got []string
	for generation := maxStarts + 6; generation > 7; generation-- {
		want = append(want, fmt.Sprintf("1-%d", generation))
	}
	want = append(want, "10-1", "1-100")
	for _, r := range mustStarts(t, s, "a") {
		got = append(got, fmt.Sprintf("%d-%d", r.Replica, r.Generation))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("starts kept (-want +got):\n%s", diff)
	}
	if len(want) != maxStarts+1 {
		t.Fatalf("the test wants %d starts", len(want))
	}
}

func TestBadStartsArePutAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	mustSaveStarts(t, s, testStart("a", 0, 1), testStart("a", 0, 2), testStart("a", 0, 3), testStart("b", 0, 1))
	folder := filepath.Join(dir, startDir, "a")
	good, err := os.ReadFile(filepath.Join(folder, "0-g1.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		"0-g1.json": good[:100],
		"0-g2.json": bytes.Replace(good, []byte("SIGSEGV"), []byte("SIGKILL"), 1),
		"0-g9.json": good,
		"notes.txt": []byte("buy milk"),
	} {
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if diff := cmp.Diff([]StartRecord{testStart("a", 0, 3)}, mustStarts(t, s, "a")); diff != "" {
			t.Errorf("starts (-want +got):\n%s", diff)
		}
	}
	for _, name := range []string{"start-a-0-g1.json", "start-a-0-g2.json", "start-a-0-g9.json", "start-a-notes.txt"} {
		if _, err := os.Stat(filepath.Join(dir, quarantineDir, name)); err != nil {
			t.Error(err)
		}
	}
}

// A file where the folder of a pool belongs stops neither saving nor reading.
func TestFileInPlaceOfTheFolderOfStarts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	for _, pool := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(dir, startDir, pool), []byte("buy milk"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustSaveStarts(t, s, testStart("a", 0, 1))
	if diff := cmp.Diff([]StartRecord{testStart("a", 0, 1)}, mustStarts(t, s, "a")); diff != "" {
		t.Errorf("starts (-want +got):\n%s", diff)
	}
	if got := mustStarts(t, s, "b"); len(got) != 0 {
		t.Errorf("starts: %+v", got)
	}
	if err := s.RemoveStarts("c"); err != nil {
		t.Error(err)
	}
	for _, pool := range []string{"a", "b", "c"} {
		if text, err := os.ReadFile(filepath.Join(dir, quarantineDir, "start-"+pool)); err != nil || string(text) != "buy milk" {
			t.Errorf("in quarantine: %q, %v", text, err)
		}
	}
}

func TestRemoveStartsLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	mustSaveStarts(t, s, testStart("a", 0, 1), testStart("a", 1, 1), testStart("ab", 0, 1))
	if err := os.MkdirAll(filepath.Join(dir, startDir, "a", "folder", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.RemoveStarts("a"); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(filepath.Join(dir, startDir))
		if err != nil || len(entries) != 1 || entries[0].Name() != "ab" {
			t.Errorf("left: %v, %v; want the other pool's", entries, err)
		}
	}
	mustSaveStarts(t, s, testStart("a", 0, 2)) // The same id may be used again.
	if diff := cmp.Diff([]StartRecord{testStart("a", 0, 2)}, mustStarts(t, s, "a")); diff != "" {
		t.Errorf("starts (-want +got):\n%s", diff)
	}
}

// TestStartsAtOnce saves the starts of many replicas at once while others read them: no reader takes a file for a bad one.
func TestStartsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	s.starts = 3
	var writers, readers sync.WaitGroup
	ended := make(chan struct{})
	for replica := range 6 {
		writers.Go(func() {
			for generation := range uint64(12) {
				r := testStart("a", replica, generation)
				for range 2 {
					r.LastLines = append(r.LastLines, "again")
					if err := s.SaveStart(r); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for reading := true; reading; {
				select {
				case <-ended:
					reading = false
				default:
				}
				if _, err := s.Starts("a"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	close(ended)
	readers.Wait()
	if got := mustStarts(t, s, "a"); len(got) != 6*3 {
		t.Errorf("%d starts are kept, want 18", len(got))
	}
	if aside, err := os.ReadDir(filepath.Join(dir, quarantineDir)); err != nil || len(aside) != 0 {
		t.Errorf("in quarantine: %v, %v", aside, err)
	}
}

func TestGenerations(t *testing.T) {
	t.Parallel()
	s := openDir(t, t.TempDir())
	for _, start := range []StartRecord{{PoolID: "a", Generation: 2}, {PoolID: "a", Generation: 11}, {PoolID: "a", Replica: 3, Generation: 7}, {PoolID: "b", Generation: 40}} {
		if err := s.SaveStart(start); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"0-g999.json.bak", "0-g0999.json", "-1-g999.json", "0-g-999.json", "+0-g999.json", "0-g999", "0-g18446744073709551616.json", ".json"} {
		if err := os.WriteFile(filepath.Join(s.path(startDir), "a", name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Generations("a")
	if diff := cmp.Diff(map[int]uint64{0: 11, 3: 7}, got); diff != "" || err != nil {
		t.Errorf("generations (-want +got), %v:\n%s", err, diff)
	}
	if got, err := s.Generations("nobody"); len(got) > 0 || err != nil {
		t.Errorf("of an unknown pool: %v, %v", got, err)
	}
}

// TestStartsThatVanishMeanwhile lets others do something just before a reader of starts comes to a path.
func TestStartsThatVanishMeanwhile(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, due string
		meanwhile func(*testing.T, *Store)
		want      int
	}{
		{"the file was put aside", "readdir /state/quarantine", func(t *testing.T, s *Store) {
			if got := mustStarts(t, s, "a"); len(got) != 1 {
				t.Errorf("the other reader got %+v", got)
			}
		}, 1},
		{"the file was removed", "read /state/starts/a/0-g1.json", removeStartsOfA, 0},
		{"the folder was removed before it was synced", "syncdir /state/starts/a", removeStartsOfA, 0},
		{"the folder was removed when it was noted", "syncdir /state/starts", removeStartsOfA, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			disk, s, _ := newWorld(t, false)
			mustSaveStarts(t, s, testStart("a", 0, 1))
			disk.at("/state/starts/a").names["0-g0.json"] = &memFile{data: []byte("{")}
			again, err := openMem(disk) // It has not noted the folder yet.
			if err != nil {
				t.Fatal(err)
			}
			disk.due, disk.before = tt.due, func() { tt.meanwhile(t, again) }
			if got, err := again.Starts("a"); err != nil || len(got) != tt.want {
				t.Errorf("Starts: %+v, %v; want %d", got, err, tt.want)
			}
			if disk.before != nil {
				t.Error("the reader never came there")
			}
			mustSaveStarts(t, again, testStart("a", 0, 2))
			if got := mustStarts(t, again, "a"); len(got) != tt.want+1 {
				t.Errorf("Starts after another was saved: %+v; want %d", got, tt.want+1)
			}
		})
	}
}

func removeStartsOfA(t *testing.T, s *Store) {
	if err := s.RemoveStarts("a"); err != nil {
		t.Error(err)
	}
}
