// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"sync"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Run owns all work: what Prepare begins runs in its goroutines, and it returns when ctx has ended and none of it is left.
// What is cut off then ends with SHUTTING_DOWN. A Service runs once.
func (s *Service) Run(ctx context.Context) error {
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var running sync.WaitGroup
	defer running.Wait()
	defer close(s.stopped)
	running.Go(func() {
		if err := s.facts.learn(work); err != nil && work.Err() == nil {
			s.cfg.Log.Warn("tools could not be looked for", zap.String("error", reason.Redact(err.Error())))
		}
	})
	for {
		select {
		case task := <-s.tasks:
			running.Go(func() { task(work) })
		case <-ctx.Done():
			cancel(errShuttingDown())
			return nil
		}
	}
}

// start hands a task to Run, which takes it at once. It blocks while Run has not begun.
func (s *Service) start(task func(context.Context)) error {
	select {
	case s.tasks <- task:
		return nil
	case <-s.stopped:
		return errShuttingDown()
	}
}

func errShuttingDown() error {
	return reason.New(reason.ShuttingDown, "the provisioner is shutting down", reason.Remedy("ask again in a moment: what was finished is kept"))
}
