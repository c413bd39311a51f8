// SPDX-License-Identifier: Apache-2.0

// Package daemon is the program pool-managerd: it reads the configuration, builds everything and runs it.
//
// On SIGTERM or SIGINT it drains every pool, which is seen by its clients, and then ends, and no engine is left; or it leaves
// the engines for the next start to take over, which is the default under systemd. A second signal ends it at once and leaves
// the engines in any case.
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
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/metrics"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/provision"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/server"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// name is the program's.
const name = "pool-managerd"

// leaveLimit is how long loads that are undone, and engines that are being stopped, may take when the engines are left.
const leaveLimit = time.Minute

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
	seen, err := metrics.New(metrics.Config{Registry: known, Version: version})
	if err != nil {
		return err
	}
	pools, err := newPools(ctx, config, records, host, preparer, known, seen, log)
	if err != nil {
		return err
	}
	service, err := server.New(server.Config{Pools: pools, Registry: known})
	if err != nil {
		return err
	}
	log.Info("starting", zap.String("version", version), zap.Strings("listen", config.Listen), zap.String("state_dir", config.StateDir),
		zap.String("provisioner", config.Provisioner), zap.Strings("store_roots", config.StoreRoots))
	return serve(ctx, config, service, pools, seen, log)
}

// newPools returns the pools as an earlier manager has left them.
func newPools(ctx context.Context, config Config, records *state.Store, host *process.Host, preparer lifecycle.Preparer, known *registry.Registry, seen *metrics.Metrics, log *zap.Logger) (*lifecycle.Pools, error) {
	launcher, err := newLauncher(config, records, host, log)
	if err != nil {
		return nil, err
	}
	pools, err := lifecycle.New(ctx, lifecycle.Config{
		Registry: known, Preparer: preparer, Machine: machine{launcher}, Records: records, BootID: host.BootID(),
		ParallelLoads: config.Restore.ParallelLoads, KeepStrays: config.Restore.Strays == keepStrays, Observer: seen, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	if err := pools.Restore(ctx); err != nil {
		return nil, &daemonkit.StateError{Err: err}
	}
	return pools, nil
}

// serve serves until ctx ends, then drains or leaves the engines while its clients may still watch, and stops to serve.
func serve(ctx context.Context, config Config, service *server.Service, pools *lifecycle.Pools, seen *metrics.Metrics, log *zap.Logger) error {
	tasks, stopServing, err := begin(ctx, config, service, pools, seen, log)
	if err != nil {
		return errors.Join(err, end(ctx, config, pools, log))
	}
	defer stopServing()
	ended := make(chan error, len(tasks))
	for _, task := range tasks {
		go func() { ended <- task() }()
	}
	var failed error
	left := len(tasks)
	select {
	case <-ctx.Done():
	case failed = <-ended:
		left--
	}
	failed = errors.Join(failed, end(ctx, config, pools, log))
	stopServing()
	for range left {
		failed = errors.Join(failed, <-ended)
	}
	return failed
}

// begin opens every listener and returns what is to run beside each other until the returned function is called.
func begin(ctx context.Context, config Config, service *server.Service, pools *lifecycle.Pools, seen *metrics.Metrics, log *zap.Logger) ([]func() error, context.CancelFunc, error) {
	listens, err := daemonkit.ParseListens(config.Listen)
	if err != nil {
		return nil, nil, err
	}
	kit, err := serverkit.New(serverkit.Config{
		Logger:  log,
		Listens: listens,
		Services: []serverkit.Registration{func(r grpc.ServiceRegistrar) {
			poolv1.RegisterPoolManagerServiceServer(r, service)
		}},
	})
	if err != nil {
		return nil, nil, err
	}
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	tasks := []func() error{
		func() error { return kit.Run(serving) },
		func() error {
			select {
			case <-kit.Ready():
			case <-serving.Done():
				return nil
			}
			if err := errors.Join(daemonkit.NotifyReady("serving"), daemonkit.Watchdog(serving, log, pools.Alive)); err != nil {
				return err
			}
			<-serving.Done()
			return nil
		},
	}
	if config.Metrics.Listen == "" {
		return tasks, stop, nil
	}
	listen, err := wire.ParseAddress("metrics.listen", config.Metrics.Listen)
	if err != nil {
		stop()
		return nil, nil, err
	}
	listener, err := serverkit.Open(ctx, listen)
	if err != nil {
		stop()
		return nil, nil, err
	}
	return append(tasks, func() error {
		if err := daemonkit.ServeMetrics(serving, listener, seen.Handler(), log); err != nil {
			log.Error("metrics are not served any more", zap.Error(err)) // Engines matter more.
		}
		<-serving.Done()
		return nil
	}), stop, nil
}

// end drains the node or leaves its engines, as configured.
func end(ctx context.Context, config Config, pools *lifecycle.Pools, log *zap.Logger) error {
	ctx = context.WithoutCancel(ctx)
	if config.Shutdown.Engines == leaveEngines {
		log.Info("leaving the engines for the next pool-managerd")
		notified := daemonkit.NotifyStopping("leaving the engines")
		ctx, cancel := context.WithTimeoutCause(ctx, leaveLimit, errors.New("work under way does not end"))
		defer cancel()
		return errors.Join(notified, pools.Leave(ctx))
	}
	log.Info("draining the node", zap.Duration("deadline", config.Shutdown.DrainDeadline))
	notified := daemonkit.NotifyStopping("draining the node")
	ctx, cancel := context.WithTimeoutCause(ctx, config.Shutdown.DrainDeadline+closeLimit, errors.New("engines do not end"))
	defer cancel()
	return errors.Join(notified, pools.Close(ctx, config.Shutdown.DrainDeadline))
}

// environ is the whole environment of the program, of which engines get a few variables only.
func environ() []string { return process.BaseEnv(os.Environ()) }
