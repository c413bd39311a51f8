// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"

	"github.com/spf13/cobra"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func newCancel(a *app) *cobra.Command {
	reload := false
	command := &cobra.Command{
		Use:               "cancel NAME",
		Short:             "Stop a preload or a reload that is under way, and undo it",
		Long:              "Stop a preload, or with --reload a reload, that is under way, and return when nothing of it is left.",
		GroupID:           groupPools,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePools(1),
	}
	command.Flags().BoolVar(&reload, "reload", false, "stop a reload, and let the old engines serve on")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		cancelNow := a.cancelPreload
		if reload {
			cancelNow = a.cancelReload
		}
		ctx, cancel := a.untilInterrupted(ctx)
		defer cancel()
		return a.explained(ctx, a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
			return cancelNow(ctx, pools, args[0])
		}))
	})
	return command
}

func (a *app) cancelPreload(ctx context.Context, pools poolv1.PoolManagerServiceClient, pool string) error {
	answer, err := pools.CancelPreload(ctx, &poolv1.CancelPreloadRequest{PoolId: pool})
	if err != nil {
		return err
	}
	text := pool + " was not loading; nothing is changed"
	if answer.GetCancelled() {
		text = "the preload of " + pool + " is cancelled; nothing of it is left"
	}
	return a.answer(answer, text)
}

func (a *app) cancelReload(ctx context.Context, pools poolv1.PoolManagerServiceClient, pool string) error {
	answer, err := pools.CancelReload(ctx, &poolv1.CancelReloadRequest{PoolId: pool})
	if err != nil {
		return err
	}
	text := pool + " was not reloading, or its new engines have taken over; nothing is changed"
	if answer.GetCancelled() {
		text = "the reload of " + pool + " is cancelled; the old engines serve on"
	}
	return a.answer(answer, text)
}
