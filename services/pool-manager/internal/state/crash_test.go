// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// crashSeeds is how many ways of losing unsynced data are tried after each operation.
const crashSeeds = 12

// step is one change to the store. What a record may be afterwards is told by its phase; "" is no record.
type step struct {
	record Record
	phase  Phase
}

// history is a life of two replicas, the first with two generations.
func history() []step {
	a, b := testRecord("a", 1), testRecord("b", 1)
	a2 := testRecord("a", 2)
	return []step{
		{a, Intended}, {a, Started}, {b, Intended}, {a, Ready}, {a2, Intended}, {a, Stopping}, {a, ""}, {b, Started}, {b, ""}, {a2, Started},
	}
}

func (s step) apply(store *Store) error {
	if s.phase == "" {
		return store.Remove(s.record.Key())
	}
	s.record.Phase = s.phase
	return store.Save(s.record)
}

// world is what may be on the disk: per key the phases that a load may find.
type world map[Key][]Phase

// permit adds a phase that was asked for; settle makes it the only one.
func (w world) permit(k Key, p Phase) {
	if len(w[k]) == 0 {
		w[k] = []Phase{""}
	}
	w[k] = append(w[k], p)
}
func (w world) settle(k Key, p Phase) { w[k] = []Phase{p} }

// check loads a disk and says what is on it that may not be.
func (w world) check(disk *memFS) error {
	store, err := open("/state", disk)
	if err != nil {
		return err
	}
	loaded, err := store.Load()
	if err != nil {
		return err
	}
	if len(loaded.Quarantined) > 0 {
		return fmt.Errorf("quarantined: %+v", loaded.Quarantined)
	}
	found := map[Key]Phase{}
	for _, r := range loaded.Records {
		found[r.Key()] = r.Phase
		if _, known := w[r.Key()]; !known {
			return fmt.Errorf("found %+v, which was never saved", r.Key())
		}
	}
	for key, allowed := range w {
		if !slices.Contains(allowed, found[key]) {
			return fmt.Errorf("%+v is %q, may be %q", key, found[key], allowed)
		}
	}
	return nil
}

// checkCrashes checks the disk as it is, and as crashes may leave it.
func (w world) checkCrashes(disk *memFS) error {
	for seed := range uint64(crashSeeds) {
		if err := w.check(disk.crashed(rand.New(rand.NewPCG(seed, seed)))); err != nil {
			return fmt.Errorf("crash with seed %d: %w", seed, err)
		}
	}
	return nil
}

// TestNoCrashLosesOrTears cuts the power after every operation of a history, and loses what was not synced.
func TestNoCrashLosesOrTears(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		disk := newMemFS()
		store, err := open("/state", disk)
		if err != nil {
			t.Fatal(err)
		}
		disk.failAt, disk.crash, disk.err = disk.ops+at, true, errors.New("power is off")
		allowed := world{}
		finished := true
		for _, s := range history() {
			allowed.permit(s.record.Key(), s.phase)
			if err := s.apply(store); err != nil {
				finished = false
				break
			}
			allowed.settle(s.record.Key(), s.phase)
		}
		if err := allowed.checkCrashes(disk); err != nil {
			t.Fatalf("power off at operation %d of the history: %v", at, err)
		}
		if finished {
			if at < 50 {
				t.Errorf("a history of %d operations is too short to mean anything", at)
			}
			return
		}
	}
}

// TestEveryFaultIsSurvived lets each operation fail once, on a disk that is full or broken, and goes on.
func TestEveryFaultIsSurvived(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		want reason.Reason
	}{
		{"full", unix.ENOSPC, reason.DiskFull},
		{"over quota", unix.EDQUOT, reason.DiskFull},
		{"broken", unix.EIO, reason.StorageFailed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for at := 0; sweepFault(t, at, tt.err, tt.want); at++ {
			}
		})
	}
}

// sweepFault runs the history with one fault and tells whether the fault was met.
func sweepFault(t *testing.T, at int, fault error, want reason.Reason) bool {
	t.Helper()
	disk := newMemFS()
	store, err := open("/state", disk)
	if err != nil {
		t.Fatal(err)
	}
	disk.failAt, disk.err = disk.ops+at, fault
	allowed := world{}
	for i, s := range history() {
		allowed.permit(s.record.Key(), s.phase)
		err := s.apply(store)
		if err != nil {
			if got := reason.Of(err); got != want || !errors.Is(err, fault) {
				t.Fatalf("fault at operation %d, step %d: got %v (%v), want %v", at, i, err, got, want)
			}
			if err := allowed.checkCrashes(disk); err != nil {
				t.Fatalf("fault at operation %d, step %d: %v", at, i, err)
			}
			if err := s.apply(store); err != nil {
				t.Fatalf("fault at operation %d, step %d again: %v", at, i, err)
			}
		}
		allowed.settle(s.record.Key(), s.phase)
	}
	met := disk.ops > disk.failAt
	disk.failAt = -1
	if err := allowed.checkCrashes(disk); err != nil {
		t.Fatalf("fault at operation %d, in the end: %v", at, err)
	}
	return met
}

// TestLoadSurvivesFaults lets each operation of opening and loading fail, and then loads all.
func TestLoadSurvivesFaults(t *testing.T) {
	t.Parallel()
	for at := 0; ; at++ {
		disk := newMemFS()
		store, err := open("/state", disk)
		if err != nil {
			t.Fatal(err)
		}
		if err := store.Save(testRecord("a", 1)); err != nil {
			t.Fatal(err)
		}
		disk.dirs["/state/replicas"]["torn.json"] = &memFile{data: []byte("{")}
		disk.dirs["/state/replicas"][tempPrefix+"b"] = &memFile{}
		disk.failAt, disk.err = disk.ops+at, unix.EIO
		again, err := open("/state", disk)
		if err == nil {
			_, err = again.Load()
		}
		met := disk.ops > disk.failAt
		if met != (err != nil) {
			t.Fatalf("fault at operation %d: met %v, error %v", at, met, err)
		}
		disk.failAt = -1
		loaded, err := store.Load()
		if err != nil || len(loaded.Records) != 1 {
			t.Fatalf("fault at operation %d, loaded again: %+v, %v; want one record", at, loaded, err)
		}
		if left := len(disk.dirs["/state/replicas"]); left != 1 || disk.dirs["/state/quarantine"]["torn.json"] == nil {
			t.Fatalf("fault at operation %d: %d files are left, quarantine %v", at, left, disk.dirs["/state/quarantine"])
		}
		if !met {
			return
		}
	}
}
