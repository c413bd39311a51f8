// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"encoding/json"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// KillEngine kills one of the node's engine processes, or of their children, which one is picked among those that live. It says
// whether there was any. A process that has taken the pid of one that ended meanwhile is never hit.
func (n *Node) KillEngine(pick int) bool {
	engines := n.Engines()
	if len(engines) == 0 {
		return false
	}
	victim := engines[pick%len(engines)]
	handle, err := unix.PidfdOpen(victim.PID, 0)
	if err != nil {
		return false // it has ended
	}
	defer func() { _ = unix.Close(handle) }()
	if !slices.ContainsFunc(n.Engines(), func(p Process) bool { return p.PID == victim.PID }) {
		return false
	}
	return unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0) == nil
}

// RecordedPID is the process that a record of an engine, such as POOL-0-g1.json, tells of; 0 while there is none.
func (n *Node) RecordedPID(name string) int {
	e, err := readEnvelope(filepath.Join(n.State, "replicas", name))
	var record struct {
		Identity struct {
			PID int `json:"pid"`
		} `json:"identity"`
	}
	if err != nil || json.Unmarshal(e.Record, &record) != nil {
		return 0
	}
	return record.Identity.PID
}
