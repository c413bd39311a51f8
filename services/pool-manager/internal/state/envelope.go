// SPDX-License-Identifier: Apache-2.0

package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// schema is the version of the JSON form of all records. A change that an older manager would misread raises it.
const schema = 2

const suffix = ".json"

// kind is one sort of records.
type kind struct {
	name string
	// dir is its folder.
	dir string
	// oldest is the first schema that can still be read.
	oldest int
	// spares says that files of the kind may become spares: nobody reads one while records are written.
	spares bool
	// poolOf tells from a file's name below dir which pool it is of; "" if that cannot be told.
	poolOf func(name string) string
}

// content is what a file may hold.
type content interface {
	Record | PoolRecord | StartRecord | identity
	kind() kind
	// fileName is the name of its file below the folder of the kind. An id that could leave the folder is refused.
	fileName() (string, error)
	// check says why it is no record that can be used.
	check() error
}

// upgrader is content of which an older form is read.
type upgrader interface{ upgrade(from int) }

// envelope is the content of a file.
type envelope struct {
	Schema int             `json:"schema"`
	SHA256 string          `json:"sha256"` // as sum makes it, in hex.
	Record json.RawMessage `json:"record"`
}

// sum is over the bytes of the record, from schema 2 on after a line with its kind and schema.
func (k kind) sum(version int, record []byte) string {
	h := sha256.New()
	if version > 1 {
		h.Write([]byte(k.name + " " + strconv.Itoa(version) + "\n"))
	}
	h.Write(record)
	return hex.EncodeToString(h.Sum(nil))
}

// encode returns the name and the bytes of the file for v.
func encode[T content](v T) (name string, text []byte, err error) {
	if name, err = v.fileName(); err != nil {
		return "", nil, err
	}
	if err := v.check(); err != nil {
		return "", nil, reason.New(reason.Internal, "record "+name+" cannot be saved", reason.Cause(err))
	}
	record, err := json.Marshal(v)
	if err != nil {
		return "", nil, reason.New(reason.Internal, "encode record "+name, reason.Cause(err))
	}
	text = fmt.Appendf(nil, `{"schema":%d,"sha256":%q,"record":%s}`+"\n", schema, v.kind().sum(schema, record), record)
	if len(text) > maxRecordBytes {
		return "", nil, reason.New(reason.LimitExceeded, fmt.Sprintf("record %s has %d bytes, %d are allowed", name, len(text), maxRecordBytes),
			reason.Remedy("use an engine with fewer files"))
	}
	return name, pad(text), nil
}

// decode reads the file called name, and says in its error why that is no record.
func decode[T content](name string, text []byte) (T, error) {
	var none, v T
	var e envelope
	if len(text) > maxRecordBytes {
		return none, fmt.Errorf("more than %d bytes", maxRecordBytes)
	}
	if err := json.Unmarshal(bytes.TrimRight(text, " \n"), &e); err != nil {
		return none, fmt.Errorf("torn or foreign: %w", err)
	}
	k := v.kind()
	if e.Schema > schema {
		return none, fmt.Errorf("schema %d is of a later version, this manager knows up to %d", e.Schema, schema)
	}
	if e.Schema < k.oldest {
		return none, fmt.Errorf("schema %d, this manager knows %d to %d", e.Schema, k.oldest, schema)
	}
	if want := k.sum(e.Schema, e.Record); want != e.SHA256 {
		return none, fmt.Errorf("checksum is %s, recorded %q", want, e.SHA256)
	}
	if err := json.Unmarshal(e.Record, &v); err != nil {
		return none, fmt.Errorf("not a %s: %w", k.name, err)
	}
	if old, ok := any(&v).(upgrader); ok && e.Schema < schema {
		old.upgrade(e.Schema)
	}
	want, err := v.fileName()
	if err != nil {
		return none, err
	}
	if want != name {
		return none, fmt.Errorf("its content belongs into %s", filepath.Base(want))
	}
	if err := v.check(); err != nil {
		return none, err
	}
	return v, nil
}
