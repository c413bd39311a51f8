// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"strings"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Ending is what was seen of an engine's end.
type Ending struct {
	// Asked is true if we had told it to stop; Killed, if it then had to be killed.
	Asked, Killed bool
	// Stalled is true if we ended it because nothing of its load moved; Hung, because it made no progress afterwards.
	Stalled, Hung bool
	// Adopted is true if its exit status cannot be known. Then Code and Signal say nothing.
	Adopted bool
	// OOMKilled is true if the kernel says that it killed it for lack of memory.
	OOMKilled bool
	// Code is the exit code; 0 if a signal killed it.
	Code int
	// Signal is the name of the signal that killed it; empty if none did.
	Signal string
	// LastLines of its output, oldest first.
	LastLines []string
}

// Classify says why an engine ended. Why we ended it comes first: an end that was asked for is STOPPED or KILLED however it
// came about. Then comes what the kernel says. A pattern of the engine's contract decides next, the first of the list that
// matches, for an engine knows best what its last words mean; an end that is known to have had code 0 has none.
func Classify(e Ending, patterns []*enginev1.ExitPattern) enginev1.ExitClass {
	switch {
	case e.Hung:
		return enginev1.ExitClass_EXIT_CLASS_HUNG
	case e.Stalled:
		return enginev1.ExitClass_EXIT_CLASS_STALLED
	case e.Asked && e.Killed:
		return enginev1.ExitClass_EXIT_CLASS_KILLED
	case e.Asked:
		return enginev1.ExitClass_EXIT_CLASS_STOPPED
	case e.OOMKilled:
		return enginev1.ExitClass_EXIT_CLASS_OOM_HOST
	case !e.Adopted && e.Code == 0 && e.Signal == "":
		return enginev1.ExitClass_EXIT_CLASS_UNASKED
	}
	if class, ok := lastWords(e.LastLines, patterns); ok {
		return class
	}
	switch {
	case e.Adopted:
		return enginev1.ExitClass_EXIT_CLASS_UNKNOWN
	case e.Signal != "":
		return enginev1.ExitClass_EXIT_CLASS_SIGNAL
	default:
		return enginev1.ExitClass_EXIT_CLASS_ERROR
	}
}

// lastWords returns the class of the first pattern that a line matches. A pattern without text or class matches none.
func lastWords(lines []string, patterns []*enginev1.ExitPattern) (enginev1.ExitClass, bool) {
	for _, pattern := range patterns {
		if pattern.GetContains() == "" || pattern.GetClass() == enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED {
			continue
		}
		for _, line := range lines {
			if strings.Contains(line, pattern.GetContains()) {
				return pattern.GetClass(), true
			}
		}
	}
	return enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED, false
}

// Permanent is whether the same start would end the same way, so that none must follow by itself.
func Permanent(class enginev1.ExitClass) bool {
	return class == enginev1.ExitClass_EXIT_CLASS_CONFIG
}

// manner says in a few words how a start ended.
func manner(class enginev1.ExitClass) string {
	if class == enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED {
		return "made no process"
	}
	return "ended with " + strings.TrimPrefix(class.String(), "EXIT_CLASS_")
}
