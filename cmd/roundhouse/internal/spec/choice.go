// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// flagValue is a flag and what was given for it.
type flagValue struct{ flag, value string }

// given names the flags that have a value, in order.
func given(flags []flagValue) []string {
	var names []string
	for _, f := range flags {
		if f.value != "" {
			names = append(names, f.flag)
		}
	}
	return names
}

func contains(names []string, name string) bool { return slices.Contains(names, name) }

// enumValue finds the value of a word, or lists the words there are.
func enumValue[V any](flag, word string, values map[string]V) (V, error) {
	value, ok := values[word]
	if !ok {
		words := slices.Sorted(maps.Keys(values))
		return value, reason.New(reason.InvalidParams, fmt.Sprintf("unknown value %q", word), reason.Field(flag),
			reason.Remedy("give one of: "+strings.Join(words, ", ")))
	}
	return value, nil
}

// Values are the values that each of the registered flags takes, for completion; flags that take any are not among them.
func Values() map[string][]string {
	return map[string][]string{
		"preset":      PresetNames(),
		"engine":      {"llamacpp", "xllamacpp"},
		"accelerator": slices.Sorted(maps.Keys(accelerators())),
		"cpu-target":  slices.Sorted(maps.Keys(cpuTargets())),
	}
}

// PoolValues are Values and those of the flags of a pool.
func PoolValues() map[string][]string {
	values := Values()
	values["residency"] = slices.Sorted(maps.Keys(residencies()))
	return values
}
