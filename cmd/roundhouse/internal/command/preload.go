// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/spec"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func newPreload(a *app) *cobra.Command {
	flags, detach := &spec.PoolFlags{}, false
	command := &cobra.Command{
		Use:   "preload",
		Short: "Make a pool ready: prepare, start, prove",
		Long: "Prepare an engine and a model, start every replica of the pool, and answer when all of them are proven ready.\n" +
			strings.Replace(specHelp, "%s", "PreloadRequest", 1) + `

The first Ctrl-C cancels the preload and waits until nothing of it is left; the second leaves at once. --timeout only
leaves: the preload goes on.`,
		Example: "  roundhouse preload --preset quick --pool demo\n" +
			"  roundhouse preload -f pool.yaml --detach\n  roundhouse preload --pool demo --prepared-id sha256:...",
		GroupID: groupPools,
	}
	flags.Register(command.Flags())
	complete(command, spec.Values())
	command.Flags().BoolVar(&detach, "detach", false, "return as soon as the work has begun")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		request, err := flags.Preload(a.Stdin, args)
		if err != nil {
			return err
		}
		return a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
			p := &preload{app: a, pools: pools, pool: request.GetSpec().GetPoolId(), detach: detach}
			return p.run(ctx, request)
		})
	})
	return command
}

// preload is one call of Preload and what becomes of it.
type preload struct {
	*app

	pools    poolv1.PoolManagerServiceClient
	pool     string
	detach   bool
	progress render.Progress
	result   *poolv1.Pool
}

// received is what a stream gave: a message or its end.
type received struct {
	message *poolv1.PreloadResponse
	err     error
}

// run shows the call until its end, or until the person leaves it.
func (p *preload) run(ctx context.Context, request *poolv1.PreloadRequest) error {
	call, hangUp := context.WithCancel(ctx)
	left := make(chan struct{})
	defer close(left)
	defer hangUp()
	stream, err := p.pools.Preload(call, request)
	if err != nil {
		return err
	}
	out := p.Stderr
	if p.output == render.JSON {
		out = io.Discard
	}
	p.progress = render.NewProgress(render.ProgressConfig{Out: out, Style: style(out)})
	err = p.follow(ctx, receive(stream, left))
	p.progress.Close()
	if err != nil || p.result == nil || p.output == render.JSON {
		return err
	}
	return render.Pool(p.Stdout, p.result)
}

// receive hands out what the stream gives, its end included, until nobody takes it any more because all have left.
func receive(stream grpc.ServerStreamingClient[poolv1.PreloadResponse], left <-chan struct{}) <-chan received {
	events := make(chan received)
	go func() { // ended by the stream's end and the taking of it, or by left
		for {
			message, err := stream.Recv()
			select {
			case events <- received{message, err}:
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
func (p *preload) follow(ctx context.Context, events <-chan received) error {
	asking, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var cancelled chan error
	for {
		select {
		case event := <-events:
			if errors.Is(event.err, io.EOF) {
				if p.result == nil {
					return noResult("pool manager")
				}
				return nil
			}
			if event.err != nil {
				return p.failed(ctx, event.err)
			}
			done, err := p.take(event.message)
			if done || err != nil {
				return err
			}
		case <-p.Interrupts:
			if cancelled != nil {
				p.progress.Note("left: the pool manager goes on cancelling; see `roundhouse pools " + p.pool + "`")
				return interrupted()
			}
			p.progress.Note("cancelling; Ctrl-C again leaves without waiting")
			cancelled = p.cancel(asking)
		case err := <-cancelled:
			if err != nil {
				return err
			}
			cancelled = make(chan error) // answered: what follows is the stream's end
		}
	}
}

// take shows one message, and tells whether the command may return already.
func (p *preload) take(message *poolv1.PreloadResponse) (done bool, err error) {
	if p.output == render.JSON {
		if err := render.Line(p.Stdout, message); err != nil {
			return false, err
		}
	}
	switch event := message.GetEvent().(type) {
	case *poolv1.PreloadResponse_Phase:
		p.progress.Phase(event.Phase)
	case *poolv1.PreloadResponse_Progress:
		p.progress.Event(event.Progress)
	case *poolv1.PreloadResponse_Pool:
		p.result = event.Pool
		return false, nil
	}
	if p.detach {
		p.progress.Note("the preload of " + p.pool + " goes on; see `roundhouse watch " + p.pool + "`")
	}
	return p.detach, nil
}

// failed is the stream's error, with a word about what goes on if it is our own timeout.
func (p *preload) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		p.progress.Note("left: the preload of " + p.pool + " goes on; `roundhouse cancel " + p.pool + "` ends it")
	}
	return err
}

// cancelTimeout is longer than any stop of an engine.
const cancelTimeout = 2 * time.Minute

// cancel asks the manager to undo the preload. The channel has its answer.
func (p *preload) cancel(ctx context.Context) chan error {
	answer := make(chan error, 1) // nobody may be there to take it
	go func() {                   // ended by the answer, the timeout or ctx
		ctx, stop := context.WithTimeout(ctx, cancelTimeout)
		defer stop()
		got, err := p.pools.CancelPreload(ctx, &poolv1.CancelPreloadRequest{PoolId: p.pool})
		if err == nil && !got.GetCancelled() {
			p.progress.Note("too late to cancel; `roundhouse drain " + p.pool + "` stops the pool")
		}
		answer <- err
	}()
	return answer
}
