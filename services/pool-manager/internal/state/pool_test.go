// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

func mustLoadPools(t testing.TB, s *Store) LoadedPools {
	t.Helper()
	loaded, err := s.LoadPools()
	if err != nil {
		t.Fatal(err)
	}
	return loaded
}

func TestPoolsComeBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := openDir(t, dir)
	failed := testPool("a", 7)
	failed.Wanted, failed.Reason, failed.Replicas, failed.Prepared, failed.Spec = false, "failed", nil, nil, nil
	failed.Failure = &Failure{Reason: "WORKER_START_FAILED", Message: "<it> died & more", At: failed.SavedAt}
	for _, r := range []PoolRecord{testPool("a", 1), testPool("A", 2), testPool("a.b-0", 3), testPool("a.json", 4), failed} {
		if err := s.SavePool(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openDir(t, dir)
	got := mustLoadPools(t, s)
	want := LoadedPools{Pools: []PoolRecord{testPool("A", 2), testPool("a.b-0", 3), failed, testPool("a.json", 4)}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("loaded (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := s.RemovePool("a"); err != nil {
			t.Errorf("RemovePool: %v", err)
		}
	}
	want.Pools = slices.Delete(want.Pools, 2, 3)
	if diff := cmp.Diff(want, mustLoadPools(t, s)); diff != "" {
		t.Errorf("loaded after a removal (-want +got):\n%s", diff)
	}
	if info, err := os.Stat(filepath.Join(dir, poolDir, "A.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("file: %v, %v; want mode 0600", info, err)
	}
}

// A pool that cannot be saved leaves the record as it was.
func TestPoolsThatAreNone(t *testing.T) {
	t.Parallel()
	s := openDir(t, t.TempDir())
	if err := s.SavePool(testPool("a", 1)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*PoolRecord)
		want   reason.Reason
	}{
		{"a spec that is not JSON", func(r *PoolRecord) { r.Spec = json.RawMessage(`{"replicas":`) }, reason.Internal},
		{"replicas out of order", func(r *PoolRecord) { slices.Reverse(r.Replicas) }, reason.Internal},
		{"a negative replica", func(r *PoolRecord) { r.Replicas[0].Index = -1 }, reason.Internal},
		{"a failure without a reason", func(r *PoolRecord) { r.Failure = &Failure{Message: "died"} }, reason.Internal},
		{"too large", func(r *PoolRecord) { r.Prepared = make([]byte, maxRecordBytes) }, reason.LimitExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := testPool("a", 2)
			tt.change(&r)
			if err := s.SavePool(r); reason.Of(err) != tt.want {
				t.Errorf("SavePool: got %v, want %v", err, tt.want)
			}
			if diff := cmp.Diff(LoadedPools{Pools: []PoolRecord{testPool("a", 1)}}, mustLoadPools(t, s)); diff != "" {
				t.Errorf("loaded (-want +got):\n%s", diff)
			}
		})
	}
}

// What a provisioner's largest message takes in a record can be read again.
func TestLargePool(t *testing.T) {
	t.Parallel()
	s := openDir(t, t.TempDir())
	r := testPool("a", 1)
	r.Prepared = make([]byte, 4<<20)
	for range 2 {
		if err := s.SavePool(r); err != nil {
			t.Fatal(err)
		}
	}
	if got := mustLoadPools(t, s); len(got.Pools) != 1 || len(got.Pools[0].Prepared) != 4<<20 {
		t.Errorf("loaded %d pools, %d quarantined", len(got.Pools), len(got.Quarantined))
	}
}
