// SPDX-License-Identifier: Apache-2.0

package build

import (
	"strconv"
	"strings"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// statusMark begins the lines by which ninja tells how far it is, and no compiler's.
const statusMark = "roundhouse "

// meter turns output into progress and lines.
type meter struct {
	report func(Progress)
	line   func(runner.Stream, string)
	last   Progress
}

// start begins a phase.
func (m *meter) start(p Phase) {
	m.last = Progress{Phase: p}
	m.say()
}

// finish ends a phase well.
func (m *meter) finish() {
	m.last.Percent = 100
	if m.last.Phase == Compile {
		m.last.Done = m.last.Total
	}
	m.say()
}

// see takes one line of output.
func (m *meter) see(stream runner.Stream, line string) {
	line, marked := strings.CutPrefix(line, statusMark)
	if m.line != nil {
		m.line(stream, line)
	}
	if !marked {
		return
	}
	done, total, ok := parseStatus(line)
	// 100 is for the end, and ninja's counts start again when it has found more to do.
	percent := min(99, 100*done/max(total, 1))
	if !ok || done == m.last.Done && total == m.last.Total {
		return
	}
	m.last.Done, m.last.Total, m.last.Percent = done, total, max(percent, m.last.Percent)
	m.say()
}

func (m *meter) say() {
	if m.report != nil {
		m.report(m.last)
	}
}

// maxActions is more than any build has; a larger number is none of ninja's.
const maxActions = 10_000_000

// parseStatus reads "[done/total] what". A step that only makes the build files anew is not counted: what there is to
// do is known after it.
func parseStatus(line string) (done, total int, ok bool) {
	counts, what, closed := strings.Cut(line, "] ")
	counts, opened := strings.CutPrefix(counts, "[")
	d, t, two := strings.Cut(counts, "/")
	if !closed || !opened || !two {
		return 0, 0, false
	}
	done, err1 := strconv.Atoi(d)
	total, err2 := strconv.Atoi(t)
	if err1 != nil || err2 != nil || done < 0 || total < 0 || done > total || total > maxActions {
		return 0, 0, false
	}
	if strings.HasPrefix(what, "Re-running CMake") || strings.HasPrefix(what, "Re-checking globbed") {
		return 0, 0, false
	}
	return done, total, true
}
