// SPDX-License-Identifier: Apache-2.0

// Package daemon is the program engine-provisioner: it reads the configuration, builds everything and runs it.
//
// On SIGTERM or SIGINT it takes no new calls and cancels all work at once: those who wait for it get SHUTTING_DOWN within a
// second, and it ends when no tool that it started is left, which takes the tools' own 5 s at most unless they have to be
// killed. Cut-off work is resumed when it is asked for again. A second signal ends it at once; the tools it had started are
// killed with it. Several of them may share one store.
package daemon

import (
	"context"
	"errors"
	"io"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/prepare"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/server"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// name is the program's.
const name = "engine-provisioner"

// stopGrace is for answers that are ready: the work that other calls wait for is cancelled when it begins.
const stopGrace = time.Second

// Main runs the program with these arguments, its own name not included, and returns its exit code, one of daemonkit.
func Main(ctx context.Context, version string, args []string, stdout, stderr io.Writer) int {
	config, err := configure(version, args, stdout)
	if err != nil {
		return daemonkit.Refuse(name, err, stderr)
	}
	return daemonkit.Run(ctx, name, config.LogLevel, stderr, func(ctx context.Context, log *zap.Logger) error {
		log.Info("starting", zap.String("version", version), zap.Strings("listen", config.Listen), zap.String("state_dir", config.StateDir),
			zap.Strings("roots", config.Roots))
		return run(ctx, config, log)
	})
}

// run builds everything and serves until ctx ends.
func run(ctx context.Context, config Config, log *zap.Logger) (err error) {
	kept, err := store.Open(store.Config{Root: config.StateDir})
	if err != nil {
		return &daemonkit.StateError{Err: err}
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
	listens, err := daemonkit.ParseListens(config.Listen)
	if err != nil {
		return err
	}
	kit, err := serverkit.New(serverkit.Config{
		Logger:    log,
		Listens:   listens,
		StopGrace: stopGrace,
		Services: []serverkit.Registration{func(r grpc.ServiceRegistrar) {
			provisionerv1.RegisterProvisionerServiceServer(r, service)
		}},
	})
	if err != nil {
		return err
	}
	return serve(ctx, kit, parts.preparer, log)
}

// serve runs the server and the work that its calls wait for; both end with ctx, and the work with the server.
func serve(ctx context.Context, kit *serverkit.Server, preparer *prepare.Service, log *zap.Logger) error {
	working, stopWork := context.WithCancel(ctx)
	defer stopWork()
	worked := make(chan error, 1)
	go func() { worked <- preparer.Run(working) }()
	notified := make(chan error, 1)
	go func() { notified <- notify(working, kit, log) }()
	err := kit.Run(ctx)
	stopWork()
	return errors.Join(err, <-worked, <-notified)
}

// notify tells systemd that the daemon serves, that it lives, and that it ends with ctx.
func notify(ctx context.Context, kit *serverkit.Server, log *zap.Logger) error {
	select {
	case <-kit.Ready():
	case <-ctx.Done():
		return nil
	}
	alive := func() error { return nil } // That it can be asked is what is asked.
	err := errors.Join(daemonkit.NotifyReady("serving"), daemonkit.Watchdog(ctx, log, alive))
	<-ctx.Done()
	return errors.Join(err, daemonkit.NotifyStopping("ending the work under way"))
}
