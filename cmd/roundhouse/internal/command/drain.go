// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// drainFlags are what drain takes.
type drainFlags struct {
	deadline time.Duration
	giveUp   bool
}

func newDrain(a *app) *cobra.Command {
	flags := &drainFlags{}
	command := &cobra.Command{
		Use:   "drain NAME",
		Short: "Let a pool end what it has, then stop it",
		Long: "Take a pool out of service: wait for its requests in flight until the deadline, then stop every process of it.\n" +
			"Ctrl-C only leaves: the drain goes on.",
		GroupID:           groupPools,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePools(1),
	}
	command.Flags().DurationVar(&flags.deadline, "deadline", 0, "wait for `TIME` for requests in flight (not given: the manager's 30s; 0: not at all)")
	command.Flags().BoolVar(&flags.giveUp, "give-up", false, "at the deadline leave the engines running, instead of cutting what is left")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		request := &poolv1.DrainRequest{PoolId: args[0]}
		if command.Flags().Changed("deadline") {
			request.Deadline = durationpb.New(flags.deadline)
		}
		if flags.giveUp {
			request.OnDeadline = poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP
		}
		ctx, cancel := a.untilInterrupted(ctx)
		defer cancel()
		err := a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error { return a.drain(ctx, pools, request) })
		if err != nil && ctx.Err() != nil {
			a.note("the drain of " + args[0] + " goes on")
		}
		return a.explained(ctx, err)
	})
	return command
}

// drain shows where the drain stands, and how it ended.
func (a *app) drain(ctx context.Context, pools poolv1.PoolManagerServiceClient, request *poolv1.DrainRequest) error {
	stream, err := pools.Drain(ctx, request)
	if err != nil {
		return err
	}
	var result *poolv1.DrainResult
	last := ""
	err = each(stream, func(message *poolv1.DrainResponse) error {
		result = message.GetResult()
		if a.output == render.JSON {
			return render.Line(a.Stdout, message)
		}
		if result != nil {
			_, err := io.WriteString(a.Stdout, render.DrainResult(result)+"\n")
			return err
		}
		if text := render.DrainProgress(message.GetProgress()); text != last {
			last = text
			a.note(text)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case result == nil:
		return noResult("pool manager")
	case result.GetGaveUp():
		return &exitError{codeTimedOut, "GAVE_UP", reason.New(reason.PoolUnready,
			"requests were left at the deadline and the engines run on, as asked",
			reason.Remedy("give a longer --deadline, or leave out --give-up"))}
	}
	return nil
}

// answer gives a call's answer: as it is in JSON, in words otherwise.
func (a *app) answer(message proto.Message, text string) error {
	if a.output == render.JSON {
		return render.Line(a.Stdout, message)
	}
	_, err := io.WriteString(a.Stdout, text+"\n")
	return err
}

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
