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
	node     bool
	parallel uint32
}

func newDrain(a *app) *cobra.Command {
	flags := &drainFlags{}
	command := &cobra.Command{
		Use:   "drain NAME | drain --node",
		Short: "Let a pool, or all of them, end what they have, then stop them",
		Long: "Take a pool out of service: wait for its requests in flight until the deadline, then stop every process of it. With\n" +
			"--node that is done to every pool, a few at a time; one that cannot be stopped does not stop the others.\n" +
			"Ctrl-C only leaves: the drain goes on.",
		Example:           "  roundhouse drain chat --deadline 2m\n  roundhouse drain --node --parallel 4",
		GroupID:           groupPools,
		Args:              flags.args,
		ValidArgsFunction: a.completePools(1),
	}
	command.Flags().DurationVar(&flags.deadline, "deadline", 0, "wait for `TIME` for requests in flight (not given: the manager's 30s; 0: not at all)")
	command.Flags().BoolVar(&flags.giveUp, "give-up", false, "at the deadline leave the engines running, instead of cutting what is left")
	command.Flags().BoolVar(&flags.node, "node", false, "drain every pool")
	command.Flags().Uint32Var(&flags.parallel, "parallel", 0, "with --node: drain `N` pools at once, up to 64 (0: 8)")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		var deadline *durationpb.Duration
		if command.Flags().Changed("deadline") {
			deadline = durationpb.New(flags.deadline)
		}
		what, body := flags.drain(a, args, deadline)
		ctx, cancel := a.untilInterrupted(ctx)
		defer cancel()
		err := a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error { return body(ctx, pools) })
		if err != nil && ctx.Err() != nil {
			a.note("the drain of " + what + " goes on")
		}
		return a.explained(ctx, err)
	})
	return command
}

// args wants one name, or --node and none.
func (f *drainFlags) args(command *cobra.Command, args []string) error {
	switch {
	case f.node:
		return cobra.NoArgs(command, args)
	case f.parallel != 0:
		return errors.New("--parallel has no meaning without --node")
	default:
		return cobra.ExactArgs(1)(command, args)
	}
}

// drain is the call that the flags ask for, and what it drains.
func (f *drainFlags) drain(
	a *app, args []string, deadline *durationpb.Duration,
) (what string, body func(context.Context, poolv1.PoolManagerServiceClient) error) {
	action := poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_UNSPECIFIED
	if f.giveUp {
		action = poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP
	}
	if f.node {
		request := &poolv1.DrainNodeRequest{Deadline: deadline, OnDeadline: action, Parallel: f.parallel}
		return "the node", func(ctx context.Context, pools poolv1.PoolManagerServiceClient) error {
			return a.drainNode(ctx, pools, request)
		}
	}
	request := &poolv1.DrainRequest{PoolId: args[0], Deadline: deadline, OnDeadline: action}
	return args[0], func(ctx context.Context, pools poolv1.PoolManagerServiceClient) error {
		return a.drain(ctx, pools, request)
	}
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
		return gaveUp()
	}
	return nil
}

// gaveUp is a drain's end that leaves engines running.
func gaveUp() error {
	return &exitError{codeTimedOut, "GAVE_UP", reason.New(reason.PoolUnready,
		"requests were left at the deadline and the engines run on, as asked",
		reason.Remedy("give a longer --deadline, or leave out --give-up"))}
}

// drainNode shows how the drain of each pool ended, and the sum.
func (a *app) drainNode(ctx context.Context, pools poolv1.PoolManagerServiceClient, request *poolv1.DrainNodeRequest) error {
	stream, err := pools.DrainNode(ctx, request)
	if err != nil {
		return err
	}
	var result *poolv1.DrainNodeResult
	err = each(stream, func(message *poolv1.DrainNodeResponse) error {
		result = message.GetResult()
		switch {
		case a.output == render.JSON:
			return render.Line(a.Stdout, message)
		case result != nil:
			_, err := io.WriteString(a.Stdout, render.DrainNodeResult(result)+"\n")
			return err
		default:
			_, err := io.WriteString(a.Stdout, render.PoolDrained(message.GetPool())+"\n")
			return err
		}
	})
	switch {
	case err != nil:
		return err
	case result == nil:
		return noResult("pool manager")
	case result.GetGaveUp() > 0:
		return gaveUp()
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
