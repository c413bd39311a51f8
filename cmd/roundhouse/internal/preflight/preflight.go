// SPDX-License-Identifier: Apache-2.0

// Package preflight judges what the provisioner says of its machine: whether anything can be prepared there, and if not,
// what to do about it. It asks nobody and keeps nothing.
package preflight

import (
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// lowBytes is less than a small engine's build or a small model takes. A store with a problem and less room than this has
// too little room.
const lowBytes = 1 << 30

// Machine is an error if the machine can prepare nothing.
func Machine(report *provisionerv1.PreflightResponse) error {
	if err := Store(report.GetStore(), "start the provisioner with another --state-dir"); err != nil {
		return err
	}
	for _, engine := range report.GetEngines() {
		if engine.GetAvailable() {
			return nil
		}
	}
	return reason.New(reason.ToolMissing, "no engine can be prepared on this machine",
		reason.Remedy("install what the table calls missing"))
}

// Store is an error if the store cannot be used. elsewhere says how to have it elsewhere.
func Store(store *provisionerv1.StoreCheck, elsewhere string) error {
	switch problem := store.GetProblem(); {
	case problem == "":
		return nil
	case store.GetFreeBytes() < lowBytes:
		return reason.New(reason.DiskFull, "the store cannot be used: "+problem,
			reason.Remedy("free space on the file system of "+store.GetPath()+", or "+elsewhere))
	default:
		return reason.New(reason.StorageFailed, "the store cannot be used: "+problem,
			reason.Remedy("make "+store.GetPath()+" a folder that the provisioner can write, or "+elsewhere))
	}
}
