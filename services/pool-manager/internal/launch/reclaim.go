// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// reclaimGrace is how long an engine of an earlier manager may take to end before it is killed.
const reclaimGrace = 5 * time.Second

// Reclaim ends every engine that an earlier manager has left, and removes its record; once none is left, it removes the
// logs too, whose pools nobody knows any more. It never touches a process that it cannot prove to be one of them (G2). It
// is to be called once, before anything is launched. What it could not end keeps its record and is in the error; records
// that cannot be read were put aside and are only logged.
func (l *Launcher) Reclaim(ctx context.Context) error {
	loaded, err := l.config.Records.Load()
	if err != nil {
		return err
	}
	for _, bad := range loaded.Quarantined {
		l.config.Logger.Error("record was put aside", zap.String("file", bad.Name), zap.String("reason", bad.Reason))
	}
	l.announce(ctx, loaded.Records)
	failed := make(chan error, len(loaded.Records))
	for _, record := range loaded.Records {
		go func() { failed <- l.reclaim(ctx, record) }()
	}
	for range loaded.Records {
		err = errors.Join(err, <-failed)
	}
	if err == nil {
		l.forgetLogs()
	}
	return err
}

// announce logs which processes are to end before anything else can begin, and how long that may take.
func (l *Launcher) announce(ctx context.Context, records []state.Record) {
	var pids []int
	engines := 0
	for _, record := range records {
		if record.Identity.BootID != l.config.Host.BootID() {
			continue
		}
		members, err := l.config.Host.Find(record.Identity.Nonce)
		if err != nil || len(members) == 0 {
			continue // Whether it can be ended is found out when it is tried.
		}
		engines++
		for _, m := range members {
			pids = append(pids, m.PID)
		}
	}
	if engines == 0 {
		return
	}
	fields := []zap.Field{zap.Int("engines", engines), zap.Ints("pids", pids), zap.Duration("kill_after", 2*reclaimGrace)}
	if deadline, ok := ctx.Deadline(); ok {
		fields = append(fields, zap.Duration("deadline", time.Until(deadline)))
	}
	l.config.Logger.Info("waiting for engines of an earlier manager to end", fields...)
}

func (l *Launcher) reclaim(ctx context.Context, record state.Record) error {
	log := l.config.Logger.With(zap.String("pool_id", record.PoolID), zap.Int("replica", record.Replica),
		zap.Uint64("generation", record.Generation), zap.Int("pid", record.Identity.PID))
	if record.Identity.BootID == l.config.Host.BootID() {
		report, err := l.endLeftover(ctx, record)
		if err != nil {
			return fmt.Errorf("end what is left of pool %s, replica %d: %w", record.PoolID, record.Replica, err)
		}
		if len(report.Signals) > 0 || !report.KilledAt.IsZero() {
			log.Warn("an engine of an earlier manager was ended", zap.Duration("duration", report.Duration))
		}
	}
	if err := l.config.Records.Remove(record.Key()); err != nil {
		return err
	}
	log.Info("record of an earlier manager was removed")
	return nil
}

// endLeftover ends the recorded process if it is still the same, and everything else that carries its nonce.
func (l *Launcher) endLeftover(ctx context.Context, record state.Record) (process.StopReport, error) {
	policy := process.Graceful(reclaimGrace, reclaimGrace)
	if record.Identity.PID != 0 {
		running, err := l.config.Host.Attach(record.Identity)
		if err == nil {
			return running.Stop(ctx, policy)
		}
		if !errors.Is(err, process.ErrGone) && !errors.Is(err, process.ErrNotOurs) {
			return process.StopReport{}, err
		}
	}
	return l.config.Host.Sweep(ctx, record.Identity.Nonce, policy)
}
