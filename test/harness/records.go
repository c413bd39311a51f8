// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// envelope is the form of all records of the pool manager, as its package state writes them.
type envelope struct {
	Schema int             `json:"schema"`
	SHA256 string          `json:"sha256"`
	Record json.RawMessage `json:"record"`
}

// sum is the checksum of a record of some kind.
func (e envelope) sum(kind string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%s %d\n", kind, e.Schema)
	h.Write(e.Record)
	return hex.EncodeToString(h.Sum(nil))
}

// kindOf is the kind of the records in a folder of the state directory.
func kindOf(folder string) string {
	return map[string]string{"replicas": "replica", "pools": "pool", "starts": "start"}[folder]
}

func readEnvelope(path string) (envelope, error) {
	var e envelope
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(bytes.TrimRight(text, " \n"), &e)
	}
	return e, err
}

// EditRecord changes a record of the pool manager, such as replicas/POOL-0-g1.json, and makes it whole again.
func (n *Node) EditRecord(tb testing.TB, name string, edit func(record map[string]any)) {
	tb.Helper()
	path := filepath.Join(n.State, name)
	e, err := readEnvelope(path)
	var record map[string]any
	if err == nil {
		decoder := json.NewDecoder(bytes.NewReader(e.Record))
		decoder.UseNumber()
		err = decoder.Decode(&record)
	}
	if err != nil {
		tb.Fatalf("read record %s: %v", name, err)
	}
	edit(record)
	if e.Record, err = json.Marshal(record); err != nil {
		tb.Fatal(err)
	}
	e.SHA256 = e.sum(kindOf(strings.Split(name, "/")[0]))
	text, err := json.Marshal(e)
	if err == nil {
		err = os.WriteFile(path, text, 0o600)
	}
	if err != nil {
		tb.Fatalf("write record %s: %v", name, err)
	}
}

// Reboot makes every record say that it was written before the machine was started. Nothing of the node may run.
func (n *Node) Reboot(tb testing.TB) {
	tb.Helper()
	const other = "00000000-0000-4000-8000-000000000000"
	for _, name := range n.Records() {
		n.EditRecord(tb, "replicas/"+name, func(record map[string]any) {
			identity, ok := record["identity"].(map[string]any)
			if !ok {
				tb.Fatalf("record %s has no identity: %v", name, record)
			}
			identity["boot_id"] = other
		})
	}
	for _, name := range sorted(names(filepath.Join(n.State, "pools"))) {
		n.EditRecord(tb, "pools/"+name, func(record map[string]any) { record["boot_id"] = other })
	}
}

// badRecords names what is among the records and is none.
func (n *Node) badRecords() []string {
	var bad []string
	for _, folder := range []string{"replicas", "pools", "starts"} {
		_ = filepath.WalkDir(filepath.Join(n.State, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return nil //nolint:nilerr // a folder that is not there holds no bad record
			}
			if e, err := readEnvelope(path); err != nil {
				bad = append(bad, fmt.Sprintf("record %s: %v", path, err))
			} else if want := e.sum(kindOf(folder)); want != e.SHA256 {
				bad = append(bad, fmt.Sprintf("record %s has the checksum %s, want %s", path, e.SHA256, want))
			}
			return nil
		})
	}
	return bad
}

// TakeQuarantine returns the names of the records that were put aside, and removes them.
func (n *Node) TakeQuarantine(tb testing.TB) []string {
	tb.Helper()
	aside := sorted(names(filepath.Join(n.State, "quarantine")))
	for _, name := range aside {
		if err := os.Remove(filepath.Join(n.State, "quarantine", name)); err != nil {
			tb.Error(err)
		}
	}
	return aside
}

// PoolRecords are the ids of the pools that the pool manager has a record of.
func (n *Node) PoolRecords() []string {
	ids := sorted(names(filepath.Join(n.State, "pools")))
	for i := range ids {
		ids[i] = strings.TrimSuffix(ids[i], ".json")
	}
	return slices.Clip(ids)
}
