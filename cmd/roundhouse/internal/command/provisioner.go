// SPDX-License-Identifier: Apache-2.0

package command

import (
	"cmp"
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/preflight"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/spec"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// specHelp tells of the ways to name an engine and a model.
const specHelp = `
The engine and the model come from --preset NAME, from -f FILE (JSON or YAML of a %s), or from flags; flags
complete a preset or a file. Everything after -- goes to the engine's command line.`

func newPlan(a *app) *cobra.Command {
	flags := &spec.Flags{}
	command := &cobra.Command{
		Use:     "plan",
		Short:   "Show what prepare would do, and do nothing",
		Long:    "Show the steps that prepare would take, which of them are done already, and what they took the last time.\n" + strings.Replace(specHelp, "%s", "PrepareRequest", 1),
		Example: "  roundhouse plan --preset source\n  roundhouse plan --engine llamacpp --external /opt/llama-server --model file:/models/x.gguf",
		GroupID: groupEngines,
		RunE: a.runs(func(ctx context.Context, args []string) error {
			request, err := flags.Prepare(a.Stdin, args)
			if err != nil {
				return err
			}
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withProvisioner(ctx, func(provisioner provisionerv1.ProvisionerServiceClient) error {
				plan, err := provisioner.Plan(ctx, &provisionerv1.PlanRequest{Spec: request.GetSpec()})
				if err != nil {
					return err
				}
				if a.output == render.JSON {
					return render.Line(a.Stdout, plan)
				}
				return render.Plan(a.Stdout, plan)
			}))
		}),
	}
	flags.Register(command.Flags())
	complete(command, spec.Values())
	return command
}

func newPrepare(a *app) *cobra.Command {
	flags := &spec.Flags{}
	command := &cobra.Command{
		Use:   "prepare",
		Short: "Get or build an engine, stage a model, verify both",
		Long: "Get or build an engine, stage a model, verify both, and answer with what is needed to run them.\n" +
			strings.Replace(specHelp, "%s", "PrepareRequest", 1) +
			"\nCtrl-C leaves; when nobody else waits for it, the provisioner ends the work and keeps what was finished.",
		Example: "  roundhouse prepare --preset quick\n  roundhouse prepare -f request.yaml -o json",
		GroupID: groupEngines,
		RunE: a.runs(func(ctx context.Context, args []string) error {
			request, err := flags.Prepare(a.Stdin, args)
			if err != nil {
				return err
			}
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withProvisioner(ctx, func(provisioner provisionerv1.ProvisionerServiceClient) error {
				return a.prepare(ctx, provisioner, request)
			}))
		}),
	}
	flags.Register(command.Flags())
	complete(command, spec.Values())
	return command
}

// prepare shows the work's progress and its result.
func (a *app) prepare(ctx context.Context, provisioner provisionerv1.ProvisionerServiceClient, request *provisionerv1.PrepareRequest) error {
	stream, err := provisioner.Prepare(ctx, request)
	if err != nil {
		return err
	}
	progress := render.NewProgress(render.ProgressConfig{Out: a.Stderr, Style: style(a.Stderr)})
	defer progress.Close()
	var prepared *enginev1.PreparedEngine
	err = each(stream, func(message *provisionerv1.PrepareResponse) error {
		if message.GetPrepared() != nil {
			prepared = message.GetPrepared()
		}
		if a.output == render.JSON {
			return render.Line(a.Stdout, message)
		}
		progress.Event(message.GetProgress())
		return nil
	})
	progress.Close()
	switch {
	case err != nil:
		return err
	case prepared == nil:
		return noResult("provisioner")
	case a.output == render.JSON:
		return nil
	default:
		return render.Prepared(a.Stdout, prepared)
	}
}

func newPrepared(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "prepared",
		Short:   "List what was prepared, newest first",
		GroupID: groupEngines,
		Args:    cobra.NoArgs,
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withProvisioner(ctx, func(provisioner provisionerv1.ProvisionerServiceClient) error {
				all := &provisionerv1.ListPreparedResponse{}
				for token := ""; ; {
					page, err := provisioner.ListPrepared(ctx, &provisionerv1.ListPreparedRequest{PageToken: token})
					if err != nil {
						return err
					}
					all.Prepared = append(all.Prepared, page.GetPrepared()...)
					if token = page.GetNextPageToken(); token == "" {
						break
					}
				}
				if a.output == render.JSON {
					return render.Line(a.Stdout, all)
				}
				return render.PreparedList(a.Stdout, all.GetPrepared())
			}))
		}),
	}
}

func newPreflight(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "preflight",
		Short: "Show which tools and folders there are, and how to get what is missing",
		Long: "Show which tools, engines and folders there are, with the remedy for each missing one. Fails if no engine\n" +
			"can be prepared at all, or the store cannot be used.",
		GroupID: groupEngines,
		Args:    cobra.NoArgs,
		RunE: a.runs(func(ctx context.Context, _ []string) error {
			ctx, cancel := a.untilInterrupted(ctx)
			defer cancel()
			return a.explained(ctx, a.withProvisioner(ctx, func(provisioner provisionerv1.ProvisionerServiceClient) error {
				report, err := provisioner.Preflight(ctx, &provisionerv1.PreflightRequest{})
				if err != nil {
					return err
				}
				if a.output == render.JSON {
					err = render.Line(a.Stdout, report)
				} else {
					err = render.Preflight(a.Stdout, report)
				}
				return cmp.Or(err, preflight.Machine(report))
			}))
		}),
	}
}

// noResult is a stream that ended well without its result.
func noResult(service string) error {
	return reason.New(reason.Internal, "the "+service+" ended without a result", reason.Remedy("see its log"))
}

// explained is explain for a context that only the command's body has.
func (a *app) explained(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return a.explain(ctx, err)
}
