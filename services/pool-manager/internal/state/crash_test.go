// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// openMem opens the directory of a disk as Open does, but for the lock.
func openMem(disk *memFS) (*Store, error) {
	if err := makeDir(disk, "/state"); err != nil {
		return nil, err
	}
	return open("/state", disk)
}

// newWorld returns an empty store on a disk, and what may be on it.
func newWorld(t *testing.T, simple bool) (*memFS, *Store, world) {
	t.Helper()
	disk := newMemFS()
	disk.simple = simple
	store, err := openMem(disk)
	if err != nil {
		t.Fatal(err)
	}
	store.starts = keptStarts
	return disk, store, world{id: store.ManagerID(), allowed: map[string][]string{}}
}

// TestNoCrashLosesOrTears cuts the power after every operation of a history, and loses what was not synced.
func TestNoCrashLosesOrTears(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		disk, store, allowed := newWorld(t, false)
		disk.failAt, disk.crash, disk.err = disk.ops+at, true, errors.New("power is off")
		finished := true
		for _, s := range history() {
			allowed.permit(s)
			if err := s.apply(store); err != nil {
				finished = false
				break
			}
			allowed.settle(s)
		}
		if err := allowed.checkCrashes(disk, crashSeeds); err != nil {
			t.Fatalf("power off at operation %d of the history: %v", at, err)
		}
		if finished && disk.ops <= disk.failAt {
			if at < 150 {
				t.Errorf("a history of %d operations is too short to mean anything", at)
			}
			return
		}
	}
}

// TestNoCrashSpoilsAnOpen cuts the power after every operation of the first open. The next one works, and keeps the id.
func TestNoCrashSpoilsAnOpen(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		disk := newMemFS()
		disk.failAt, disk.crash, disk.err = at, true, errors.New("power is off")
		store, err := openMem(disk)
		for seed := range uint64(crashSeeds) {
			after := disk.crashed(rand.New(rand.NewPCG(seed, seed)))
			found, surveyErr := survey(after)
			if surveyErr != nil || len(found) != 1 || found["id"] == "" || err == nil && found["id"] != store.ManagerID() {
				t.Fatalf("power off at operation %d (%v), seed %d: found %v, %v", at, err, seed, found, surveyErr)
			}
			again, err := survey(after)
			if err != nil || again["id"] != found["id"] {
				t.Fatalf("power off at operation %d, seed %d: the id was %q, now it is %q, %v", at, seed, found["id"], again["id"], err)
			}
		}
		if disk.ops <= at {
			if err != nil || at < 20 {
				t.Errorf("open: %v, after %d operations", err, at)
			}
			return
		}
	}
}

// TestEveryFaultIsSurvived lets each operation fail once, on a disk that is full or broken, and goes on.
func TestEveryFaultIsSurvived(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		err    error
		simple bool
		want   reason.Reason
	}{
		{"full", unix.ENOSPC, false, reason.DiskFull},
		{"over quota", unix.EDQUOT, true, reason.DiskFull},
		{"broken", unix.EIO, false, reason.StorageFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for at := 0; sweepFault(t, at, tt.err, tt.simple, tt.want); at++ {
			}
		})
	}
}

// sweepFault runs the history with one fault and tells whether the fault was met.
func sweepFault(t *testing.T, at int, fault error, simple bool, want reason.Reason) bool {
	t.Helper()
	disk, store, allowed := newWorld(t, simple)
	disk.failAt, disk.err = disk.ops+at, fault
	for i, s := range history() {
		allowed.permit(s)
		err := s.apply(store)
		if err != nil {
			if got := reason.Of(err); got != want || !errors.Is(err, fault) {
				t.Fatalf("fault at operation %d, step %d: got %v (%v), want %v", at, i, err, got, want)
			}
			if err := allowed.checkCrashes(disk, faultSeeds); err != nil {
				t.Fatalf("fault at operation %d, step %d: %v", at, i, err)
			}
			if err := s.apply(store); err != nil {
				t.Fatalf("fault at operation %d, step %d again: %v", at, i, err)
			}
		}
		allowed.settle(s)
	}
	met := disk.ops > disk.failAt
	disk.failAt = -1
	if err := allowed.checkCrashes(disk, faultSeeds); err != nil {
		t.Fatalf("fault at operation %d, in the end: %v", at, err)
	}
	left := len(disk.at("/state/scratch").names)
	for _, spares := range store.scratch.idle {
		left -= len(spares)
	}
	if left > 0 && disk.failed != "remove" {
		t.Fatalf("fault at operation %d (%s): %d files are left in the scratch folder that are no spares", at, disk.failed, left)
	}
	return met
}

