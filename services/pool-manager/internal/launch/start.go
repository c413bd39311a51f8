// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

// start makes the process. On error there is none, no record of it, and it is on record that the start has failed.
func (l *Launcher) start(ctx context.Context, request Request) (*Engine, error) {
	began := time.Now()
	how, err := understand(l.config.Env, request)
	if err == nil {
		err = l.check(ctx, request)
	}
	if err != nil {
		l.noteUnmade(ctx, request, began, err)
		return nil, err
	}
	return l.spawn(ctx, request, how, began)
}

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
func (l *Launcher) spawn(ctx context.Context, request Request, how plan, began time.Time) (*Engine, error) {
	logPath, err := l.config.Logs.Begin(request.Pool, request.Index, request.Generation)
	if err != nil {
		l.noteUnmade(ctx, request, began, err)
		return nil, err
	}
	record := l.intent(request, logPath)
	if err := l.config.Records.Save(record); err != nil { // G1: before the spawn.
		l.noteUnmade(ctx, request, began, err)
		// A save that failed may have left a record. It stands for nothing, and may stay if it cannot be removed either.
		_ = l.config.Records.Remove(record.Key())
		return nil, err
	}
	failpoint.Hit(failpoint.StartIntended)
	running, err := l.config.Host.Spawn(process.Command{
		Executable: record.Executable,
		Args:       how.args,
		Env:        how.env,
		Dir:        request.Prepared.GetProcess().GetWorkingDir(),
		LogPath:    logPath,
		Nonce:      record.Identity.Nonce,
		Manager:    record.Manager,
		Pool:       record.PoolID,
		Replica:    string(request.Replica),
		Generation: record.Generation,
	})
	if err != nil {
		l.noteUnmade(ctx, request, began, err)
		return nil, errors.Join(err, l.config.Records.Remove(record.Key()), l.config.Logs.Remove(logPath))
	}
	failpoint.Hit(failpoint.StartSpawned)
	record.Identity = running.Identity()
	record.Phase, record.StartedAt = state.Started, time.Now()
	e := newEngine(l, request, running, record, how)
	e.keepLog(ctx)
	return e, nil
}

// intent is the record of a start before there is a process.
func (l *Launcher) intent(request Request, logPath string) state.Record {
	return state.Record{
		PoolID:     string(request.Pool),
		Replica:    request.Index,
		Generation: request.Generation,
		Edition:    request.Edition,
		PreparedID: request.Prepared.GetPreparedId(),
		Manager:    l.config.Records.ManagerID(),
		StartedBy:  request.StartedBy,
		Phase:      state.Intended,
		Identity:   process.Identity{BootID: l.config.Host.BootID(), Nonce: process.NewNonce()},
		Executable: request.Prepared.GetProcess().GetExecutable(),
		LogPath:    logPath,
		Port:       int(request.Port),
		CreatedAt:  time.Now(),
		Activity:   activityOf(request.Prepared.GetContract().GetActivity()),
	}
}

func activityOf(source *enginev1.ActivitySource) *state.Activity {
	if source == nil {
		return nil
	}
	return &state.Activity{Path: source.GetPath(), Gauges: source.GetGauges()}
}

func storageError(attempt string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return reason.New(reason.DiskFull, attempt, reason.Cause(err), reason.Remedy("free space on its disk"))
	}
	return reason.New(reason.StorageFailed, attempt, reason.Cause(err),
		reason.Remedy("see that the folder exists, that its file system is sound, and that the pool manager may write there"))
}
