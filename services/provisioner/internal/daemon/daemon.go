// SPDX-License-Identifier: Apache-2.0

// Package daemon is the program engine-provisioner: it reads the configuration, builds everything and runs it.
//
// On SIGTERM or SIGINT it takes no new calls, lets those in flight go on for 10 s, cancels what is left and ends; no tool
// that it started is left, and cut-off work is resumed when it is asked for again. A second signal ends it at once; the
// tools it had started are killed with it. Several of them may share one store.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os/signal"
	"syscall"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/prepare"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/server"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// Exit codes of the program.
const (
	ExitOK     = 0 // It was asked to end.
	ExitFailed = 1 // It failed while it ran.
	ExitUsage  = 2 // A flag or the configuration is wrong.
	ExitState  = 3 // The state directory cannot be used.
	ExitListen = 4 // An address could not be opened.
)

// Main runs the program with these arguments, its own name not included, and returns its exit code.
func Main(ctx context.Context, version string, args []string, stdout, stderr io.Writer) int {
	config, err := configure(version, args, stdout)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return ExitOK
	case err != nil:
		fmt.Fprintf(stderr, "engine-provisioner: %v\n", err)
		return ExitUsage
	}
	log, err := serverkit.NewLogger(config.LogLevel, zapcore.AddSync(stderr))
	if err != nil {
		fmt.Fprintf(stderr, "engine-provisioner: %v\n", err)
		return ExitUsage
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	context.AfterFunc(ctx, stop) // A second signal ends the program as if it were not caught.
	log.Info("starting", zap.String("version", version), zap.Strings("listen", config.Listen), zap.String("state_dir", config.StateDir),
		zap.Strings("roots", config.Roots))
	if err := run(ctx, config, log); err != nil {
		log.Error("ended with an error", zap.Error(err))
		return exitCode(err)
	}
	log.Info("ended")
	return ExitOK
}

// stateError marks what makes the state directory unusable.
type stateError struct{ error }

func (e stateError) Unwrap() error { return e.error }

func exitCode(err error) int {
	if _, ok := errors.AsType[*serverkit.ListenError](err); ok {
		return ExitListen
	}
	if _, ok := errors.AsType[stateError](err); ok {
		return ExitState
	}
	if reason.Of(err) == reason.InvalidParams {
		return ExitUsage
	}
	return ExitFailed
}

// run builds everything and serves until ctx ends.
func run(ctx context.Context, config Config, log *zap.Logger) (err error) {
	kept, err := store.Open(store.Config{Root: config.StateDir})
	if err != nil {
		return stateError{err}
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	parts, err := newParts(config, kept, log)
	if err != nil {
		return err
	}
	service, err := server.New(parts.preparer, parts.checker)
	if err != nil {
		return err
	}
	listens := make([]serverkit.Listen, len(config.Listen))
	for i, address := range config.Listen {
		if listens[i], err = serverkit.ParseListen(address); err != nil {
			return err
		}
	}
	kit, err := serverkit.New(serverkit.Config{
		Logger:  log,
		Listens: listens,
		Services: []serverkit.Registration{func(r grpc.ServiceRegistrar) {
			provisionerv1.RegisterProvisionerServiceServer(r, service)
		}},
	})
	if err != nil {
		return err
	}
	return serve(ctx, kit, parts.preparer)
}

// serve runs the server and, for as long as it has calls, the work that they wait for.
func serve(ctx context.Context, kit *serverkit.Server, preparer *prepare.Service) error {
	working, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	worked := make(chan error, 1)
	go func() { worked <- preparer.Run(working) }()
	err := kit.Run(ctx)
	stopWork()
	return errors.Join(err, <-worked)
}
