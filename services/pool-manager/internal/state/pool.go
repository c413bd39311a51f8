// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// PoolRecord is what must be known of a pool after a restart of the manager or of the machine.
type PoolRecord struct {
	PoolID    string          `json:"pool_id"`
	Wanted    bool            `json:"wanted"`             // it is to serve.
	Reason    string          `json:"reason,omitempty"`   // why it is not wanted: "drain", "idle", "failed" and the like.
	Edition   uint64          `json:"edition"`            // counts what was made of the pool.
	Spec      json.RawMessage `json:"spec,omitempty"`     // in the form of whoever saved it; comes back without needless white space.
	Prepared  []byte          `json:"prepared,omitempty"` // deterministic proto bytes of a PreparedEngine; empty if none was prepared yet.
	CreatedAt time.Time       `json:"created_at"`
	SavedAt   time.Time       `json:"saved_at"`
	BootID    string          `json:"boot_id"` // of the boot in which it was saved.
	Replicas  []ReplicaRecord `json:"replicas,omitempty"`
	Failure   *Failure        `json:"failure,omitempty"`
}

// ReplicaRecord is what must be known of one replica of a pool.
type ReplicaRecord struct {
	Index      int             `json:"index"`
	Generation uint64          `json:"generation"` // of the last start; 0 before the first.
	Track      json.RawMessage `json:"track,omitempty"`
	LoadTime   time.Duration   `json:"load_time,omitzero"` // how long the last load took, in nanoseconds; 0 is not known.
}

// Failure says why a pool failed.
type Failure struct {
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	At      time.Time `json:"at"`
}

// LoadedPools is what the directory held of pools.
type LoadedPools struct {
	Pools       []PoolRecord // by file name.
	Quarantined []Quarantined
}

func (PoolRecord) kind() kind {
	return kind{name: "pool", dir: poolDir, oldest: schema, spares: true, poolOf: poolOfPool}
}

// fileName returns the name of the record's file: POOL.json.
func (r PoolRecord) fileName() (string, error) {
	if err := checkReplica(r.PoolID, 0); err != nil {
		return "", err
	}
	return r.PoolID + suffix, nil
}

func (r PoolRecord) check() error {
	last := -1
	for _, replica := range r.Replicas {
		if replica.Index <= last {
			return fmt.Errorf("replica %d after replica %d", replica.Index, last)
		}
		last = replica.Index
	}
	if r.Failure != nil && r.Failure.Reason == "" {
		return errors.New("a failure without a reason")
	}
	return nil
}

// poolOfPool returns the pool in the name of a pool's file, or "" if the name is no such.
func poolOfPool(name string) string {
	if id, ok := strings.CutSuffix(name, suffix); ok && isFileName(id) {
		return id
	}
	return ""
}

// SavePool puts the record on disk, in place of an earlier one of the pool. When it fails, the earlier one or the new
// one is there, whole. The reason of the error is DiskFull, StorageFailed, InvalidParams for an id that cannot be a file
// name, LimitExceeded for a record that is too large, or Internal for one that is none: a spec that is not JSON, replicas
// that are not in the order of their indexes.
func (s *Store) SavePool(r PoolRecord) error { return save(s, r) }

// RemovePool deletes the record. One that is not there is no error. What is kept of the pool's starts stays: remove that
// first, because nobody asks for it once the pool is forgotten.
func (s *Store) RemovePool(id string) error {
	name, err := PoolRecord{PoolID: id}.fileName()
	if err != nil {
		return err
	}
	return s.remove(PoolRecord{}.kind(), name)
}

// LoadPools returns every good record of a pool, and moves every file that is none to the quarantine. It fails as Load
// does.
func (s *Store) LoadPools() (LoadedPools, error) {
	pools, aside, err := loadAll[PoolRecord](s)
	return LoadedPools{Pools: pools, Quarantined: aside}, err
}
