// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// Why a start was ended here, for people.
const (
	byNobody   = "" // What was swept up of it had lost its main process, or was about to.
	byCancel   = "cancel"
	byStall    = "stalled"
	byHang     = "hung"
	byTimeout  = "timeout"
	byMistrust = "unproven" // It did not prove what it is.
)

// note puts it on record how the start of an engine has ended that is proven gone (G7), once. What cannot be saved is
// logged: it must not keep an engine from ending.
func (e *Engine) note(exit registry.Exit) {
	if e.noted || e.inherited && e.launcher.hasNote(e.record.Key()) {
		return
	}
	e.noted = true
	record := state.StartRecord{
		PoolID: e.record.PoolID, Replica: e.record.Replica, Generation: e.record.Generation, Edition: e.record.Edition,
		PreparedID: e.record.PreparedID, PID: e.record.Identity.PID,
		StartedAt: e.record.StartedAt, ReadyAt: e.record.ReadyAt, StartedBy: e.record.StartedBy,
		Error: e.failure,
		Class: className(exit.Class), Code: exit.Code, Signal: exit.Signal, Uptime: exit.Uptime, EndedAt: exit.Ended,
		LastLines: exit.LastLines, RequestsCut: exit.RequestsCut, Adopted: e.info.Adopted,
	}
	if record.StartedAt.IsZero() {
		record.StartedAt = e.record.CreatedAt
	}
	if e.asked {
		record.EndedBy = e.ending.By
	}
	e.launcher.saveStart(record)
}

// noteUnmade puts it on record that no process could be made. A start that was to be left for the next manager has not
// ended, and there is nothing of it.
func (l *Launcher) noteUnmade(ctx context.Context, request Request, began time.Time, err error) {
	if leaving(ctx) {
		return
	}
	record := state.StartRecord{
		PoolID: string(request.Pool), Replica: request.Index, Generation: request.Generation, Edition: request.Edition,
		PreparedID: request.Prepared.GetPreparedId(),
		StartedAt:  began, StartedBy: request.StartedBy, EndedAt: time.Now(), Error: err.Error(),
		Class: className(enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED),
	}
	if ctx.Err() != nil {
		record.EndedBy = byCancel
	}
	l.saveStart(record)
}

func (l *Launcher) saveStart(record state.StartRecord) {
	if err := l.config.Records.SaveStart(record); err != nil {
		l.config.Logger.Warn("how a start ended is not on record", zap.String("pool_id", record.PoolID), zap.Int("replica", record.Replica),
			zap.Uint64("generation", record.Generation), zap.Int("pid", record.PID), zap.String("class", record.Class), zap.Error(err))
	}
}

// hasNote tells whether it is on record already how a start ended: the manager that saw it may have died right after.
func (l *Launcher) hasNote(key state.Key) bool {
	starts, err := l.config.Records.Starts(key.PoolID)
	if err != nil {
		l.config.Logger.Warn("records of starts cannot be read", zap.String("pool_id", key.PoolID), zap.Error(err))
	}
	for _, s := range starts {
		if s.Replica == key.Replica && s.Generation == key.Generation {
			return true
		}
	}
	return false
}

// leaving tells whether ctx has ended to leave engines running.
func leaving(ctx context.Context) bool { return errors.Is(context.Cause(ctx), ErrLeave) }

// className is the name of a class without its prefix, as it is recorded.
func className(class enginev1.ExitClass) string {
	return strings.TrimPrefix(class.String(), "EXIT_CLASS_")
}
