// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestAStartMakesNoFile counts the files that starts and stops of engines make: none, because there are spares.
func TestAStartMakesNoFile(t *testing.T) {
	t.Parallel()
	disk := newMemFS()
	s, err := openMem(disk)
	if err != nil {
		t.Fatal(err)
	}
	made := disk.made
	for generation := range uint64(5) {
		r, p := testRecord("a", generation), testPool("a", 1)
		for _, err := range []error{s.SavePool(p), s.Save(r), s.Save(r), s.SavePool(p), s.Remove(r.Key()), s.RemovePool("a")} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if disk.made != made {
		t.Errorf("%d files were made, want none", disk.made-made)
	}
}

// TestSparesAreBounded replaces and removes many records of all lengths: few files stay.
func TestSparesAreBounded(t *testing.T) {
	t.Parallel()
	disk := newMemFS()
	s, err := openMem(disk)
	if err != nil {
		t.Fatal(err)
	}
	sizes := []int{0, 1, pageBytes, 2 * pageBytes, 20 * pageBytes}
	for round := range 2 {
		for i := range 100 {
			p := testPool(fmt.Sprintf("p%d", i), 1)
			p.Prepared = make([]byte, sizes[(i+round)%len(sizes)])
			if err := s.SavePool(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i := range 100 {
		if err := s.RemovePool(fmt.Sprintf("p%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	left := disk.at("/state/scratch").names
	if len(left) > maxSpares*maxSparePages || len(left) < maxSpares {
		t.Errorf("%d spares are left", len(left))
	}
	for name, f := range left {
		if len(f.data) > maxSparePages*pageBytes {
			t.Errorf("spare %s has %d bytes", name, len(f.data))
		}
	}
	if _, err := openMem(disk); err != nil {
		t.Fatal(err)
	}
	if left := disk.at("/state/scratch").names; len(left) != firstSpares {
		t.Errorf("%d spares are left after the directory was opened again, want %d", len(left), firstSpares)
	}
}

// A reader of starts may have a file open that is replaced or deleted meanwhile: it is never written over.
func TestNoFileOfAStartIsWrittenOver(t *testing.T) {
	t.Parallel()
	disk, s, _ := newWorld(t, false)
	read := map[*memFile]string{}
	for generation := range uint64(3 * keptStarts) {
		for range 2 {
			mustSaveStarts(t, s, testStart("a", 0, generation))
			f := disk.at("/state/starts/a/" + startName(0, generation))
			read[f] = string(f.data)
			if err := s.Save(testRecord("a", generation)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for f, text := range read {
		if string(f.data) != text {
			t.Errorf("a file was %q, now it is %q", text, f.data)
		}
	}
	if len(read) != 6*keptStarts {
		t.Errorf("%d files were seen, want one for each save", len(read))
	}
}

// A file of schema 1, which no save could write over, is not kept.
func TestNoSpareOfAnotherLength(t *testing.T) {
	t.Parallel()
	disk, s, _ := newWorld(t, false)
	spares := len(disk.at("/state/scratch").names)
	for generation := range uint64(5) {
		r := testRecord("a", generation)
		disk.at("/state/replicas").names["a-"+startName(0, generation)] = &memFile{data: []byte("short")}
		for _, err := range []error{s.Save(r), s.Remove(r.Key())} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if left := len(disk.at("/state/scratch").names); left != spares {
		t.Errorf("%d spares became %d", spares, left)
	}
}

// A record that was replaced where names cannot be exchanged leaves nothing behind.
func TestDiskThatCannotExchange(t *testing.T) {
	t.Parallel()
	disk := newMemFS()
	disk.simple = true
	s, err := openMem(disk)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := s.Save(testRecord("a", 1)); err != nil {
			t.Fatal(err)
		}
	}
	if left := disk.at("/state/scratch").names; len(left) != 0 {
		t.Errorf("%d files are left", len(left))
	}
	if loaded := mustLoad(t, s); len(loaded.Records) != 1 {
		t.Errorf("loaded %+v", loaded)
	}
}

// The kernel's word for what it cannot exchange is the one that a save falls back on.
func TestExchangeOfTheRealDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (osFS{}).Exchange(dir, inner); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a folder and its own: got %v, want ErrUnsupported", err)
	}
	if err := (osFS{}).Exchange(inner, filepath.Join(dir, "none")); !isMissing(err) {
		t.Errorf("a folder and nothing: got %v, want a missing file", err)
	}
}

// TestNoSpareIsStillARecord lets the sync of a folder fail and loses it: the file that was replaced must not be written
// over.
func TestNoSpareIsStillARecord(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*Store) error{
		"replaced": func(s *Store) error { return s.Save(testRecord("a", 1)) },
		"removed":  func(s *Store) error { return s.Remove(testRecord("a", 1).Key()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(50) {
				disk, s, _ := newWorld(t, false)
				if err := s.Save(testRecord("a", 1)); err != nil {
					t.Fatal(err)
				}
				err := change(s)
				if err != nil {
					t.Fatal(err)
				}
				// The same once more, with the fault; then others write.
				_ = s.Save(testRecord("a", 1))
				disk.failSync = true
				if err := change(s); err == nil {
					t.Fatal("no error, though the folder was not synced")
				}
				disk.failSync = false
				for i := range 2 * maxSpares {
					if err := s.SavePool(testPool(fmt.Sprintf("p%d", i), 1)); err != nil {
						t.Fatal(err)
					}
				}
				if found, err := survey(disk.crashed(rand.New(rand.NewPCG(seed, seed)))); err != nil {
					t.Fatalf("seed %d: %v, %v", seed, found, err)
				}
			}
		})
	}
}

// TestRecordsAtOnce changes many records at once on the real disk.
func TestRecordsAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	var writers sync.WaitGroup
	for i := range 12 {
		writers.Go(func() {
			pool := fmt.Sprintf("p%d", i)
			for generation := range uint64(6) {
				engine, desired := testRecord(pool, generation), testPool(pool, generation)
				desired.Prepared = bytes.Repeat([]byte{byte(i)}, 600*i)
				for _, err := range []error{
					s.SavePool(desired), s.Save(engine), s.Save(engine), s.Remove(testRecord(pool, generation-1).Key()),
				} {
					if err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	writers.Wait()
	engines, pools := mustLoad(t, s), mustLoadPools(t, s)
	if len(engines.Records) != 12 || len(pools.Pools) != 12 || len(engines.Quarantined)+len(pools.Quarantined) != 0 {
		t.Errorf("loaded %d and %d records, quarantined %+v, %+v", len(engines.Records), len(pools.Pools), engines.Quarantined, pools.Quarantined)
	}
	if left, err := os.ReadDir(filepath.Join(dir, scratchDir)); err != nil || len(left) > 4*maxSpares {
		t.Errorf("%d files are left, %v", len(left), err)
	}
}
