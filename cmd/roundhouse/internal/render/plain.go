// SPDX-License-Identifier: Apache-2.0

package render

import (
	"io"
	"sync"
	"time"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

const (
	// plainInterval is the longest silence of a step that moves.
	plainInterval = 5 * time.Second
	// plainPercent is how far a step moves between two lines.
	plainPercent = 10
	// plainPatience is how long a step's first line is held back: steps that end sooner have their last line only.
	plainPatience = 200 * time.Millisecond
)

// plain prints lines.
type plain struct {
	out io.Writer
	now func() time.Time

	mu    sync.Mutex // guards what follows, and the order of lines
	steps steps
	shown map[string]shown
	// held is the first line of the step that began last; empty if it was printed. flush prints it in time.
	held   string
	heldID string
	flush  *time.Timer
}

// shown is what was printed last of a step.
type shown struct {
	at       time.Time
	percent  int64
	position string
	ended    bool
}

func newPlain(config ProgressConfig) *plain {
	return &plain{out: config.Out, now: config.Now, steps: steps{}, shown: map[string]shown{}}
}

func (p *plain) Phase(name string) { p.Note(line("phase", name, "")) }

func (p *plain) Event(event *enginev1.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	step := p.steps.add(event)
	if step == nil {
		return
	}
	id := step.latest.GetId()
	last, seen := p.shown[id]
	switch {
	case last.ended:
	case step.ended():
		if p.heldID == id {
			p.held = ""
		}
		p.shown[id] = shown{ended: true}
		word, detail := step.outcome()
		p.print(line(word, step.latest.GetName(), detail))
		if step.latest.GetState() == enginev1.StepState_STEP_STATE_FAILED {
			for _, text := range step.log {
				p.print(line("", text, ""))
			}
		}
	case !seen:
		p.shown[id] = shown{at: p.now(), percent: step.percent(), position: step.position()}
		p.hold(id, line("start", step.latest.GetName(), ""))
	case event.GetStatus() != nil && p.due(last, step):
		p.shown[id] = shown{at: p.now(), percent: step.percent(), position: step.position()}
		p.print(line("", step.latest.GetName(), step.position()))
	}
}

// due tells whether a step has moved enough, or been silent long enough, for another line.
func (p *plain) due(last shown, step *step) bool {
	if p.now().Sub(last.at) >= plainInterval {
		return step.position() != last.position
	}
	percent := step.percent()
	return percent >= 0 && percent/plainPercent > max(last.percent, 0)/plainPercent
}

func (p *plain) Note(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.print(withNewline(text))
}

func (p *plain) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.print("")
}

// hold keeps a step's first line back until the next line or until plainPatience is over.
func (p *plain) hold(id, text string) {
	p.print("")
	p.held, p.heldID = text, id
	p.flush = time.AfterFunc(plainPatience, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.heldID == id {
			p.print("")
		}
	})
}

// print writes a text behind the line that is held back.
func (p *plain) print(text string) {
	text = p.held + text
	p.held, p.heldID = "", ""
	if p.flush != nil {
		p.flush.Stop()
	}
	_, _ = io.WriteString(p.out, text) // a lost view must not stop the work
}

func withNewline(text string) string {
	if text == "" || text[len(text)-1] != '\n' {
		text += "\n"
	}
	return text
}
