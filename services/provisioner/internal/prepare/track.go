// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/progress"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// track is the progress of one flight. Its methods are called by the goroutine of the flight's work.
type track struct {
	hub *progress.Hub
	// began holds the steps that have begun; failed is true once one has failed.
	began  map[string]bool
	failed bool
}

func newTrack() *track {
	return &track{hub: progress.NewHub(progress.Config{}), began: make(map[string]bool)}
}

func (t *track) begin(step plan.Step) {
	t.began[step.ID] = true
	t.hub.Begin(step.ID, step.Name)
}

// end ends a step whose work came to err.
func (t *track) end(ctx context.Context, step plan.Step, err error) {
	outcome := outcomeOf(err)
	if err != nil && (ctx.Err() != nil || errors.Is(err, context.Canceled)) {
		outcome = progress.Outcome{State: enginev1.StepState_STEP_STATE_CANCELLED}
	}
	t.failed = t.failed || outcome.State == enginev1.StepState_STEP_STATE_FAILED
	t.hub.End(step.ID, outcome)
}

// blame lets the next step of the engine fail with err, which kept it from being begun, unless a step has failed already.
func (t *track) blame(ctx context.Context, planned *plan.Plan, err error) {
	if t.failed || ctx.Err() != nil {
		return
	}
	for _, step := range planned.Steps {
		if step.OfEngine() && !t.began[step.ID] {
			t.begin(step)
			t.end(ctx, step, err)
			return
		}
	}
}

// statusInterval is as often as an eye can follow; what comes between is left out.
const statusInterval = 50 * time.Millisecond

// step is one step that runs. It is used by one goroutine at a time.
type step struct {
	hub      *progress.Hub
	id       string
	reported time.Time
}

// cached says that a step had nothing to do.
func (t *track) cached(step plan.Step) {
	t.begin(step)
	t.hub.End(step.ID, progress.Outcome{Cached: true})
}

// do runs a step and keeps how long it took.
func (s *Service) do(ctx context.Context, t *track, planned plan.Step, work func(context.Context, *step) error) error {
	began := time.Now()
	t.begin(planned)
	err := work(ctx, &step{hub: t.hub, id: planned.ID})
	t.end(ctx, planned, err)
	if err != nil {
		return err
	}
	took := time.Since(began).Round(time.Millisecond)
	if err := s.cfg.Store.PutResolution(planned.DurationKey, took.String()); err != nil {
		s.cfg.Log.Warn("duration of a step was not kept", zap.String("error", reason.Redact(err.Error())))
	}
	return nil
}

// bytes says how far a download or copy is.
func (s *step) bytes(done, total int64) {
	if now := time.Now(); done == total || now.Sub(s.reported) >= statusInterval {
		s.reported = now
		s.hub.Status(s.id, done, total, enginev1.Unit_UNIT_BYTES)
	}
}

// percent says how far anything else is.
func (s *step) percent(done int) {
	s.hub.Status(s.id, int64(done), percentAll, enginev1.Unit_UNIT_PERCENT)
}

const percentAll = 100

// line passes on what a program printed, but for credentials in addresses.
func (s *step) line(stream runner.Stream, text string) {
	to := enginev1.LogStream_LOG_STREAM_STDOUT
	if stream == runner.Stderr {
		to = enginev1.LogStream_LOG_STREAM_STDERR
	}
	s.hub.Log(s.id, to, []byte(reason.Redact(text)+"\n"))
}
