// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
)

// untilStopping returns a context for a stream that could go on for ever: it also ends when the server wants to stop,
// with ShuttingDown as its cause. The function ends it with another cause, and must be called.
func untilStopping(ctx context.Context) (context.Context, context.CancelCauseFunc) {
	stopping := serverkit.Stopping(ctx)
	ctx, stop := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-stopping:
			stop(reason.New(reason.ShuttingDown, "the pool manager is shutting down", reason.Remedy("call again in a moment")))
		case <-ctx.Done():
		}
	}()
	return ctx, stop
}
