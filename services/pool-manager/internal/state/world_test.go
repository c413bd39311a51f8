// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// How many ways of losing unsynced data are tried after each operation, and after each fault.
const (
	crashSeeds = 8
	faultSeeds = 3
)

// keptStarts is how many starts of a replica are kept in these tests.
const keptStarts = 2

// step is one change to the store.
type step struct {
	apply func(*Store) error
	// wants are the texts of records after it, by name; "" is no record.
	wants map[string]string
	// frees names records that may be gone after it, or not.
	frees []string
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func engineStep(r Record, p Phase) step {
	name := fmt.Sprintf("engine %+v", r.Key())
	if p == "" {
		return step{apply: func(s *Store) error { return s.Remove(r.Key()) }, wants: map[string]string{name: ""}}
	}
	r.Phase = p
	return step{apply: func(s *Store) error { return s.Save(r) }, wants: map[string]string{name: text(r)}}
}

func poolStep(r PoolRecord) step {
	return step{apply: func(s *Store) error { return s.SavePool(r) }, wants: map[string]string{"pool " + r.PoolID: text(r)}}
}

func poolGone(id string) step {
	return step{apply: func(s *Store) error { return s.RemovePool(id) }, wants: map[string]string{"pool " + id: ""}}
}

func startTitle(r StartRecord) string {
	return fmt.Sprintf("start %s %d %d", r.PoolID, r.Replica, r.Generation)
}

func startStep(r StartRecord, tooOld ...StartRecord) step {
	s := step{
		apply: func(s *Store) error { return s.SaveStart(r) },
		wants: map[string]string{startTitle(r): text(r), "starts " + r.PoolID: "folder"},
	}
	for _, old := range tooOld {
		s.frees = append(s.frees, startTitle(old))
	}
	return s
}

func startsGone(id string, starts ...StartRecord) step {
	s := step{apply: func(s *Store) error { return s.RemoveStarts(id) }, wants: map[string]string{"starts " + id: ""}}
	for _, r := range starts {
		s.wants[startTitle(r)] = ""
	}
	return s
}

func testPool(id string, edition uint64) PoolRecord {
	return PoolRecord{
		PoolID: id, Wanted: true, Edition: edition, Spec: json.RawMessage(`{"replicas":1}`), Prepared: []byte{0, 1, 2, 255},
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), SavedAt: time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC), BootID: "boot",
		Replicas: []ReplicaRecord{{Index: 0, Generation: 3, Track: json.RawMessage(`{"restarts":2}`), LoadTime: time.Second}, {Index: 2}},
	}
}

func testStart(pool string, replica int, generation uint64) StartRecord {
	begin := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC).Add(time.Duration(generation) * time.Minute)
	return StartRecord{
		PoolID: pool, Replica: replica, Generation: generation, Edition: 1, PreparedID: "sha256:ab", PID: 42, StartedAt: begin,
		ReadyAt: begin.Add(time.Second), StartedBy: "preload", Class: "SIGNAL", Signal: "SIGSEGV", Uptime: time.Minute,
		EndedAt: begin.Add(time.Minute), LastLines: []string{"<last> words & more", "of an \"engine\""}, RequestsCut: 3,
	}
}

// history is a life of two pools and their engines, one of which fails again and again.
func history() []step {
	a, b, a2 := testRecord("a", 1), testRecord("b", 1), testRecord("a", 2)
	long := testPool("a", 2)
	long.Prepared = make([]byte, 2*pageBytes)
	idle := testPool("a", 3)
	idle.Wanted, idle.Reason, idle.Failure = false, "failed", &Failure{Reason: "WORKER_START_FAILED", Message: "it died", At: idle.SavedAt}
	s1, s2, s3, other := testStart("a", 0, 1), testStart("a", 0, 2), testStart("a", 0, 3), testStart("a", 10, 1)
	s3again := s3
	s3again.EndedBy = "drain"
	return []step{
		poolStep(testPool("a", 1)), engineStep(a, Intended), engineStep(a, Started), poolStep(testPool("b", 1)), engineStep(b, Intended),
		engineStep(a, Ready), startStep(other), startStep(s1), engineStep(a2, Intended), engineStep(a, Stopping), engineStep(a, ""),
		poolStep(long), startStep(s2), engineStep(b, Started), engineStep(b, ""), startStep(s3, s1), poolStep(idle), poolGone("b"),
		startStep(s3again, s1), engineStep(a2, Started), startsGone("a", other, s1, s2, s3), engineStep(a2, ""), poolGone("a"),
		poolStep(testPool("a", 1)), startStep(testStart("a", 0, 1)), engineStep(a, Intended),
	}
}

// world is what may be on the disk: by name the texts that a load may find.
type world struct {
	id      string
	allowed map[string][]string
}

// permit adds what a step may have done; settle is for when it has done it.
func (w world) permit(s step) {
	for name, text := range s.wants {
		if len(w.allowed[name]) == 0 {
			w.allowed[name] = []string{""}
		}
		w.allowed[name] = append(w.allowed[name], text)
	}
	for _, name := range s.frees {
		w.allowed[name] = append(w.allowed[name], "")
	}
}

func (w world) settle(s step) {
	for name, text := range s.wants {
		w.allowed[name] = []string{text}
	}
}

// check loads a disk and says what is on it that may not be.
func (w world) check(disk *memFS) error {
	found, err := survey(disk)
	if err != nil {
		return err
	}
	if found["id"] != w.id {
		return fmt.Errorf("the id is %q, was %q", found["id"], w.id)
	}
	delete(found, "id")
	for name := range found {
		if _, known := w.allowed[name]; !known {
			return fmt.Errorf("found %s, which was never saved", name)
		}
	}
	for name, allowed := range w.allowed {
		if !slices.Contains(allowed, found[name]) {
			return fmt.Errorf("%s is %q, may be %q", name, found[name], allowed)
		}
	}
	return nil
}

// survey opens a disk and returns the texts of what is on it, by name.
func survey(disk *memFS) (map[string]string, error) {
	store, err := openMem(disk)
	if err != nil {
		return nil, err
	}
	found := map[string]string{"id": store.ManagerID()}
	engines, err := store.Load()
	if err != nil {
		return nil, err
	}
	for _, r := range engines.Records {
		found[fmt.Sprintf("engine %+v", r.Key())] = text(r)
	}
	pools, err := store.LoadPools()
	if err != nil {
		return nil, err
	}
	for _, r := range pools.Pools {
		found["pool "+r.PoolID] = text(r)
	}
	for pool := range disk.at("/state/starts").names {
		found["starts "+pool] = "folder"
		starts, err := store.Starts(pool)
		if err != nil {
			return nil, err
		}
		for _, r := range starts {
			found[startTitle(r)] = text(r)
		}
	}
	if aside := disk.at("/state/quarantine").names; len(aside) > 0 {
		return nil, fmt.Errorf("quarantined: %+v, %+v, %d files", engines.Quarantined, pools.Quarantined, len(aside))
	}
	return found, nil
}

// checkCrashes checks the disk as crashes may leave it.
func (w world) checkCrashes(disk *memFS, seeds uint64) error {
	for seed := range seeds {
		if err := w.check(disk.crashed(rand.New(rand.NewPCG(seed, seed)))); err != nil {
			return fmt.Errorf("crash with seed %d: %w", seed, err)
		}
	}
	return nil
}
