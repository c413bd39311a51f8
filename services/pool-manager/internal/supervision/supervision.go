// SPDX-License-Identifier: Apache-2.0

// Package supervision decides what the end of an engine means. It is pure: it takes what was seen and returns a
// decision, reads no clock and touches nothing.
package supervision

import (
	"strings"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Ending is what was seen of an engine's end.
type Ending struct {
	// Asked is true if we had told it to stop.
	Asked bool
	// Code is the exit code; 0 if a signal killed it.
	Code int
	// Signal is the name of the signal that killed it; empty if none did.
	Signal string
	// LastLines of its output, oldest first.
	LastLines []string
}

// Classify says why an engine ended. An end that was asked for is STOPPED however it came about. A pattern of the
// engine's contract decides next, for an engine knows best what its last words mean; an end with code 0 has none.
func Classify(e Ending, patterns []*enginev1.ExitPattern) enginev1.ExitClass {
	switch {
	case e.Asked:
		return enginev1.ExitClass_EXIT_CLASS_STOPPED
	case e.Code == 0 && e.Signal == "":
		return enginev1.ExitClass_EXIT_CLASS_UNASKED
	}
	for _, pattern := range patterns {
		for _, line := range e.LastLines {
			if pattern.GetContains() != "" && strings.Contains(line, pattern.GetContains()) {
				return pattern.GetClass()
			}
		}
	}
	if e.Signal != "" {
		return enginev1.ExitClass_EXIT_CLASS_SIGNAL
	}
	return enginev1.ExitClass_EXIT_CLASS_ERROR
}
