// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func newStarts(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "starts NAME",
		Short: "Show how the starts of a pool's engines ended",
		Long: "Show how the starts of a pool's engines ended, newest first: why each was started, when it got ready, how it ended, and\n" +
			"who ended it. An engine that runs is not among them yet.",
		GroupID:           groupPools,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePools(1),
		RunE: a.runs(func(ctx context.Context, args []string) error {
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
				answer, err := pools.ListStarts(ctx, &poolv1.ListStartsRequest{PoolId: args[0]})
				if err != nil {
					return err
				}
				if a.output == render.JSON {
					return render.Line(a.Stdout, answer)
				}
				return render.Starts(a.Stdout, answer.GetStarts())
			}))
		}),
	}
}

func newReset(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reset NAME",
		Short: "Forget that a pool's engines have failed, and start them now",
		Long: "Close every breaker of a pool and start the replicas that wait, or were given up, at once. It does not wait for them;\n" +
			"see them with \"roundhouse watch\".",
		GroupID:           groupPools,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePools(1),
		RunE: a.runs(func(ctx context.Context, args []string) error {
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
				answer, err := pools.ResetBreaker(ctx, &poolv1.ResetBreakerRequest{PoolId: args[0]})
				if err != nil {
					return err
				}
				text := "no replica of " + args[0] + " was waiting; nothing is started"
				if n := answer.GetReplicas(); n > 0 {
					text = fmt.Sprintf("%d of the replicas of %s are being started", n, args[0])
				}
				return a.answer(answer, text)
			}))
		}),
	}
}
