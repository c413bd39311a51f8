// SPDX-License-Identifier: Apache-2.0

package render

import (
	"io"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

const (
	// barWidth leaves room for a name and figures in 100 columns.
	barWidth = 28
	// nameWidth is as much of a step's name as stands before its bar.
	nameWidth = 44
)

// bars draws one bar a step.
type bars struct {
	out       io.Writer
	container *mpb.Progress

	mu     sync.Mutex // guards what follows; never held while the container is waited for
	steps  steps
	drawn  map[string]*bar
	closed bool
}

// bar is a step's bar and the text behind it.
type bar struct {
	bar *mpb.Bar

	mu   sync.Mutex // taken by the painter: innermost
	text string
}

func (b *bar) say(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = text
}

func (b *bar) said(decor.Statistics) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text
}

func newBars(config ProgressConfig) *bars {
	return &bars{
		out:       config.Out,
		container: mpb.New(mpb.WithOutput(config.Out), mpb.WithAutoRefresh()),
		steps:     steps{},
		drawn:     map[string]*bar{},
	}
}

func (b *bars) Phase(name string) { b.Note(name) }

func (b *bars) Event(event *enginev1.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	step := b.steps.add(event)
	if step == nil || b.closed {
		return
	}
	drawn := b.drawn[step.latest.GetId()]
	if drawn == nil {
		drawn = b.draw(step)
	}
	switch {
	case step.ended():
		word, detail := step.outcome()
		drawn.say(word + "  " + detail)
		if step.latest.GetState() != enginev1.StepState_STEP_STATE_DONE {
			drawn.bar.Abort(false)
			return
		}
		drawn.bar.SetTotal(100, false)
		drawn.bar.SetCurrent(100)
		drawn.bar.SetTotal(100, true)
	case event.GetStatus() != nil:
		drawn.say(step.position())
		drawn.bar.SetCurrent(max(step.percent(), 0))
	}
}

// draw adds a step's bar.
func (b *bars) draw(step *step) *bar {
	name := []rune(step.latest.GetName())
	if len(name) > nameWidth {
		name = append(name[:nameWidth-1], '…')
	}
	drawn := &bar{}
	drawn.bar = b.container.New(0, mpb.BarStyle().Lbound("[").Filler("=").Tip(">").Padding(" ").Rbound("]"),
		mpb.BarWidth(barWidth),
		mpb.PrependDecorators(decor.Name(string(name), decor.WCSyncSpaceR)),
		mpb.AppendDecorators(decor.Any(drawn.said)),
	)
	drawn.bar.SetTotal(100, false)
	b.drawn[step.latest.GetId()] = drawn
	return drawn
}

func (b *bars) Note(text string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := io.Writer(b.container)
	if b.closed {
		out = b.out
	}
	_, _ = io.WriteString(out, withNewline(text)) // a lost view must not stop the work
}

func (b *bars) Close() {
	b.mu.Lock()
	wasClosed := b.closed
	b.closed = true
	for _, drawn := range b.drawn {
		drawn.bar.Abort(false) // those that are complete stay so
	}
	b.mu.Unlock()
	if !wasClosed {
		b.container.Wait()
		b.failures()
	}
}

// failures prints the last log lines of the steps that failed, under the bars.
func (b *bars) failures() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, step := range b.steps {
		if step.latest.GetState() != enginev1.StepState_STEP_STATE_FAILED {
			continue
		}
		_, _ = io.WriteString(b.out, line("failed", step.latest.GetName(), step.latest.GetError()))
		for _, text := range step.log {
			_, _ = io.WriteString(b.out, line("", text, ""))
		}
	}
}
