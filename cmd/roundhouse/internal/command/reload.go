// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/spec"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func newReload(a *app) *cobra.Command {
	flags, detach, deadline := &spec.ReloadFlags{}, false, time.Duration(0)
	command := &cobra.Command{
		Use:   "reload",
		Short: "Make a pool another one without an interruption",
		Long: "Start new engines beside the old ones, let them prove what they are, hand over to them, and only then end the old ones.\n" +
			"What fails before that leaves the pool as it was. What needs no new engine is changed alone.\n" +
			strings.Replace(specHelp, "%s", "ReloadRequest", 1) + `

With --pool and none of --preset, -f, --prepared-id and an engine, the flags say what is to change of the pool as it is, and
all else stays. --prove-prompt asks each new engine to complete a text before it serves.

The first Ctrl-C cancels the reload and waits until the old engines serve alone; the second leaves at once. --timeout only
leaves: the reload goes on.`,
		Example: "  roundhouse reload --pool chat --model file:/models/new.gguf --prove-prompt \"2 + 2 =\" --prove-contains 4\n" +
			"  roundhouse reload --pool chat --priority 10 --label team=red\n  roundhouse reload -f pool.yaml --dry-run",
		GroupID: groupPools,
	}
	flags.Register(command.Flags())
	complete(command, spec.PoolValues())
	completeWith(command, "pool", a.completePools(completeAll))
	command.Flags().BoolVar(&detach, "detach", false, "return as soon as the work has begun")
	command.Flags().DurationVar(&deadline, "drain-deadline", 0,
		"wait for `TIME` for requests of the old engines (not given: the manager's 30s; 0: not at all)")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		return a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
			request, err := a.reloadRequest(ctx, pools, flags, args)
			if err != nil {
				return err
			}
			if command.Flags().Changed("drain-deadline") {
				request.DrainDeadline = durationpb.New(deadline)
			}
			return a.reload(ctx, pools, request, detach)
		})
	})
	return command
}

// reloadRequest is what the flags ask for, over the pool's present spec if they say what is to change of it.
func (a *app) reloadRequest(
	ctx context.Context, pools poolv1.PoolManagerServiceClient, flags *spec.ReloadFlags, extra []string,
) (*poolv1.ReloadRequest, error) {
	if !flags.NeedsCurrent() {
		return flags.Reload(a.Stdin, extra, nil)
	}
	asking, cancel := a.untilInterrupted(ctx)
	defer cancel()
	current, err := pools.GetPool(asking, &poolv1.GetPoolRequest{PoolId: flags.Pool.Pool})
	if err != nil {
		return nil, a.explain(asking, err)
	}
	return flags.Reload(a.Stdin, extra, current.GetPool().GetSpec())
}

// reload shows the work and what has come of it.
func (a *app) reload(ctx context.Context, pools poolv1.PoolManagerServiceClient, request *poolv1.ReloadRequest, detach bool) error {
	pool, drained := request.GetSpec().GetPoolId(), ""
	var result *poolv1.ReloadResult
	w := &work[poolv1.ReloadResponse, *poolv1.ReloadResponse]{
		app: a, what: "reload", pool: pool, detach: detach,
		call: func(ctx context.Context) (grpc.ServerStreamingClient[poolv1.ReloadResponse], error) {
			return pools.Reload(ctx, request)
		},
		show: func(progress render.Progress, message *poolv1.ReloadResponse) bool {
			switch event := message.GetEvent().(type) {
			case *poolv1.ReloadResponse_Phase:
				progress.Phase(render.ReloadPhase(event.Phase))
			case *poolv1.ReloadResponse_Progress:
				progress.Event(event.Progress)
			case *poolv1.ReloadResponse_Draining:
				if text := render.DrainProgress(event.Draining); text != drained {
					drained = text
					progress.Note(text)
				}
			case *poolv1.ReloadResponse_Result:
				result = event.Result
			}
			return result != nil
		},
		cancel: func(ctx context.Context) (bool, error) {
			answer, err := pools.CancelReload(ctx, &poolv1.CancelReloadRequest{PoolId: pool})
			return answer.GetCancelled(), err
		},
		cancelCommand: "roundhouse cancel --reload " + pool,
		tooLate:       "too late to cancel: the new engines have taken over",
	}
	if ended, err := w.run(ctx); err != nil || !ended || a.output == render.JSON {
		return err
	}
	if request.GetDryRun() {
		return render.ReloadPlan(a.Stdout, result)
	}
	if err := render.ReloadResult(a.Stdout, result); err != nil {
		return err
	}
	if _, err := io.WriteString(a.Stdout, "\n"); err != nil {
		return err
	}
	return render.Pool(a.Stdout, result.GetPool())
}
