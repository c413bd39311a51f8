// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
)

// messageOf is a pointer to M that is a protobuf message.
type messageOf[M any] interface {
	*M
	proto.Message
}

// work is a call whose work goes on when the caller leaves, and that can be cancelled. M is the messages of its stream.
type work[M any, P messageOf[M]] struct {
	*app

	// what is the work's name, such as preload, and pool whose it is.
	what, pool string
	// detach leaves as soon as the work has begun.
	detach bool
	// call begins it or attaches to it.
	call func(context.Context) (grpc.ServerStreamingClient[M], error)
	// show shows one message, and tells whether it was the result.
	show func(render.Progress, *M) (isResult bool)
	// cancel asks for it to be undone, and tells whether it is.
	cancel func(context.Context) (bool, error)
	// cancelCommand is what a person types for that; tooLate is what is said when there was nothing to cancel.
	cancelCommand, tooLate string

	progress render.Progress
	ended    bool // the result was shown
}

// received is what a stream gave: a message or its end.
type received[M any] struct {
	message *M
	err     error
}

// run shows the work until its end, or until the person leaves it. It tells whether there was a result.
func (w *work[M, P]) run(ctx context.Context) (ended bool, err error) {
	call, hangUp := context.WithCancel(ctx)
	left := make(chan struct{})
	defer close(left)
	defer hangUp()
	stream, err := w.call(call)
	if err != nil {
		return false, err
	}
	out := w.Stderr
	if w.output == render.JSON {
		out = io.Discard
	}
	w.progress = render.NewProgress(render.ProgressConfig{Out: out, Style: style(out)})
	err = w.follow(ctx, receive(stream, left))
	w.progress.Close()
	return w.ended, err
}

// receive hands out what the stream gives, its end included, until nobody takes it any more because all have left.
func receive[M any](stream grpc.ServerStreamingClient[M], left <-chan struct{}) <-chan received[M] {
	events := make(chan received[M])
	go func() { // ended by the stream's end and the taking of it, or by left
		for {
			message, err := stream.Recv()
			select {
			case events <- received[M]{message, err}:
			case <-left:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return events
}

// follow takes what the stream gives, and interrupts: the first asks the manager to cancel, the second leaves.
func (w *work[M, P]) follow(ctx context.Context, events <-chan received[M]) error {
	asking, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var cancelled chan error
	for {
		select {
		case event := <-events:
			if errors.Is(event.err, io.EOF) {
				if !w.ended {
					return noResult("pool manager")
				}
				return nil
			}
			if event.err != nil {
				return w.failed(ctx, event.err)
			}
			done, err := w.take(event.message)
			if done || err != nil {
				return err
			}
		case <-w.Interrupts:
			if cancelled != nil {
				w.progress.Note("left: the pool manager goes on cancelling; see `roundhouse pools " + w.pool + "`")
				return interrupted()
			}
			w.progress.Note("cancelling; Ctrl-C again leaves without waiting")
			cancelled = w.askToCancel(asking)
		case err := <-cancelled:
			if err != nil {
				return err
			}
			cancelled = make(chan error) // answered: what follows is the stream's end
		}
	}
}

// take shows one message, and tells whether the command may return already.
func (w *work[M, P]) take(message *M) (done bool, err error) {
	if w.output == render.JSON {
		if err := render.Line(w.Stdout, P(message)); err != nil {
			return false, err
		}
	}
	if w.show(w.progress, message) {
		w.ended = true
		return false, nil
	}
	if w.detach {
		w.progress.Note("the " + w.what + " of " + w.pool + " goes on; see `roundhouse watch " + w.pool + "`")
	}
	return w.detach, nil
}

// failed is the stream's error, with a word about what goes on if it is our own timeout.
func (w *work[M, P]) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		w.progress.Note("left: the " + w.what + " of " + w.pool + " goes on; `" + w.cancelCommand + "` ends it")
	}
	return err
}

// cancelTimeout is longer than any stop of an engine.
const cancelTimeout = 2 * time.Minute

// askToCancel asks the manager to undo the work. The channel has its answer.
func (w *work[M, P]) askToCancel(ctx context.Context) chan error {
	answer := make(chan error, 1) // nobody may be there to take it
	go func() {                   // ended by the answer, the timeout or ctx
		ctx, stop := context.WithTimeout(ctx, cancelTimeout)
		defer stop()
		undone, err := w.cancel(ctx)
		if err == nil && !undone {
			w.progress.Note(w.tooLate)
		}
		answer <- err
	}()
	return answer
}
