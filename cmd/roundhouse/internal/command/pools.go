// SPDX-License-Identifier: Apache-2.0

package command

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/pkg/client"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func newPools(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "pools [NAME]",
		Short:             "List pools, or show one with its replicas",
		GroupID:           groupPools,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completePools(1),
		RunE: a.runs(func(ctx context.Context, args []string) error {
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
				if len(args) == 1 {
					return a.showPool(ctx, pools, args[0])
				}
				all, err := allPools(ctx, pools)
				if err != nil {
					return err
				}
				if a.output == render.JSON {
					return render.Line(a.Stdout, &poolv1.ListPoolsResponse{Pools: all})
				}
				return render.Pools(a.Stdout, all)
			}))
		}),
	}
}

func (a *app) showPool(ctx context.Context, pools poolv1.PoolManagerServiceClient, name string) error {
	got, err := pools.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: name})
	if err != nil {
		return err
	}
	if a.output == render.JSON {
		return render.Line(a.Stdout, got.GetPool())
	}
	return render.Pool(a.Stdout, got.GetPool())
}

// allPools reads every page.
func allPools(ctx context.Context, pools poolv1.PoolManagerServiceClient) ([]*poolv1.Pool, error) {
	var all []*poolv1.Pool
	for token := ""; ; {
		page, err := pools.ListPools(ctx, &poolv1.ListPoolsRequest{PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, page.GetPools()...)
		if token = page.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

// completionTimeout is how long a shell may wait for the names of pools.
const completionTimeout = 500 * time.Millisecond

// completePools offers the names of pools for the first most arguments.
func (a *app) completePools(most int) cobra.CompletionFunc {
	return func(command *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(command.Context(), completionTimeout)
		defer cancel()
		var names []cobra.Completion
		_ = a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error { // no names is no completion
			all, err := allPools(ctx, pools)
			for _, pool := range all {
				names = append(names, cobra.CompletionWithDesc(pool.GetPoolId(), render.State(pool.GetState())))
			}
			return err
		})
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func newWatch(a *app) *cobra.Command {
	resume := ""
	command := &cobra.Command{
		Use:   "watch [NAME...]",
		Short: "Show all pools, or those named, and every change",
		Long: `Show all pools, or those named, and then every change, until Ctrl-C. When the pool manager goes away it is waited for,
and nothing is missed.

With -o json each line is one WatchResponse: upsert, deleted, synced, reset or heartbeat. Its resumeToken, given to --resume
with the same names, goes on behind it; while it is empty there is nothing yet to go on from. At a reset forget all that came
before.`,
		Example:           "  roundhouse watch\n  roundhouse watch chat -o json --resume TOKEN",
		GroupID:           groupPools,
		ValidArgsFunction: a.completePools(completeAll),
	}
	command.Flags().StringVar(&resume, "resume", "", "go on behind the message that had the resumeToken `TOKEN`")
	command.RunE = a.runs(func(ctx context.Context, args []string) error {
		ctx, cancel := a.untilInterrupted(ctx)
		defer cancel()
		err := a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
			// One call that is not waited for tells a wrong address from a manager that comes back.
			if _, err := pools.ListPools(ctx, &poolv1.ListPoolsRequest{PageSize: 1}); err != nil {
				return err
			}
			return client.Watch(ctx, pools, args, a.showChange, client.ResumeFrom(resume))
		})
		if errors.Is(err, errInterrupted) || errors.Is(context.Cause(ctx), errInterrupted) {
			return nil // the way to leave
		}
		return a.explained(ctx, err)
	})
	return command
}

// completeAll is more names than anybody types.
const completeAll = 1000

// showChange prints one change.
func (a *app) showChange(event client.Event) error {
	message := &poolv1.WatchResponse{ResumeToken: event.Token}
	switch event.Kind {
	case client.KindUpsert:
		message.Event = &poolv1.WatchResponse_Upsert{Upsert: event.Pool}
	case client.KindDeleted:
		message.Event = &poolv1.WatchResponse_Deleted{Deleted: &poolv1.Deleted{PoolId: event.PoolID}}
	case client.KindSynced:
		message.Event = &poolv1.WatchResponse_Synced{Synced: &poolv1.Synced{}}
	case client.KindReset:
		message.Event = &poolv1.WatchResponse_Reset_{Reset_: &poolv1.Reset{}}
	case client.KindHeartbeat:
		message.Event = &poolv1.WatchResponse_Heartbeat{Heartbeat: &poolv1.Heartbeat{}}
	case client.KindInterrupted:
		a.note(fmt.Sprintf("interrupted, trying again: %v", event.Err))
		return nil
	}
	return render.Change(a.Stdout, a.output, time.Now(), message)
}

func newDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete NAME...",
		Short:             "Forget pools that are stopped or failed, with their logs",
		GroupID:           groupPools,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completePools(completeAll),
		RunE: a.runs(func(ctx context.Context, args []string) error {
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withPools(ctx, func(pools poolv1.PoolManagerServiceClient) error {
				return a.delete(ctx, pools, args)
			}))
		}),
	}
}

// delete forgets pools in their order, up to the first that cannot be. It always answers which.
func (a *app) delete(ctx context.Context, pools poolv1.PoolManagerServiceClient, names []string) error {
	gone := deleted{Deleted: []string{}}
	var failure error
	for _, name := range names {
		if _, failure = pools.DeletePool(ctx, &poolv1.DeletePoolRequest{PoolId: name}); failure != nil {
			break
		}
		gone.Deleted = append(gone.Deleted, name)
		if a.output == render.Text {
			_, _ = fmt.Fprintln(a.Stdout, name+" is deleted") // Stdout remembers a failure
		}
	}
	if a.output == render.JSON {
		return cmp.Or(failure, json.NewEncoder(a.Stdout).Encode(gone))
	}
	return failure
}

// deleted is the answer of delete in JSON.
type deleted struct {
	Deleted []string `json:"deleted"`
}
