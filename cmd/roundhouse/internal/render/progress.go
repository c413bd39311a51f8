// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Progress shows work under way to a person. It may be used from several goroutines. A write that fails is dropped:
// losing the view must not stop the work.
type Progress interface {
	// Phase says that a stage of the work has begun, by its name.
	Phase(name string)
	// Event shows one event; events of one stream come in their order.
	Event(event *enginev1.Progress)
	// Note prints one line among the rest. It may be called after Close.
	Note(text string)
	// Close ends the display and leaves its last state on the screen.
	Close()
}

// ProgressConfig is what a Progress needs.
type ProgressConfig struct {
	// Out is written to. Required.
	Out io.Writer
	// Style is how; the zero value is Plain.
	Style Style
	// Now is the clock for spacing lines. Nil means time.Now.
	Now func() time.Time
}

// Style is a way to show progress.
type Style int

// The styles.
const (
	// Plain prints lines: one when a step begins and ends, and one every 5 s or 10 % between.
	Plain Style = iota
	// Bars draws a bar for each step and needs a terminal.
	Bars
)

// NewProgress makes a Progress, which is to be closed.
func NewProgress(config ProgressConfig) Progress {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Style == Bars {
		return newBars(config)
	}
	return newPlain(config)
}

// keptLines is how much of a failed step's log is shown.
const keptLines = 20

// step is what is known of one step.
type step struct {
	latest *enginev1.Step
	status *enginev1.Status
	log    []string
}

// steps is what is known of all steps of one stream. It is not safe for use by several goroutines.
type steps map[string]*step

// add takes in an event and answers with the step that it is about, or nil if it is about none.
func (s steps) add(event *enginev1.Progress) *step {
	id := event.GetStep().GetId() + event.GetStatus().GetStepId() + event.GetLog().GetStepId()
	if id == "" {
		return nil
	}
	known := s[id]
	if known == nil {
		known = &step{latest: &enginev1.Step{Id: id, Name: id}}
		s[id] = known
	}
	switch {
	case event.GetStep() != nil:
		known.latest = event.GetStep()
	case event.GetStatus() != nil:
		known.status = event.GetStatus()
	default:
		known.keep(event.GetLog().GetData())
	}
	return known
}

// keep adds lines to the log's end and forgets the oldest.
func (s *step) keep(data []byte) {
	for line := range bytes.Lines(data) {
		s.log = append(s.log, string(bytes.TrimRight(line, "\r\n")))
	}
	if extra := len(s.log) - keptLines; extra > 0 {
		s.log = slices.Delete(s.log, 0, extra)
	}
}

func (s *step) ended() bool {
	switch s.latest.GetState() {
	case enginev1.StepState_STEP_STATE_DONE, enginev1.StepState_STEP_STATE_FAILED, enginev1.StepState_STEP_STATE_CANCELLED:
		return true
	default:
		return false
	}
}

// percent is how far the step is, 0 to 100; -1 if that is not known.
func (s *step) percent() int64 {
	total, current := s.status.GetTotal(), s.status.GetCurrent()
	if s.status.GetUnit() == enginev1.Unit_UNIT_PERCENT {
		return min(max(current, 0), 100)
	}
	if total <= 0 {
		return -1
	}
	return min(max(int64(float64(current)/float64(total)*100), 0), 100)
}

// position is how far the step is, in words; empty if it has not moved.
func (s *step) position() string {
	if s.status == nil {
		return ""
	}
	var parts []string
	if percent := s.percent(); percent >= 0 {
		parts = append(parts, fmt.Sprintf("%3d %%", percent))
	}
	switch total, current := s.status.GetTotal(), s.status.GetCurrent(); s.status.GetUnit() {
	case enginev1.Unit_UNIT_BYTES:
		amount := Bytes(current)
		if total > 0 {
			amount += " of " + Bytes(total)
		}
		parts = append(parts, amount)
	case enginev1.Unit_UNIT_ACTIONS:
		amount := fmt.Sprintf("%d actions", current)
		if total > 0 {
			amount = fmt.Sprintf("%d of %d actions", current, total)
		}
		parts = append(parts, amount)
	default: // the percentage says it all
	}
	return strings.Join(parts, "  ")
}

// outcome is how the step ended: a word, and what there is to say about it.
func (s *step) outcome() (word, detail string) {
	switch s.latest.GetState() {
	case enginev1.StepState_STEP_STATE_FAILED:
		return "failed", s.latest.GetError()
	case enginev1.StepState_STEP_STATE_CANCELLED:
		return "cancelled", ""
	default:
	}
	if s.latest.GetCached() {
		return "cached", ""
	}
	var parts []string
	if s.status.GetUnit() == enginev1.Unit_UNIT_BYTES && s.status.GetCurrent() > 0 {
		parts = append(parts, Bytes(s.status.GetCurrent()))
	}
	if s.latest.GetStarted() != nil && s.latest.GetEnded() != nil {
		parts = append(parts, Duration(s.latest.GetEnded().AsTime().Sub(s.latest.GetStarted().AsTime())))
	}
	return "done", strings.Join(parts, " in ")
}

// wordColumn is the width of the word that begins a plain line.
const wordColumn = 10

// line puts a word, a name and a detail into one line with a newline.
func line(word, name, detail string) string {
	text := fmt.Sprintf("%-*s%s", wordColumn, word, name)
	if detail != "" {
		text += "  " + detail
	}
	return strings.TrimRight(text, " ") + "\n"
}
