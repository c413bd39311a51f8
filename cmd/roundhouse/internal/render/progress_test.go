// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func stepEvent(id, name string, state enginev1.StepState, took time.Duration) *enginev1.Progress {
	began := time.Unix(1780000000, 0)
	step := &enginev1.Step{Id: id, Name: name, State: state, Started: timestamppb.New(began)}
	if state != enginev1.StepState_STEP_STATE_RUNNING {
		step.Ended = timestamppb.New(began.Add(took))
	}
	return &enginev1.Progress{Event: &enginev1.Progress_Step{Step: step}}
}

func statusEvent(id string, unit enginev1.Unit, current, total int64) *enginev1.Progress {
	status := &enginev1.Status{StepId: id, Current: current, Total: total, Unit: unit}
	return &enginev1.Progress{Event: &enginev1.Progress_Status{Status: status}}
}

func logEvent(id, text string) *enginev1.Progress {
	return &enginev1.Progress{Event: &enginev1.Progress_Log{Log: &enginev1.Log{StepId: id, Data: []byte(text)}}}
}

// clock is a time that a test moves.
type clock struct{ now time.Time }

// story is a build with a download that moves fast, a compile that moves slowly and then fails, and cached work.
func story(progress Progress, clock *clock) {
	const running, done = enginev1.StepState_STEP_STATE_RUNNING, enginev1.StepState_STEP_STATE_DONE
	progress.Phase(Phase(poolv1.LoadPhase_LOAD_PHASE_PREPARING))
	cached := stepEvent("model", "fetch the model", done, 0)
	cached.GetStep().Cached = true
	progress.Event(cached)
	progress.Event(stepEvent("fetch", "fetch the bundle", running, 0))
	for current := int64(0); current <= 30_000_000; current += 1_000_000 { // 31 statuses in no time
		progress.Event(statusEvent("fetch", enginev1.Unit_UNIT_BYTES, current, 30_000_000))
	}
	progress.Event(stepEvent("fetch", "fetch the bundle", done, 1300*time.Millisecond))
	progress.Event(stepEvent("build", "build llama-server", running, 0))
	for i := int64(1); i <= 9; i++ { // 1 % each, 2 s apart
		clock.now = clock.now.Add(2 * time.Second)
		progress.Event(statusEvent("build", enginev1.Unit_UNIT_ACTIONS, i, 100))
		progress.Event(logEvent("build", fmt.Sprintf("[%d/100] cc %d.c\n", i, i)))
	}
	failed := stepEvent("build", "build llama-server", enginev1.StepState_STEP_STATE_FAILED, time.Minute)
	failed.GetStep().Error = "9.c:1: error: expected ';'"
	progress.Event(failed)
	progress.Event(stepEvent("record", "record it", enginev1.StepState_STEP_STATE_CANCELLED, 0))
	progress.Close()
	progress.Note("and that was it")
}

func TestPlain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		clock := &clock{now: time.Unix(1780000000, 0)}
		story(NewProgress(ProgressConfig{Out: &out, Now: func() time.Time { return clock.now }}), clock)
		testkit.Golden(t, "progress.txt", out.Bytes())
	})
}

func TestPlainHoldsTheFirstLineBack(t *testing.T) {
	t.Parallel()
	const running, done = enginev1.StepState_STEP_STATE_RUNNING, enginev1.StepState_STEP_STATE_DONE
	tests := []struct {
		name   string
		events func(progress Progress)
		want   string
	}{
		{"a step that ends at once", func(progress Progress) {
			progress.Event(stepEvent("a", "a", running, 0))
			progress.Event(stepEvent("a", "a", done, time.Millisecond))
		}, "done      a  1.0 ms\n"},
		{"a step that takes its time", func(progress Progress) {
			progress.Event(stepEvent("a", "a", running, 0))
			<-time.After(2 * plainPatience)
			progress.Event(stepEvent("a", "a", done, time.Second))
		}, "start     a\ndone      a  1.0 s\n"},
		{"two at once", func(progress Progress) {
			progress.Event(stepEvent("a", "a", running, 0))
			progress.Event(stepEvent("b", "b", running, 0))
			progress.Event(stepEvent("a", "a", done, time.Second))
		}, "start     a\nstart     b\ndone      a  1.0 s\n"},
		{"a note between", func(progress Progress) {
			progress.Event(stepEvent("a", "a", running, 0))
			progress.Note("note")
		}, "start     a\nnote\n"},
		{"no news for long", func(progress Progress) {
			progress.Event(stepEvent("a", "a", running, 0))
			for range 3 {
				<-time.After(2 * plainInterval)
				progress.Event(statusEvent("a", enginev1.Unit_UNIT_PERCENT, 3, 100))
			}
		}, "start     a\n          a    3 %\n"},
		{"the end of all", func(progress Progress) { progress.Event(stepEvent("a", "a", running, 0)) }, "start     a\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				progress := NewProgress(ProgressConfig{Out: &out})
				test.events(progress)
				progress.Close()
				if got := out.String(); got != test.want {
					t.Errorf("progress shows %q, want %q", got, test.want)
				}
			})
		})
	}
}

func TestBars(t *testing.T) {
	t.Parallel()
	out := &lockedBuffer{}
	clock := &clock{}
	story(NewProgress(ProgressConfig{Out: out, Style: Bars}), clock)
	text := out.String()
	for _, want := range []string{
		"preparing", "fetch the model", "cached", "fetch the bundle", "done  30.0 MB in 1.3 s", "build llama-server",
		"9.c:1: error", "[9/100] cc 9.c", "cancelled", "and that was it",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the bars do not show %q:\n%s", want, text)
		}
	}
}

func TestProgressOfStepsWithoutAName(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	progress := NewProgress(ProgressConfig{Out: &out})
	progress.Event(&enginev1.Progress{})
	progress.Event(statusEvent("late", enginev1.Unit_UNIT_BYTES, 5, 0))
	progress.Close()
	if got, want := out.String(), "start     late\n"; got != want {
		t.Errorf("progress shows %q, want %q", got, want)
	}
}

func TestPercent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name           string
		unit           enginev1.Unit
		current, total int64
		want           int64
	}{
		{"half", enginev1.Unit_UNIT_BYTES, 5, 10, 50},
		{"more than all", enginev1.Unit_UNIT_BYTES, 20, 10, 100},
		{"total unknown", enginev1.Unit_UNIT_BYTES, 20, 0, -1},
		{"huge", enginev1.Unit_UNIT_BYTES, 1 << 62, 1<<63 - 1, 50},
		{"percent", enginev1.Unit_UNIT_PERCENT, 42, 100, 42},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := &step{status: statusEvent("x", test.unit, test.current, test.total).GetStatus()}
			if got := s.percent(); got != test.want {
				t.Errorf("percent of %d/%d %v = %d, want %d", test.current, test.total, test.unit, got, test.want)
			}
		})
	}
}

// lockedBuffer is a buffer for several goroutines.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
