// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

func newLauncher(config Config, records *state.Store, host *process.Host, log *zap.Logger) (*launch.Launcher, error) {
	files, err := handoff.Open(handoff.Config{Dir: config.HandoffDir})
	if err != nil {
		return nil, &daemonkit.StateError{Err: err}
	}
	verifier, err := trust.New(trust.Config{Roots: config.StoreRoots})
	if err != nil {
		return nil, err
	}
	prober, err := probe.New(probe.Config{})
	if err != nil {
		return nil, err
	}
	return launch.New(launch.Config{
		Host:    host,
		Records: records,
		Handoff: files,
		Trust:   verifier,
		Prober:  prober,
		LogDir:  filepath.Join(config.StateDir, "logs"),
		Env:     environ(),
		Logger:  log,
	})
}

// launchWith makes a Launcher what lifecycle asks for.
func launchWith(launcher *launch.Launcher) lifecycle.Launcher {
	return func(ctx context.Context, request launch.Request, stage func(launch.Stage)) (lifecycle.Engine, error) {
		engine, err := launcher.Launch(ctx, request, stage)
		if engine == nil {
			return nil, err // A nil *Engine must not become an Engine that is not nil.
		}
		return engine, err
	}
}
