// SPDX-License-Identifier: Apache-2.0

package state

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

// schema is the version of the record's JSON form. A change that an older manager would misread raises it.
const schema = 1

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

// Key names one record.
type Key struct {
	PoolID     string
	Replica    int
	Generation uint64
}

// Record is what must be known of one replica generation after a crash of the manager.
type Record struct {
	PoolID     string           `json:"pool_id"`
	Replica    int              `json:"replica"`    // index in the pool, from 0.
	Generation uint64           `json:"generation"` // from 1.
	PreparedID string           `json:"prepared_id"`
	Phase      Phase            `json:"phase"`
	Identity   process.Identity `json:"identity"`           // before the spawn only boot id and nonce are set.
	Executable string           `json:"executable"`         // as it was asked to be executed.
	LogPath    string           `json:"log_path"`           // absolute.
	Endpoint   string           `json:"endpoint,omitempty"` // base URL, once known.
	CreatedAt  time.Time        `json:"created_at"`         // when the start was intended.
	StartedAt  time.Time        `json:"started_at,omitzero"`
}

// Key returns the name of the record.
func (r Record) Key() Key { return Key{PoolID: r.PoolID, Replica: r.Replica, Generation: r.Generation} }

// fileName returns the name of the record's file. A pool id that could leave the directory or hide in it is refused.
func (k Key) fileName() (string, error) {
	if !isFileName(k.PoolID) || k.Replica < 0 {
		return "", reason.New(reason.InvalidParams,
			fmt.Sprintf("pool id %q, replica %d cannot be recorded: a letter or digit and up to 127 of A-Z a-z 0-9 . _ - are allowed",
				k.PoolID, k.Replica),
			reason.Field("pool_id"), reason.Remedy("use another pool id"))
	}
	return k.PoolID + "-" + strconv.Itoa(k.Replica) + "-g" + strconv.FormatUint(k.Generation, 10) + suffix, nil
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

// envelope is the content of a record's file.
type envelope struct {
	Schema int             `json:"schema"`
	SHA256 string          `json:"sha256"` // of the bytes of Record, in hex.
	Record json.RawMessage `json:"record"`
}

func encode(r Record) ([]byte, error) {
	record, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(record)
	text, err := json.Marshal(envelope{Schema: schema, SHA256: hex.EncodeToString(sum[:]), Record: record})
	return append(text, '\n'), err
}

// decode reads the file called name, and says in its error why that is no record.
func decode(name string, text []byte) (Record, error) {
	var e envelope
	if err := json.Unmarshal(text, &e); err != nil {
		return Record{}, fmt.Errorf("torn or foreign: %w", err)
	}
	if e.Schema != schema {
		return Record{}, fmt.Errorf("schema %d, this manager knows %d", e.Schema, schema)
	}
	sum := sha256.Sum256(e.Record)
	if got := hex.EncodeToString(sum[:]); got != e.SHA256 {
		return Record{}, fmt.Errorf("checksum is %s, recorded %q", got, e.SHA256)
	}
	var r Record
	if err := json.Unmarshal(e.Record, &r); err != nil {
		return Record{}, fmt.Errorf("not a replica: %w", err)
	}
	want, err := r.Key().fileName()
	if err != nil {
		return Record{}, err
	}
	if want != name {
		return Record{}, fmt.Errorf("its content belongs into %s", want)
	}
	if r.Identity.Nonce == "" {
		return Record{}, errors.New("no nonce")
	}
	return r, nil
}
