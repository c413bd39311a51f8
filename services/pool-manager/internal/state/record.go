// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

// maxPoolID leaves room in a file name for replica, generation and a quarantine's count.
const maxPoolID = 128

// Phase is how far a replica generation had come when it was recorded.
type Phase string

// The phases in order of life. A record is removed once its processes are proven gone.
const (
	Intended Phase = "intended" // recorded before the spawn: a process with the nonce may exist or not (G1).
	Started  Phase = "started"  // the process exists, its identity is known.
	Ready    Phase = "ready"
	Stopping Phase = "stopping"
)

// Key names one engine record.
type Key struct {
	PoolID     string
	Replica    int
	Generation uint64
}

// Record is what must be known of one replica generation after a crash of the manager.
type Record struct {
	PoolID     string           `json:"pool_id"`
	Replica    int              `json:"replica"`           // index in the pool, from 0.
	Generation uint64           `json:"generation"`        // from 1.
	Edition    uint64           `json:"edition"`           // of the pool that the engine belongs to; 1 in records of schema 1.
	Manager    string           `json:"manager,omitempty"` // Store.ManagerID at the spawn; empty in records of schema 1.
	PreparedID string           `json:"prepared_id"`
	Phase      Phase            `json:"phase"`
	Identity   process.Identity `json:"identity"`           // before the spawn only boot id and nonce are set.
	Executable string           `json:"executable"`         // as it was asked to be executed.
	LogPath    string           `json:"log_path"`           // absolute.
	Port       int              `json:"port,omitempty"`     // that was asked for; 0 is any.
	Endpoint   string           `json:"endpoint,omitempty"` // base URL, once known.
	StartedBy  string           `json:"started_by,omitempty"`
	Adopted    bool             `json:"adopted,omitempty"` // a manager has it that did not start it.
	CreatedAt  time.Time        `json:"created_at"`        // when the start was intended.
	StartedAt  time.Time        `json:"started_at,omitzero"`
	ReadyAt    time.Time        `json:"ready_at,omitzero"`
	// Activity is where the engine says how many requests it has; nil if it does not, or in records of schema 1.
	Activity *Activity `json:"activity,omitempty"`
}

// Activity is a page of metrics, and the gauges of it whose sum is the number of requests.
type Activity struct {
	Path   string   `json:"path"`
	Gauges []string `json:"gauges"`
}

// Key returns the name of the record.
func (r Record) Key() Key { return Key{PoolID: r.PoolID, Replica: r.Replica, Generation: r.Generation} }

func (Record) kind() kind {
	return kind{name: "replica", dir: recordDir, oldest: 1, spares: true, poolOf: poolOfRecord}
}

func (r Record) fileName() (string, error) { return r.Key().fileName() }

func (r Record) check() error {
	if r.Identity.Nonce == "" {
		return errors.New("no nonce")
	}
	return nil
}

func (r *Record) upgrade(int) { r.Edition = 1 }

// Save puts the record on disk, in place of an earlier one with the same key. When it fails, the earlier one or the new
// one is there, whole. The reason of the error is DiskFull, StorageFailed, or InvalidParams for a key that cannot be a
// file name.
func (s *Store) Save(r Record) error { return save(s, r) }

// Remove deletes the record. One that is not there is no error.
func (s *Store) Remove(k Key) error {
	name, err := k.fileName()
	if err != nil {
		return err
	}
	return s.remove(Record{}.kind(), name)
}

// fileName returns the name of the record's file: POOL-REPLICA-gGENERATION.json. Read from its end it is unambiguous.
func (k Key) fileName() (string, error) {
	if err := checkReplica(k.PoolID, k.Replica); err != nil {
		return "", err
	}
	return k.PoolID + "-" + startName(k.Replica, k.Generation), nil
}

func startName(replica int, generation uint64) string {
	return strconv.Itoa(replica) + "-g" + strconv.FormatUint(generation, 10) + suffix
}

// parseStart is startName's inverse; ok is false of any other name.
func parseStart(name string) (replica int, generation uint64, ok bool) {
	before, after, _ := strings.Cut(strings.TrimSuffix(name, suffix), "-g")
	replica, err := strconv.Atoi(before)
	if err != nil || replica < 0 {
		return 0, 0, false
	}
	generation, err = strconv.ParseUint(after, 10, 64)
	return replica, generation, err == nil && startName(replica, generation) == name
}

// poolOfRecord returns the pool in the name of a record's file, or "" if the name is no such.
func poolOfRecord(name string) string {
	mark := strings.LastIndex(name, "-g")
	dash := strings.LastIndexByte(name[:max(0, mark)], '-')
	if dash < 0 {
		return ""
	}
	if _, _, ok := parseStart(name[dash+1:]); !ok || !isFileName(name[:dash]) {
		return ""
	}
	return name[:dash]
}

// checkReplica refuses a pool id that could leave the folder or hide in it.
func checkReplica(pool string, replica int) error {
	if isFileName(pool) && replica >= 0 {
		return nil
	}
	return reason.New(reason.InvalidParams,
		fmt.Sprintf("pool id %q, replica %d cannot be recorded: a letter or digit and up to 127 of A-Z a-z 0-9 . _ - are allowed",
			pool, replica),
		reason.Field("pool_id"), reason.Remedy("use another pool id"))
}

// isFileName tells whether an id is short, visible and plain: a letter or digit, then those, dots, dashes, underscores.
func isFileName(id string) bool {
	for i, c := range []byte(id) {
		letter := c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '-' && c != '_') {
			return false
		}
	}
	return id != "" && len(id) <= maxPoolID
}
