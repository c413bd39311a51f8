// SPDX-License-Identifier: Apache-2.0

// Package daemonkit is what the programs engine-provisioner and pool-managerd have in common around their services: flags,
// a strict configuration file, where things are by default, signals, exit codes, what systemd is told, and the listener for
// metrics.
//
// Nothing here knows a service, and nothing is kept. A daemon reads its CommandLine and its file, checks them with the
// Check functions, and hands its life to Run; if it does not get so far, Refuse says why. While it lives it calls NotifyReady
// when it serves, NotifyStopping when it begins to end, and runs a Watchdog in between.
package daemonkit

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
)

// Exit codes of a daemon.
const (
	ExitOK     = 0 // It was asked to end, and has left nothing behind.
	ExitFailed = 1 // It failed while it ran or ended.
	ExitUsage  = 2 // A flag or the configuration is wrong.
	ExitState  = 3 // The state directory cannot be used, or is another's.
	ExitListen = 4 // An address could not be opened.
)

// StateError is an error that makes the state directory unusable.
type StateError struct{ Err error }

// Error is that of Err.
func (e *StateError) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *StateError) Unwrap() error { return e.Err }

// Refuse says on stderr why a daemon does not start, and returns its exit code. An err that is flag.ErrHelp was an answer,
// not a failure: then nothing is said.
func Refuse(name string, err error, stderr io.Writer) int {
	if errors.Is(err, flag.ErrHelp) {
		return ExitOK
	}
	fmt.Fprintf(stderr, "%s: %v\n", name, err)
	return ExitUsage
}

// Run is the life of a daemon: it calls serve with a logger of the level that writes to stderr, and returns the exit code
// that is due to its error. The context of serve ends with ctx and at SIGTERM or SIGINT; a signal after that ends the program
// as if it were not caught.
func Run(ctx context.Context, name, level string, stderr io.Writer, serve func(context.Context, *zap.Logger) error) int {
	log, err := serverkit.NewLogger(level, zapcore.AddSync(stderr))
	if err != nil {
		return Refuse(name, err, stderr)
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	if err := serve(ctx, log); err != nil {
		log.Error("ended with an error", zap.Error(err))
		return exitCode(err)
	}
	log.Info("ended")
	return ExitOK
}

// untilSignal returns a context that ends with ctx and at SIGTERM or SIGINT, when signals are not caught any more already.
// The function gives up what was taken and returns when signals are not caught.
func untilSignal(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals, ended := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		defer close(ended)
		select {
		case <-signals:
		case <-ctx.Done():
		}
		signal.Stop(signals)
		cancel()
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}

func exitCode(err error) int {
	if _, ok := errors.AsType[*serverkit.ListenError](err); ok {
		return ExitListen
	}
	if _, ok := errors.AsType[*StateError](err); ok {
		return ExitState
	}
	if reason.Of(err) == reason.InvalidParams {
		return ExitUsage
	}
	return ExitFailed
}
