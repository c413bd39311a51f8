// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/progress"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// track is the progress of one flight.
type track struct {
	hub *progress.Hub
}

func newTrack() *track { return &track{hub: progress.NewHub(progress.Config{})} }

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
	t.hub.Begin(step.ID, step.Name)
	t.hub.End(step.ID, progress.Outcome{Cached: true})
}

// do runs a step and keeps how long it took.
func (s *Service) do(ctx context.Context, t *track, planned plan.Step, work func(context.Context, *step) error) error {
	began := time.Now()
	t.hub.Begin(planned.ID, planned.Name)
	err := work(ctx, &step{hub: t.hub, id: planned.ID})
	outcome := outcomeOf(err)
	if err != nil && (ctx.Err() != nil || errors.Is(err, context.Canceled)) {
		outcome = progress.Outcome{State: enginev1.StepState_STEP_STATE_CANCELLED}
	}
	t.hub.End(planned.ID, outcome)
	if err != nil {
		return err
	}
	took := time.Since(began).Round(time.Millisecond)
	if err := s.cfg.Store.PutResolution(planned.DurationKey, took.String()); err != nil {
		s.cfg.Log.Warn("duration of a step was not kept", zap.Error(err))
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

// line passes on what a program printed.
func (s *step) line(stream runner.Stream, text string) {
	to := enginev1.LogStream_LOG_STREAM_STDOUT
	if stream == runner.Stderr {
		to = enginev1.LogStream_LOG_STREAM_STDERR
	}
	s.hub.Log(s.id, to, []byte(text+"\n"))
}
