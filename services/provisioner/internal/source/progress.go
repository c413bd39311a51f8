// SPDX-License-Identifier: Apache-2.0

package source

import (
	"fmt"
	"strings"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// meter turns what git prints into progress, and hands the rest on as lines.
type meter struct {
	obs  Observer
	last Progress
}

// line takes one line of git's output.
func (m *meter) line(stream runner.Stream, line string) {
	if p, ok := parseProgress(line); ok {
		if p.Phase != PhaseUnspecified {
			m.report(p)
		}
		return
	}
	if m.obs.Line != nil && line != "" {
		m.obs.Line(stream, line)
	}
}

// report says p unless it is behind what was said. While submodules are got, their own phases say nothing.
func (m *meter) report(p Progress) {
	behind := p.Phase < m.last.Phase || p.Phase == m.last.Phase && p.Percent <= m.last.Percent
	if m.obs.Progress == nil || behind {
		return
	}
	m.last = p
	m.obs.Progress(p)
}

// parseProgress reads a line like "Receiving objects:  42% (420/1000), 1.2 MiB | 3 MiB/s". It takes every line of that
// form; the phase is unspecified for work that is none of ours, such as the server's counting.
func parseProgress(line string) (Progress, bool) {
	title, rest, ok := strings.Cut(strings.TrimPrefix(line, "remote: "), ":")
	if !ok {
		return Progress{}, false
	}
	var p Progress
	if n, _ := fmt.Sscanf(rest, "%d%% (%d/%d)", &p.Percent, &p.Done, &p.Total); n != 3 {
		return Progress{}, false
	}
	if p.Percent < 0 || p.Percent > 100 || p.Done < 0 || p.Total < 0 {
		return Progress{}, false
	}
	switch title {
	case "Receiving objects", "Unpacking objects":
		p.Phase = Receiving
	case "Resolving deltas":
		p.Phase = Resolving
	case "Updating files", "Checking out files":
		p.Phase = Writing
	}
	return p, true
}
