// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/spec"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func newPreload(a *app) *cobra.Command {
	flags, detach := &spec.PreloadFlags{}, false
	command := &cobra.Command{
		Use:   "preload",
		Short: "Make a pool ready: prepare, start, prove",
		Long: "Prepare an engine and a model, start every replica of the pool, and answer when all of them are proven ready. From\n" +
			"then on the engines are started again when they end, until the pool is drained.\n" +
			strings.Replace(specHelp, "%s", "PreloadRequest", 1) + `
A file can say more than flags: every field of the restart, breaker and health policies.

The first Ctrl-C cancels the preload and waits until nothing of it is left; the second leaves at once. --timeout only
leaves: the preload goes on.`,
		Example: "  roundhouse preload --preset quick --pool demo\n" +
			"  roundhouse preload -f pool.yaml --detach\n  roundhouse preload --pool demo --prepared-id sha256:...",
		GroupID: groupPools,
	}
	flags.Register(command.Flags())
	complete(command, spec.PoolValues())
	command.Flags().BoolVar(&detach, "detach", false, "return as soon as the work has begun")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		request, err := flags.Preload(a.Stdin, args)
		if err != nil {
			return err
		}
		return a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
			return a.preload(ctx, pools, request, detach)
		})
	})
	return command
}

// preload shows the work and the pool that comes of it.
func (a *app) preload(ctx context.Context, pools poolv1.PoolManagerServiceClient, request *poolv1.PreloadRequest, detach bool) error {
	pool := request.GetSpec().GetPoolId()
	var result *poolv1.Pool
	w := &work[poolv1.PreloadResponse, *poolv1.PreloadResponse]{
		app: a, what: "preload", pool: pool, detach: detach,
		call: func(ctx context.Context) (grpc.ServerStreamingClient[poolv1.PreloadResponse], error) {
			return pools.Preload(ctx, request)
		},
		show: func(progress render.Progress, message *poolv1.PreloadResponse) bool {
			switch event := message.GetEvent().(type) {
			case *poolv1.PreloadResponse_Phase:
				progress.Phase(render.Phase(event.Phase))
			case *poolv1.PreloadResponse_Progress:
				progress.Event(event.Progress)
			case *poolv1.PreloadResponse_Pool:
				result = event.Pool
			}
			return result != nil
		},
		cancel: func(ctx context.Context) (bool, error) {
			answer, err := pools.CancelPreload(ctx, &poolv1.CancelPreloadRequest{PoolId: pool})
			return answer.GetCancelled(), err
		},
		cancelCommand: "roundhouse cancel " + pool,
		tooLate:       "too late to cancel; `roundhouse drain " + pool + "` stops the pool",
	}
	if ended, err := w.run(ctx); err != nil || !ended || a.output == render.JSON {
		return err
	}
	return render.Pool(a.Stdout, result)
}
