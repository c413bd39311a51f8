// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// noon has no monotonic reading, so that times can be compared and written.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// story plays one replica: the lines of a script are what happens to it, those with an arrow what comes of it.
type story struct {
	start, now time.Time
	policy     Policy
	track      Track
}

func TestRestartScript(t *testing.T) {
	t.Parallel()
	const name = "restart.txt"
	script, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	s := story{start: noon(), now: noon()}
	for line := range strings.Lines(string(script)) {
		if strings.HasPrefix(line, "    -> ") {
			continue
		}
		out.WriteString(line)
		if came := s.play(t, strings.TrimSpace(line)); came != "" {
			fmt.Fprintf(&out, "    -> %s\n", came)
		}
	}
	testkit.Golden(t, name, []byte(out.String()))
}

func (s *story) play(t *testing.T, line string) string {
	t.Helper()
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "", "#":
		return ""
	case "new":
		*s = story{start: noon(), now: noon()}
		return ""
	case "policy":
		s.policy = parsePolicy(t, rest)
		return ""
	case "after":
		s.now = s.now.Add(parseDuration(t, rest))
		return ""
	case "wait":
		s.now = s.track.NextAttempt
		return ""
	case "start":
		s.track = s.track.Starting(s.now)
	case "ready":
		s.track = s.track.Ready(s.now)
	case "reset":
		s.track = s.track.Reset()
	case "stable":
		var changed bool
		s.track, changed = s.track.Stable(s.now, s.policy)
		return fmt.Sprintf("changed=%v %s", changed, s.status())
	case "resume", "reboot":
		s.track = written(t, s.track).Resume(s.now, word == "resume")
	case "fail":
		return s.fail(t, rest)
	default:
		t.Fatalf("unknown line %q", line)
	}
	return s.status()
}

func (s *story) fail(t *testing.T, class string) string {
	t.Helper()
	number, ok := enginev1.ExitClass_value["EXIT_CLASS_"+class]
	if !ok {
		t.Fatalf("unknown class %q", class)
	}
	failure := Failure{Class: enginev1.ExitClass(number), WasReady: !s.track.ReadySince.IsZero()}
	if failure.WasReady {
		failure.ReadyFor = s.now.Sub(s.track.ReadySince)
	}
	var d Decision
	s.track, d = s.track.Failed(s.now, s.policy, failure, 0.5)
	return fmt.Sprintf("%s delay=%s (%s) %s", d.Verdict, d.Delay, d.Cause, s.status())
}

func (s *story) status() string {
	status := s.track.Status()
	text := fmt.Sprintf("restarts=%d failed_starts=%d %s", status.Restarts, status.FailedStarts, status.Breaker)
	if status.BreakerCause != "" {
		text += fmt.Sprintf(" %q", status.BreakerCause)
	}
	if !status.NextAttempt.IsZero() {
		text += " next in " + status.NextAttempt.Sub(s.now).String()
	}
	if s.track.GaveUp {
		text += " gave up"
	}
	if at := s.track.NextCheck(s.policy); !at.IsZero() {
		text += " check in " + at.Sub(s.now).String()
	}
	return text
}

func parsePolicy(t *testing.T, text string) Policy {
	t.Helper()
	var p Policy
	durations := map[string]*time.Duration{
		"first_delay": &p.FirstDelay, "max_delay": &p.MaxDelay, "immediate_after": &p.ImmediateAfter, "window": &p.Breaker.Window,
	}
	counts := map[string]*int{"failed_starts": &p.Breaker.FailedStarts, "failures_in_window": &p.Breaker.FailuresInWindow}
	for _, field := range strings.Fields(text) {
		key, value, _ := strings.Cut(field, "=")
		if d, ok := durations[key]; ok {
			*d = parseDuration(t, value)
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil || counts[key] == nil {
			t.Fatalf("unknown policy %q", field)
		}
		*counts[key] = n
	}
	return p
}

func parseDuration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// written is what comes back of a Track from a disk.
func written(t *testing.T, track Track) Track {
	t.Helper()
	text, err := json.Marshal(track)
	if err != nil {
		t.Fatalf("write %+v: %v", track, err)
	}
	var back Track
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatalf("read %s: %v", text, err)
	}
	return back
}
