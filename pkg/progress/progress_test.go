// SPDX-License-Identifier: Apache-2.0

package progress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// told renders events, one a line.
func told(events []*enginev1.Progress) []string {
	var lines []string
	for _, event := range events {
		switch e := event.GetEvent().(type) {
		case *enginev1.Progress_Step:
			line := fmt.Sprintf("%s %s", e.Step.GetId(), strings.TrimPrefix(e.Step.GetState().String(), "STEP_STATE_"))
			if e.Step.GetCached() {
				line += " cached"
			}
			if e.Step.GetError() != "" {
				line += ": " + e.Step.GetError()
			}
			lines = append(lines, line)
		case *enginev1.Progress_Status:
			lines = append(lines, fmt.Sprintf("%s %d/%d", e.Status.GetStepId(), e.Status.GetCurrent(), e.Status.GetTotal()))
		case *enginev1.Progress_Log:
			lines = append(lines, fmt.Sprintf("%s missed %d log %q", e.Log.GetStepId(), e.Log.GetDroppedBytes(), e.Log.GetData()))
		}
	}
	return lines
}

func wantNext(t *testing.T, r *Reader, want ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	events, err := r.Next(ctx)
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	if diff := cmp.Diff(want, told(events)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func wantEOF(t *testing.T, r *Reader) {
	t.Helper()
	if events, err := r.Next(t.Context()); !errors.Is(err, io.EOF) {
		t.Errorf("Next = %v, %v, want io.EOF", told(events), err)
	}
}

func text(id, s string) *enginev1.Progress {
	return &enginev1.Progress{Event: &enginev1.Progress_Log{Log: &enginev1.Log{StepId: id, Data: []byte(s)}}}
}

func TestReaderGetsEachStepInOrder(t *testing.T) {
	t.Parallel()
	h := NewHub(Config{})
	r := h.Reader()
	h.Begin("a", "do a")
	wantNext(t, r, "a RUNNING")
	h.Status("a", 1, 10, enginev1.Unit_UNIT_BYTES)
	h.Publish(text("a", "one\n"))
	h.Begin("b", "do b")
	h.Status("a", 7, 10, enginev1.Unit_UNIT_BYTES)
	h.End("a", Outcome{})
	wantNext(t, r, `a missed 0 log "one\n"`, "a 7/10", "a DONE", "b RUNNING")
	h.End("b", Outcome{Cached: true})
	h.Close(Outcome{})
	wantNext(t, r, "b DONE cached")
	wantEOF(t, r)
}

func TestLateReaderGetsWhatWentBefore(t *testing.T) {
	t.Parallel()
	h := NewHub(Config{})
	h.Begin("a", "do a")
	h.Status("a", 1, 2, enginev1.Unit_UNIT_BYTES)
	h.Publish(text("a", "x"))
	h.End("a", Outcome{State: enginev1.StepState_STEP_STATE_FAILED, Error: "no luck"})
	h.Begin("b", "do b")
	h.Close(Outcome{State: enginev1.StepState_STEP_STATE_CANCELLED})
	r := h.Reader()
	wantNext(t, r, "a RUNNING", `a missed 0 log "x"`, "a 1/2", "a FAILED: no luck", "b RUNNING", "b CANCELLED")
	wantEOF(t, r)
}

func TestStatusNeverShrinks(t *testing.T) {
	t.Parallel()
	h := NewHub(Config{})
	h.Begin("a", "do a")
	h.Status("a", 5, 10, enginev1.Unit_UNIT_BYTES)
	h.Status("a", 3, 10, enginev1.Unit_UNIT_BYTES)
	wantNext(t, h.Reader(), "a RUNNING", "a 5/10")
}

func TestOldLogIsDroppedAndCounted(t *testing.T) {
	t.Parallel()
	h := NewHub(Config{LogBytes: 10})
	h.Begin("a", "do a")
	early := h.Reader()
	wantNext(t, early, "a RUNNING")
	h.Publish(text("a", "0123"))
	wantNext(t, early, `a missed 0 log "0123"`)
	h.Publish(text("a", "4567"))
	h.Publish(text("a", "89ab"))
	h.Publish(text("a", "cdef"))
	wantNext(t, early, `a missed 4 log "89ab"`, `a missed 0 log "cdef"`)
	wantNext(t, h.Reader(), "a RUNNING", `a missed 8 log "89ab"`, `a missed 0 log "cdef"`)
}

// A hub that is fed by another's reader tells the same, the bytes missed included.
func TestHubsChain(t *testing.T) {
	t.Parallel()
	first, second := NewHub(Config{LogBytes: 4}), NewHub(Config{})
	first.Begin("a", "do a")
	first.Publish(text("a", "lost"))
	first.Publish(text("a", "kept"))
	first.End("a", Outcome{})
	events, err := first.Reader().Next(t.Context())
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	for _, event := range events {
		second.Publish(event)
	}
	wantNext(t, second.Reader(), "a RUNNING", `a missed 4 log "kept"`, "a DONE")
}

func TestEventsOutOfPlaceAreDropped(t *testing.T) {
	t.Parallel()
	h := NewHub(Config{})
	h.Status("nobody", 1, 1, enginev1.Unit_UNIT_BYTES)
	h.Publish(text("nobody", "x"))
	h.End("nobody", Outcome{})
	h.Begin("a", "do a")
	h.End("a", Outcome{})
	h.End("a", Outcome{State: enginev1.StepState_STEP_STATE_FAILED})
	h.Publish(text("a", "after the end"))
	h.Close(Outcome{})
	h.Begin("b", "after close")
	r := h.Reader()
	wantNext(t, r, "a RUNNING", "a DONE")
	wantEOF(t, r)
}

func TestNextEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := NewHub(Config{}).Reader().Next(ctx); !errors.Is(err, cause) {
		t.Errorf("Next = %v, want the context's cause", err)
	}
}
