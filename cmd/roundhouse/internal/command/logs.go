// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// logsFlags are what logs takes.
type logsFlags struct {
	replica uint32
	follow  bool
	tail    uint32
}

func newLogs(a *app) *cobra.Command {
	flags := &logsFlags{}
	command := &cobra.Command{
		Use:               "logs NAME",
		Short:             "Show the output of a pool's engine",
		Long:              "Show the output of the newest process of one replica. With -f it goes on until the process has ended or Ctrl-C.",
		GroupID:           groupPools,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePools(1),
	}
	command.Flags().Uint32Var(&flags.replica, "replica", 0, "show replica `INDEX`")
	command.Flags().BoolVarP(&flags.follow, "follow", "f", false, "go on with what comes")
	command.Flags().Uint32Var(&flags.tail, "tail", 0, "begin with the last so many `LINES` (not given: with the oldest that are kept)")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		request := &poolv1.LogsRequest{PoolId: args[0], Replica: flags.replica, Follow: flags.follow}
		if command.Flags().Changed("tail") {
			request.Start = &poolv1.LogsRequest_TailLines{TailLines: flags.tail}
		}
		ctx, cancel := a.untilInterrupted(ctx)
		defer cancel()
		err := a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error { return a.logs(ctx, pools, request) })
		if errors.Is(context.Cause(ctx), errInterrupted) {
			return nil // the way to leave
		}
		return a.explained(ctx, err)
	})
	return command
}

func (a *app) logs(ctx context.Context, pools poolv1.PoolManagerServiceClient, request *poolv1.LogsRequest) error {
	stream, err := pools.Logs(ctx, request)
	if err != nil {
		return err
	}
	return each(stream, func(message *poolv1.LogsResponse) error {
		if a.output == render.JSON {
			return render.Line(a.Stdout, message)
		}
		if message.GetGap() {
			a.note("[the log was trimmed: something may be missing here]")
		}
		_, err := a.Stdout.Write(message.GetData())
		return err
	})
}
