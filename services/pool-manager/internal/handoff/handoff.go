// SPDX-License-Identifier: Apache-2.0

// Package handoff tells programs without gRPC about ready replicas: one JSON file for each, there while it may be used.
//
// A reader sees a whole file or none, because a file comes by rename. It is not synced to disk: after a crash of the
// machine no engine runs, so that no file of before may be believed. Files outlive the manager, as engines do: the next
// one says with Keep which of them still stand for an engine. The files are readable by everybody and hold nothing
// secret. A Dir may be used by many goroutines.
package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

const (
	suffix     = ".json"
	tempPrefix = ".handoff-"
	// maxBytes bounds what is read of a file that may be an old one of ours.
	maxBytes = 1 << 20
	// maxID is the longest replica id in bytes that surely fits into a file name.
	maxID = 192
)

// Model is what the replica serves.
type Model struct {
	ID   string `json:"id"`
	Path string `json:"path"` // of the file that the engine was given.
}

// Entry is the content of one file. Its fields are a format that other programs read: none may be renamed.
type Entry struct {
	Engine           string   `json:"engine"` // kind.
	EngineVersion    string   `json:"engine_version"`
	ProvisioningMode string   `json:"provisioning_mode"` // lower case: external, source, package.
	URL              string   `json:"url"`               // base URL, such as http://127.0.0.1:43121.
	PoolID           string   `json:"pool_id"`
	ReplicaID        string   `json:"replica_id"` // the pool's id, a dash and the replica's index.
	Model            Model    `json:"model"`
	Flags            []string `json:"flags"`       // the engine's arguments, without its own name.
	DeviceMask       string   `json:"device_mask"` // devices it may use; empty without devices.
	SlotsTotal       int      `json:"slots_total"`
	SlotsFree        int      `json:"slots_free"` // when the file was written.
	PID              int      `json:"pid"`
}

// Config says where the files are.
type Config struct {
	Dir string // absolute; created with mode 0755 if missing. Required.
}

// Dir is the directory of the files.
type Dir struct {
	path string
}

// Open prepares the directory and removes what an interrupted Publish has left there. The caller has made sure that no
// other manager publishes here. The reason of an error is StorageFailed or DiskFull.
func Open(c Config) (*Dir, error) {
	if !filepath.IsAbs(c.Dir) {
		return nil, reason.New(reason.InvalidParams, fmt.Sprintf("handoff directory %q is not an absolute path", c.Dir),
			reason.Field("handoff_dir"), reason.Remedy("give an absolute path"))
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, storageError("create handoff directory", err)
	}
	d := &Dir{path: c.Dir}
	if err := d.clean(func(name string) bool { return strings.HasPrefix(name, tempPrefix) }); err != nil {
		return nil, err
	}
	return d, nil
}

// Keep removes the files of an earlier manager but those that wanted says true to, which is asked about each once. Only
// files that are what Publish writes are asked about, and removed. It is to be called before the first Publish.
func (d *Dir) Keep(wanted func(Entry) bool) error {
	return d.clean(func(name string) bool {
		entry, ours := d.read(name)
		return ours && !wanted(entry)
	})
}

// clean removes the files of which stale says so.
func (d *Dir) clean(stale func(name string) bool) error {
	names, err := os.ReadDir(d.path)
	if err != nil {
		return storageError("read handoff directory", err)
	}
	for _, n := range names {
		if !n.Type().IsRegular() || !stale(n.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(d.path, n.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return storageError("remove stale handoff file", err)
		}
	}
	return nil
}

// read tells a file of ours from what else may lie in the directory.
func (d *Dir) read(name string) (Entry, bool) {
	id, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return Entry{}, false
	}
	info, err := os.Lstat(filepath.Join(d.path, name))
	if err != nil || info.Size() > maxBytes {
		return Entry{}, false
	}
	text, err := os.ReadFile(filepath.Join(d.path, name))
	if err != nil {
		return Entry{}, false
	}
	var e Entry
	err = json.Unmarshal(text, &e)
	return e, err == nil && e.ReplicaID == id && strings.HasPrefix(id, e.PoolID+"-") && e.URL != ""
}

// Publish writes the file of a replica, in place of an earlier one, and returns its path. On error the earlier one
// stays. The reason is StorageFailed, DiskFull, or InvalidParams for ids that cannot be a file name.
func (d *Dir) Publish(e Entry) (string, error) {
	if e.PoolID == "" || !strings.HasPrefix(e.ReplicaID, e.PoolID+"-") {
		return "", reason.New(reason.InvalidParams, fmt.Sprintf("replica id %q does not begin with pool id %q and a dash", e.ReplicaID, e.PoolID),
			reason.Field("replica_id"), reason.Remedy("use another pool id"))
	}
	path, err := d.file(e.ReplicaID)
	if err != nil {
		return "", err
	}
	if e.Flags == nil {
		e.Flags = []string{}
	}
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode handoff file: %w", err)
	}
	temp, err := os.CreateTemp(d.path, tempPrefix)
	if err != nil {
		return "", storageError("write handoff file", err)
	}
	_, err = temp.Write(append(text, '\n'))
	err = errors.Join(err, temp.Chmod(0o644), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return "", storageError("write handoff file", err)
	}
	return path, nil
}

// Withdraw removes the file of a replica. One that is not there is no error.
func (d *Dir) Withdraw(replicaID string) error {
	path, err := d.file(replicaID)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return storageError("remove handoff file", err)
	}
	return nil
}

func (d *Dir) file(replicaID string) (string, error) {
	if strings.ContainsAny(replicaID, "/\x00") || strings.HasPrefix(replicaID, ".") || replicaID == "" || len(replicaID) > maxID {
		return "", reason.New(reason.InvalidParams, fmt.Sprintf("replica id %q cannot be a file name", replicaID),
			reason.Field("replica_id"), reason.Remedy("use another pool id"))
	}
	return filepath.Join(d.path, replicaID+suffix), nil
}

func storageError(attempt string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return reason.New(reason.DiskFull, attempt, reason.Cause(err), reason.Remedy("free space on its disk"))
	}
	return reason.New(reason.StorageFailed, attempt, reason.Cause(err),
		reason.Remedy("see that the folder exists, that its file system is sound, and that the pool manager may write there"))
}
