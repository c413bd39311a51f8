// SPDX-License-Identifier: Apache-2.0

package build

import (
	"strings"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// maxErrorBytes keeps an error line to what a status may carry.
const maxErrorBytes = 500

// firstError finds the line that says why a build failed: the first that a compiler, linker or cmake calls an error;
// without one, the action that failed; without that, what ninja itself says.
type firstError struct {
	noSpace bool

	strong, failed, ninja string
	// pending is a "CMake Error at FILE:LINE" whose message is the next line that is not empty.
	pending string
	// command is set when the next line is the failed command, which holds any text.
	command bool
}

// see takes one line of output.
func (f *firstError) see(line string) {
	f.noSpace = f.noSpace || runner.NoSpace([]string{line})
	if f.command {
		f.command = false
		return
	}
	text := strings.TrimSpace(line)
	switch {
	case f.strong != "" || text == "":
	case f.pending != "":
		f.strong, f.pending = f.pending+" "+text, ""
	case strings.HasPrefix(text, "CMake Error at "), strings.HasPrefix(text, "CMake Error in "):
		f.pending = text
	case strings.HasPrefix(line, "FAILED: "):
		f.command = true
		if f.failed == "" {
			f.failed = text
		}
	case strings.HasPrefix(line, "ninja: error: "), strings.HasPrefix(line, "ninja: fatal: "):
		f.ninja = text
	case isError(text):
		f.strong = text
	}
}

// isError tells whether a compiler, linker or cmake calls it an error.
func isError(text string) bool {
	for _, mark := range []string{": error: ", ": fatal error: ", ": undefined reference to ", ": cannot find ", ": Assertion `"} {
		if strings.Contains(text, mark) {
			return true
		}
	}
	for _, start := range []string{"error: ", "fatal error: ", "fatal: ", "CMake Error: ", "virtual memory exhausted"} {
		if strings.HasPrefix(text, start) {
			return true
		}
	}
	return strings.Contains(text, "fatal error: Killed") || strings.Contains(text, "internal compiler error")
}

// line returns the best line, or nothing when there was none.
func (f *firstError) line() string {
	for _, line := range []string{f.strong, f.pending, f.failed, f.ninja} {
		if len(line) > maxErrorBytes {
			line = strings.ToValidUTF8(line[:maxErrorBytes], "") + "..."
		}
		if line != "" {
			return line
		}
	}
	return ""
}

// remedy says what helps, as far as the line tells.
func (f *firstError) remedy() string {
	for _, mark := range []string{"Killed", "virtual memory exhausted", "signal terminated program"} {
		if strings.Contains(f.strong, mark) {
			return "the machine ran out of memory: build with fewer jobs or more memory"
		}
	}
	return "the log of the build has the whole message"
}
