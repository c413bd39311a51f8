// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

// check refuses what must not be started: files that are not what was prepared, a port that somebody has.
func (l *Launcher) check(ctx context.Context, request Request) error {
	process := request.Prepared.GetProcess()
	executable := false
	for _, file := range process.GetFiles() {
		if err := l.config.Trust.Check(ctx, trust.File{Path: file.GetPath(), SHA256: file.GetSha256(), SizeBytes: file.GetSizeBytes()}); err != nil {
			return fmt.Errorf("start replica %s: %w", request.Replica, err)
		}
		executable = executable || file.GetPath() == process.GetExecutable()
	}
	if !executable {
		return reason.New(reason.UntrustedArtifact, fmt.Sprintf("executable %q has no digest", process.GetExecutable()),
			reason.Meta("path", process.GetExecutable()), reason.Remedy("prepare the engine again"))
	}
	if request.Port == 0 {
		return nil
	}
	pid, name, err := l.config.Host.Holder(request.Port)
	if err != nil {
		return fmt.Errorf("look for the holder of port %d: %w", request.Port, err)
	}
	if pid != 0 {
		return reason.New(reason.PortInUse, fmt.Sprintf("port %d is held by process %d (%s)", request.Port, pid, name),
			reason.Field("spec.port"), reason.Meta("port", strconv.Itoa(int(request.Port))), reason.Meta("holder_pid", strconv.Itoa(pid)),
			reason.Remedy("leave the port at 0, so that the engine picks a free one, or stop the holder"))
	}
	return nil
}

// spawn records the intent and makes the process. On error neither is left, and no process was ever told of.
func (l *Launcher) spawn(ctx context.Context, request Request, how plan) (*Engine, error) {
	launch := request.Prepared.GetProcess()
	logPath, err := l.newLog(request)
	if err != nil {
		return nil, err
	}
	record := state.Record{
		PoolID:     string(request.Pool),
		Replica:    request.Index,
		Generation: request.Generation,
		PreparedID: request.Prepared.GetPreparedId(),
		Phase:      state.Intended,
		Identity:   process.Identity{BootID: l.config.Host.BootID(), Nonce: process.NewNonce()},
		Executable: launch.GetExecutable(),
		LogPath:    logPath,
		CreatedAt:  time.Now(),
	}
	if err := l.config.Records.Save(record); err != nil { // G1: before the spawn.
		// A save that failed may have left a record. It stands for nothing, and may stay if it cannot be removed either.
		_ = l.config.Records.Remove(record.Key())
		return nil, err
	}
	running, err := l.config.Host.Spawn(process.Command{
		Executable: launch.GetExecutable(),
		Args:       how.args,
		Env:        how.env,
		Dir:        launch.GetWorkingDir(),
		LogPath:    logPath,
		Nonce:      record.Identity.Nonce,
	})
	if err != nil {
		return nil, errors.Join(err, l.config.Records.Remove(record.Key()), removeLog(logPath))
	}
	record.Identity = running.Identity()
	record.Phase, record.StartedAt = state.Started, time.Now()
	return newEngine(ctx, l, request, running, record, how), nil
}

// record makes it durable which process was made.
func (l *Launcher) record(e *Engine) error {
	return l.config.Records.Save(e.record)
}

func storageError(attempt string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return reason.New(reason.DiskFull, attempt, reason.Cause(err), reason.Remedy("free space on its disk"))
	}
	return reason.New(reason.StorageFailed, attempt, reason.Cause(err),
		reason.Remedy("see that the folder exists, that its file system is sound, and that the pool manager may write there"))
}