// TestLoadSurvivesFaults lets each operation of opening and loading fail, and then loads all.
func TestLoadSurvivesFaults(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		disk, store, _ := newWorld(t, false)
		for _, err := range []error{
			store.Save(testRecord("a", 1)), store.SavePool(testPool("a", 1)), store.SaveStart(testStart("a", 0, 1)),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		disk.at("/state/replicas").names["torn.json"] = &memFile{data: []byte("{")}
		disk.at("/state/replicas").names[tempPrefix+"b"] = &memFile{}
		disk.at("/state/pools").names["torn.json"] = &memFile{data: []byte("{")}
		disk.at("/state/starts/a").names["torn.json"] = &memFile{data: []byte("{")}
		disk.failAt, disk.err = disk.ops+at, unix.EIO
		_, err := loadEverything(disk)
		met := disk.ops > disk.failAt
		if met != (err != nil) {
			t.Fatalf("fault at operation %d: met %v, error %v", at, met, err)
		}
		disk.failAt = -1
		for range 2 {
			if n, err := loadEverything(disk); err != nil || n != 3 {
				t.Fatalf("fault at operation %d, loaded again: %d records, %v; want three", at, n, err)
			}
		}
		for _, folder := range []string{"replicas", "pools", "starts/a"} {
			if left := len(disk.at("/state/" + folder).names); left != 1 {
				t.Fatalf("fault at operation %d: %d files are left in %s", at, left, folder)
			}
		}
		for _, name := range []string{"torn.json", "pool-torn.json", "start-a-torn.json"} {
			if aside := disk.at("/state/quarantine").names; aside[name] == nil || len(aside) != 3 {
				t.Fatalf("fault at operation %d: %s is not in the quarantine", at, name)
			}
		}
		if !met {
			return
		}
	}
}

// loadEverything opens a disk and returns how many records are on it.
func loadEverything(disk *memFS) (int, error) {
	store, err := openMem(disk)
	if err != nil {
		return 0, err
	}
	engines, err := store.Load()
	if err != nil {
		return 0, err
	}
	pools, err := store.LoadPools()
	if err != nil {
		return 0, err
	}
	starts, err := store.Starts("a")
	return len(engines.Records) + len(pools.Pools) + len(starts), err
}

// TestMissingParentsAreDurable makes a directory with its parents and cuts the power.
func TestMissingParentsAreDurable(t *testing.T) {
	t.Parallel()
	disk := newMemFS()
	if err := makeDir(disk, "/a/b/state"); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(crashSeeds) {
		if disk.crashed(rand.New(rand.NewPCG(seed, seed))).at("/a/b/state") == nil {
			t.Errorf("seed %d: the directory is gone", seed)
		}
	}
}

// TestWhatIsReadStays restarts a program that could not sync what it changed. What the next one has read is there after
// the power fails.
func TestWhatIsReadStays(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*memFS){
		"directory": func(disk *memFS) { _ = disk.Mkdir("/state") },
		"id": func(disk *memFS) { // Its own sync is the last operation of an open.
			disk.failSync = false
			counted := newMemFS()
			if _, err := openMem(counted); err != nil {
				t.Fatal(err)
			}
			disk.failAt, disk.err = counted.ops-1, unix.EIO
			if _, err := openMem(disk); err == nil || disk.at("/state/"+idName) == nil {
				t.Errorf("open: %v; want an id that was not synced", err)
			}
		},
		"records": func(disk *memFS) {
			disk.failSync = false
			store, err := openMem(disk)
			if err != nil {
				t.Fatal(err)
			}
			mustSaveStarts(t, store, testStart("a", 0, 1))
			disk.failSync = true
			if store.SaveStart(testStart("a", 0, 2)) == nil || store.Save(testRecord("a", 1)) == nil || store.SavePool(testPool("a", 1)) == nil {
				t.Error("no error, though the folder was not synced")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := newMemFS()
			disk.failSync = true
			change(disk)
			disk.failSync = false
			found, err := survey(disk)
			if err != nil {
				t.Fatal(err)
			}
			for seed := range uint64(4 * crashSeeds) {
				after, err := survey(disk.crashed(rand.New(rand.NewPCG(seed, seed))))
				if diff := cmp.Diff(found, after); err != nil || diff != "" {
					t.Errorf("seed %d: %v; before and after (-want +got):\n%s", seed, err, diff)
				}
			}
		})
	}
}

// TestQuarantineIsDurable cuts the power after bad files were moved aside: they are still there and nowhere else.
func TestQuarantineIsDurable(t *testing.T) {
	t.Parallel()
	disk, store, _ := newWorld(t, false)
	torn := &memFile{data: []byte("{"), synced: []byte("{")}
	for _, folder := range []string{"/state/replicas", "/state/pools"} {
		disk.at(folder).names["torn.json"] = torn
		if err := disk.SyncDir(folder); err != nil {
			t.Fatal(err)
		}
	}
	if loaded := mustLoad(t, store); len(loaded.Quarantined) != 1 {
		t.Fatalf("loaded %+v, want one put aside", loaded)
	}
	if loaded := mustLoadPools(t, store); len(loaded.Quarantined) != 1 {
		t.Fatalf("loaded %+v, want one put aside", loaded)
	}
	for seed := range uint64(4 * crashSeeds) {
		after := disk.crashed(rand.New(rand.NewPCG(seed, seed)))
		aside := after.at("/state/quarantine").names
		if aside["torn.json"] == nil || aside["pool-torn.json"] == nil {
			t.Errorf("seed %d: in quarantine: %v", seed, aside)
		}
		if len(after.at("/state/replicas").names)+len(after.at("/state/pools").names) != 0 {
			t.Errorf("seed %d: the bad files are back", seed)
		}
	}
}
