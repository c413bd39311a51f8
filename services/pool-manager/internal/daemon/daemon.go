// SPDX-License-Identifier: Apache-2.0

// Package daemon is the program pool-managerd: it reads the configuration, builds everything and runs it.
//
// On SIGTERM or SIGINT it drains every pool, which is seen by its clients, and then ends; no engine is left. A second
// signal ends it at once and leaves the engines running, for the next start to end.
package daemon

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/provision"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/server"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// name is the program's.
const name = "pool-managerd"

// reclaimLimit is how long the engines of an earlier manager may take to end before the start is given up.
const reclaimLimit = time.Minute

// closeLimit is how long the drain of the node may take beyond its deadline: stop protocols, KILL, and the proof.
const closeLimit = 3 * time.Minute

// Main runs the program with these arguments, its own name not included, and returns its exit code, one of daemonkit.
func Main(ctx context.Context, version string, args []string, stdout, stderr io.Writer) int {
	config, err := configure(version, args, daemonkit.PlacesOf(os.Geteuid(), os.Getenv), stdout)
	if err != nil {
		return daemonkit.Refuse(name, err, stderr)
	}
	return daemonkit.Run(ctx, name, config.LogLevel, stderr, func(ctx context.Context, log *zap.Logger) error {
		return run(ctx, config, version, log)
	})
}

// run builds everything, serves until ctx ends, and drains the node.
func run(ctx context.Context, config Config, version string, log *zap.Logger) (err error) {
	records, err := state.Open(state.Config{Dir: config.StateDir})
	if err != nil {
		return &daemonkit.StateError{Err: err}
	}
	defer func() { err = errors.Join(err, records.Close()) }()
	host, err := process.New()
	if err != nil {
		return err
	}
	if err := process.SetSubreaper(); err != nil {
		return err
	}
	reaping, stopReaping := context.WithCancel(context.WithoutCancel(ctx))
	reaped := make(chan error, 1)
	go func() { reaped <- host.Run(reaping) }()
	defer func() {
		stopReaping()
		err = errors.Join(err, <-reaped)
	}()
	preparer, err := provision.New(config.Provisioner)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, preparer.Close()) }()
	known, err := registry.New(registry.Config{})
	if err != nil {
		return err
	}
	pools, err := newPools(ctx, config, records, host, preparer, known, log)
	if err != nil {
		return err
	}
	service, err := server.New(server.Config{Pools: pools, Registry: known})
	if err != nil {
		return err
	}
	log.Info("starting", zap.String("version", version), zap.Strings("listen", config.Listen), zap.String("state_dir", config.StateDir),
		zap.String("provisioner", config.Provisioner), zap.Strings("store_roots", config.StoreRoots))
	return serve(ctx, config, service, pools, log)
}

// newPools ends what an earlier manager has left and returns the pools, of which there are none yet.
func newPools(ctx context.Context, config Config, records *state.Store, host *process.Host, preparer lifecycle.Preparer, known *registry.Registry, log *zap.Logger) (*lifecycle.Pools, error) {
	launcher, err := newLauncher(config, records, host, log)
	if err != nil {
		return nil, err
	}
	reclaiming, cancel := context.WithTimeoutCause(ctx, reclaimLimit, errors.New("engines of an earlier manager do not end"))
	defer cancel()
	if err := launcher.Reclaim(reclaiming); err != nil {
		return nil, err
	}
	return lifecycle.New(lifecycle.Config{
		Registry: known, Preparer: preparer, Launch: launchWith(launcher), DeleteLogs: launcher.DeleteLogs, Logger: log,
	})
}

// serve serves until ctx ends, drains the node while its clients may still watch, and then stops to serve.
func serve(ctx context.Context, config Config, service *server.Service, pools *lifecycle.Pools, log *zap.Logger) error {
	listens, err := daemonkit.ParseListens(config.Listen)
	if err != nil {
		return err
	}
	kit, err := serverkit.New(serverkit.Config{
		Logger:  log,
		Listens: listens,
		Services: []serverkit.Registration{func(r grpc.ServiceRegistrar) {
			poolv1.RegisterPoolManagerServiceServer(r, service)
		}},
	})
	if err != nil {
		return err
	}
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	served := make(chan error, 1)
	go func() { served <- kit.Run(serving) }()
	var failed error
	select {
	case <-ctx.Done():
		log.Info("draining the node", zap.Duration("deadline", config.Shutdown.DrainDeadline))
	case failed = <-served:
		served <- nil // For the end.
	}
	closing, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), config.Shutdown.DrainDeadline+closeLimit,
		errors.New("engines do not end"))
	defer cancel()
	failed = errors.Join(failed, pools.Close(closing, config.Shutdown.DrainDeadline))
	stopServing()
	return errors.Join(failed, <-served)
}

// environ is the whole environment of the program, of which engines get a few variables only.
func environ() []string { return process.BaseEnv(os.Environ()) }
