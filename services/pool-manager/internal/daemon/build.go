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
	logs, err := launch.NewFileLogs(filepath.Join(config.StateDir, "logs"))
	if err != nil {
		return nil, err
	}
	return launch.New(launch.Config{
		Host:    launch.HostOf(host),
		Records: records,
		Handoff: files,
		Trust:   verifier,
		Prober:  prober,
		Logs:    logs,
		Env:     environ(),
		Logger:  log,
	})
}

// machine makes a Launcher what lifecycle asks for.
type machine struct{ *launch.Launcher }

func (m machine) Launch(ctx context.Context, request launch.Request, stage func(launch.Stage)) (lifecycle.Engine, error) {
	return engineOf(m.Launcher.Launch(ctx, request, stage))
}

func (m machine) Adopt(ctx context.Context, leftover launch.Leftover, request launch.Request, stage func(launch.Stage)) (lifecycle.Engine, error) {
	return engineOf(m.Launcher.Adopt(ctx, leftover, request, stage))
}

// engineOf keeps a nil *Engine from becoming an Engine that is not nil.
func engineOf(engine *launch.Engine, err error) (lifecycle.Engine, error) {
	if engine == nil {
		return nil, err
	}
	return engine, err
}
