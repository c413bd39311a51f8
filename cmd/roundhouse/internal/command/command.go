// SPDX-License-Identifier: Apache-2.0

// Package command is the command line: what can be typed, whom it asks, and the exit code that it ends with.
//
// Answers go to standard output, progress and notes to standard error; with -o json the events of a stream are answers
// too, every answer is one line, and an error is one JSON object on standard error. A command whose answer could not be
// written fails. Each command makes its own connections and closes them. A
// command that is interrupted says whether the work that it had asked for goes on. Nothing is kept between commands.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
)

// Env is the world of one command.
type Env struct {
	// Stdin is read where a file is "-".
	Stdin io.Reader
	// Stdout takes answers.
	Stdout io.Writer
	// Stderr takes progress, notes and errors.
	Stderr io.Writer
	// Getenv reads the environment.
	Getenv func(string) string
	// Interrupts brings a value for each Ctrl-C or other request to end.
	Interrupts <-chan os.Signal
	// Version is the program's version.
	Version string
}

// System is the world of this process. From then on, signals that ask it to end arrive as Interrupts.
func System(version string) Env {
	interrupts := make(chan os.Signal, 8) // more than anybody types
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Getenv: os.Getenv, Interrupts: interrupts, Version: version,
	}
}

// Main runs the command that args name and answers with its exit code.
func Main(ctx context.Context, args []string, env Env) int {
	out := newStdout(env.Stdout)
	a := &app{Env: env, output: render.Text, out: out}
	a.Stdout = out
	root := newRoot(a) //nolint:contextcheck // a command gets its context when it runs
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(out)
	root.SetErr(env.Stderr)
	command, err := root.ExecuteContextC(ctx)
	if err != nil && !isRun(err) {
		err = usage(command, err)
		a.output = formatAsked(args)
	}
	if lost := out.err(); lost != nil {
		err = lost
	}
	if err == nil {
		return codeOK
	}
	code, word := outcome(err)
	_ = render.Failure(env.Stderr, a.output, word, err) // nowhere left to complain
	return code
}

// isRun tells an error of a command that ran from one that the parser found before.
func isRun(err error) bool {
	_, ran := errors.AsType[*commandError](err)
	return ran
}

// app is what all commands share.
type app struct {
	Env

	provisionerTarget string
	poolManagerTarget string
	output            render.Format
	timeout           time.Duration
	out               *stdout // is Stdout
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "roundhouse",
		Short: "Prepare, start, watch and drain LLM engines on this machine",
		Long: `roundhouse talks to the two services of Roundhouse: the provisioner, which gets or builds engines and stages
models, and the pool manager, which runs them.

Start with "roundhouse demo". Exit codes: "roundhouse help exit-codes".

With -o json standard output has one JSON object a line: one for each event of prepare, preload, reload, drain, watch and
logs, one in all from any other command. An error is one JSON object on standard error, whatever was wrong. Only the scripts of
"roundhouse completion" stay as they are.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
	}
	showVersion := root.Flags().Bool("version", false, "show the program's version")
	root.RunE = a.runs(func(context.Context, []string) error {
		if *showVersion {
			return a.version()
		}
		return root.Help()
	})
	a.helpInJSON(root)
	flags := root.PersistentFlags()
	flags.StringVar(&a.provisionerTarget, "provisioner", a.target(provisionerService()),
		"`ADDRESS` of the provisioner: unix:///PATH or 127.0.0.1:PORT [$ROUNDHOUSE_PROVISIONER]")
	flags.StringVar(&a.poolManagerTarget, "pool-manager", a.target(poolManagerService()),
		"`ADDRESS` of the pool manager: unix:///PATH or 127.0.0.1:PORT [$ROUNDHOUSE_POOL_MANAGER]")
	flags.VarP(&a.output, "output", "o", "how to answer: text or json, which is one object a line, and one for an error")
	flags.DurationVar(&a.timeout, "timeout", 0, "give up after `TIME`, such as 30s (0: never)")
	root.AddGroup(&cobra.Group{ID: groupEngines, Title: "Engines and models:"},
		&cobra.Group{ID: groupPools, Title: "Pools:"})
	root.AddCommand(
		newPlan(a), newPrepare(a), newPrepared(a), newPreflight(a),
		newPreload(a), newReload(a), newCancel(a), newDrain(a), newReset(a), newDelete(a), newWatch(a), newPools(a), newStarts(a), newLogs(a),
		newDemo(a), newDemoKeeper(a), newVersion(a), newExitCodes(),
	)
	complete(root, map[string][]string{"output": {string(render.Text), string(render.JSON)}})
	return root
}

// The groups of the help.
const (
	groupEngines = "engines"
	groupPools   = "pools"
)

// runs makes a command's body: it has the command line's context, limited by --timeout, and errors with exit codes.
func (a *app) runs(body func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(command *cobra.Command, args []string) error {
		ctx := command.Context()
		if a.timeout > 0 {
			// A deadline of the context would be the service's too, which may see it pass first and then says only that the call
			// was cancelled.
			var cancel context.CancelCauseFunc
			ctx, cancel = context.WithCancelCause(ctx)
			defer cancel(nil)
			timer := time.AfterFunc(a.timeout, func() { cancel(errTimeout) })
			defer timer.Stop()
		}
		if err := body(ctx, args); err != nil {
			return &commandError{err: a.explain(ctx, err)}
		}
		return nil
	}
}

// untilInterrupted is ctx until the first interrupt or the loss of standard output, which becomes its cause.
func (a *app) untilInterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { // ended by the cancel that the caller makes
		select {
		case <-a.Interrupts:
			cancel(errInterrupted)
		case <-a.out.lost:
			cancel(errOutput)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(context.Canceled) }
}

// helpInJSON makes the help of root and all below it an answer like others: an object with -o json.
func (a *app) helpInJSON(root *cobra.Command) {
	inText := root.HelpFunc()
	root.SetHelpFunc(func(command *cobra.Command, args []string) {
		if a.output != render.JSON {
			inText(command, args)
			return
		}
		var text strings.Builder
		command.SetOut(&text)
		inText(command, args)
		_ = json.NewEncoder(a.Stdout).Encode(help{text.String()}) // Stdout remembers a failure
	})
}

// help is a command's help in JSON.
type help struct {
	Help string `json:"help"`
}

// complete offers the values of flags, by the flags' names.
func complete(command *cobra.Command, values map[string][]string) {
	for flag, words := range values {
		completeWith(command, flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
	}
}

// completeWith offers what words says for a flag.
func completeWith(command *cobra.Command, flag string, words cobra.CompletionFunc) {
	if err := command.RegisterFlagCompletionFunc(flag, words); err != nil {
		panic(err) // a flag that is not there: every test finds it
	}
}

// minColumns is the narrowest terminal that bars are drawn on. One that does not tell its width has none.
const minColumns = 60

// style is how progress is shown on w.
func style(w io.Writer) render.Style {
	file, ok := w.(*os.File)
	if !ok {
		return render.Plain
	}
	if columns, _, err := term.GetSize(int(file.Fd())); err != nil || columns < minColumns {
		return render.Plain
	}
	return render.Bars
}

// note says something beside the answer. It says nothing with -o json.
func (a *app) note(text string) {
	if a.output == render.Text {
		_, _ = io.WriteString(a.Stderr, text+"\n") // a lost note changes nothing
	}
}
