// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// inPreload renames the fields of an error of the provisioner to those of the Preload request that our caller made of it:
// what a Prepare has at spec is there at spec.prepare, and a prepared_id at spec.prepared_id. Other names, such as keys of
// the provisioner's configuration, stay.
func inPreload(err error) error {
	typed, ok := reason.As(err)
	if !ok || len(typed.Fields) == 0 {
		return err
	}
	renamed := *typed
	renamed.Fields = slices.Clone(typed.Fields)
	for i, field := range renamed.Fields {
		renamed.Fields[i].Name = fieldInPreload(field.Name)
	}
	return &renamed
}

func fieldInPreload(name string) string {
	rest, inSpec := strings.CutPrefix(name, "spec")
	switch {
	case inSpec && (rest == "" || rest[0] == '.'):
		return "spec.prepare" + rest
	case name == "prepared_id":
		return "spec.prepared_id"
	default:
		return name
	}
}
