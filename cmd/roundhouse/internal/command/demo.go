// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/demo"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/spec"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

func newDemo(a *app) *cobra.Command {
	config := demo.Config{}
	command := &cobra.Command{
		Use:   "demo",
		Short: "Show everything once, with a real engine and a small model",
		Long: `Start both services in a fresh folder, prepare a real engine and a small model, start it, prove it ready, stream an
answer, drain it, and prove that nothing is left. Only the store stays, so that the next run takes seconds.

The quick engine is prebuilt; the source engine is compiled here, which takes minutes the first time.
Ctrl-C at any time clears up as well; the second one kills what is left at once.`,
		Example: "  roundhouse demo\n  roundhouse demo --engine source",
		Args:    cobra.NoArgs,
	}
	command.Flags().StringVar(&config.Engine, "engine", "quick", "show the engine `NAME`: quick or source")
	command.Flags().StringVar(&config.CacheDir, "cache", "", "keep the store in `DIR` (empty: roundhouse/store in the user's cache folder)")
	command.Flags().BoolVar(&config.KeepFiles, "keep", false, "keep the folder with the logs and the state of both services")
	complete(command, map[string][]string{"engine": spec.PresetNames()})
	command.RunE = a.runs(func(ctx context.Context, _ []string) error {
		prepared, err := a.demoConfig(config)
		if err != nil {
			return err
		}
		shown, err := demo.New(prepared)
		if err != nil {
			return err
		}
		return a.demo(ctx, shown)
	})
	return command
}

// newDemoKeeper is the helper that a demo starts beside itself. It is not for people.
func newDemoKeeper(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    demo.KeeperCommand,
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   a.runs(func(context.Context, []string) error { return demo.Keep(a.Stdin) }),
	}
}

// demoConfig fills in what the flags leave open.
func (a *app) demoConfig(config demo.Config) (demo.Config, error) {
	if config.CacheDir == "" {
		dir, err := a.cacheDir()
		if err != nil {
			return config, err
		}
		config.CacheDir = dir
	}
	dir, err := filepath.Abs(config.CacheDir)
	if err != nil {
		return config, reason.New(reason.InvalidParams, "cannot be used", reason.Field("--cache"),
			reason.Remedy("give an absolute path"), reason.Cause(err))
	}
	config.CacheDir = dir
	program, err := os.Executable()
	if err != nil {
		return config, reason.New(reason.Internal, "this program does not know where it is", reason.Cause(err))
	}
	if resolved, err := filepath.EvalSymlinks(program); err == nil {
		program = resolved
	}
	config.BinDir = filepath.Dir(program)
	switch config.Style = style(a.out.to); {
	case a.output == render.JSON:
		config.Out, config.Style = io.Discard, render.Plain
	case config.Style == render.Bars:
		config.Out = a.out.to // bars want the terminal itself
	default:
		config.Out = a.Stdout
	}
	return config, nil
}

// cacheDir is where the store is kept between runs.
func (a *app) cacheDir() (string, error) {
	base := a.Getenv("XDG_CACHE_HOME")
	if base == "" {
		home := a.Getenv("HOME")
		if home == "" {
			return "", reason.New(reason.InvalidParams, "there is no cache folder: neither XDG_CACHE_HOME nor HOME is set",
				reason.Field("--cache"), reason.Remedy("give --cache DIR"))
		}
		base = filepath.Join(home, ".cache")
	}
	return filepath.Join(base, "roundhouse", "store"), nil
}

// demo runs the show. The first interrupt ends it and starts the clean-up; the second cuts the clean-up short.
func (a *app) demo(ctx context.Context, shown *demo.Demo) error {
	playing, stopPlaying := a.untilInterrupted(ctx)
	defer stopPlaying()
	cleanup, stopCleanup := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCleanup()
	go func() { // ended by stopCleanup
		select {
		case <-playing.Done():
		case <-cleanup.Done():
			return
		}
		select {
		case <-a.Interrupts:
			stopCleanup()
		case <-cleanup.Done():
		}
	}()
	report, err := shown.Run(playing, cleanup)
	if a.output == render.JSON {
		if writeErr := report.WriteJSON(a.Stdout); writeErr != nil {
			return errors.Join(err, writeErr)
		}
	}
	return a.explained(playing, err)
}
