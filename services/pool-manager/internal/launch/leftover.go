// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// leftoverGrace is how long an engine may take to end whose contract is not known, twice, before it is killed.
const leftoverGrace = 5 * time.Second

// byStray is why a stray is ended.
const byStray = "stray"

// Leftover is a start of an earlier manager that has a record.
type Leftover struct {
	Pool       registry.PoolID
	Index      int
	Generation uint64
	Edition    uint64
	PreparedID string
	// SameBoot is false if the machine was started again since: then nothing of it can run.
	SameBoot bool
	// StartedAt is when the process was made, or was to be; ReadyAt is zero if it is not on record that it was ready.
	StartedAt, ReadyAt time.Time

	record state.Record
}

// Stray is a start of an earlier manager that lives and has no record.
type Stray struct {
	// Pool and Replica are what its processes say; they may be empty.
	Pool    registry.PoolID
	Replica registry.ReplicaID
	PIDs    []int
	Nonce   string
}

// Found is what an earlier manager has left.
type Found struct {
	Engines []Leftover
	// Unreadable has the pool of each record that could not be read and was put aside, empty where that is not known. Their
	// engines are among the strays.
	Unreadable []registry.PoolID
	Strays     []Stray
}

// Leftovers tells what an earlier manager has left. It signals nothing; it removes handoff files that stand for no engine
// of these, and puts records aside that cannot be read. It is to be called once, before anything is launched.
func (l *Launcher) Leftovers(ctx context.Context) (Found, error) {
	if ctx.Err() != nil {
		return Found{}, context.Cause(ctx)
	}
	loaded, err := l.config.Records.Load()
	if err != nil {
		return Found{}, err
	}
	var found Found
	for _, bad := range loaded.Quarantined {
		l.config.Logger.Error("record was put aside", zap.String("file", bad.Name), zap.String("pool_id", bad.PoolID),
			zap.String("reason", bad.Reason))
		found.Unreadable = append(found.Unreadable, registry.PoolID(bad.PoolID))
	}
	known := make([]string, 0, len(loaded.Records))
	for _, record := range loaded.Records {
		known = append(known, record.Identity.Nonce)
		found.Engines = append(found.Engines, l.leftover(record))
	}
	strays, err := l.config.Host.Strays(l.config.Records.ManagerID(), known)
	if err != nil {
		return Found{}, fmt.Errorf("look for engines of an earlier manager: %w", err)
	}
	for _, s := range strays {
		stray := Stray{Pool: registry.PoolID(s.Pool), Replica: registry.ReplicaID(s.Replica), Nonce: s.Nonce}
		for _, m := range s.Members {
			stray.PIDs = append(stray.PIDs, m.PID)
		}
		found.Strays = append(found.Strays, stray)
	}
	if err := l.inheritOffers(loaded.Records); err != nil {
		// What is left there is found false by whoever uses it.
		l.config.Logger.Warn("handoff files of an earlier manager were not removed", zap.Error(err))
	}
	return found, nil
}

func (l *Launcher) leftover(record state.Record) Leftover {
	started := record.StartedAt
	if started.IsZero() {
		started = record.CreatedAt
	}
	return Leftover{
		Pool: registry.PoolID(record.PoolID), Index: record.Replica, Generation: record.Generation, Edition: record.Edition,
		PreparedID: record.PreparedID, SameBoot: record.Identity.BootID == l.config.Host.BootID(),
		StartedAt: started, ReadyAt: record.ReadyAt, record: record,
	}
}

// inheritOffers keeps the handoff files of engines that may run: they are withdrawn when it turns out that they do not.
func (l *Launcher) inheritOffers(records []state.Record) error {
	files := map[registry.ReplicaID]offered{}
	err := l.config.Handoff.Keep(func(entry handoff.Entry) bool {
		for _, record := range records {
			replica := registry.PoolID(record.PoolID).Replica(record.Replica)
			if string(replica) == entry.ReplicaID && record.Identity.PID == entry.PID && record.Identity.BootID == l.config.Host.BootID() {
				files[replica] = offeredBy(record, entry)
				return true
			}
		}
		return false
	})
	for replica, file := range files {
		err = errors.Join(err, l.offers.change(replica, func(offered) (offered, error) { return file, nil }))
	}
	return err
}

// take returns the engine of a leftover, whether or not there is anything of it, with a hold on its process if it is proven
// to be that process (G2), and why there is none if not.
func (l *Launcher) take(leftover Leftover, request Request, how plan) (*Engine, error) {
	record := leftover.record
	e := newEngine(l, request, newRemains(l.config.Host, record.Identity), record, how)
	e.inherited, e.recorded = true, true
	e.info.Started, e.info.Adopted, e.record.Adopted = leftover.StartedAt, true, true
	if record.Identity.PID == 0 {
		return e, fmt.Errorf("%w: its process was never recorded", process.ErrGone)
	}
	running, err := l.config.Host.Attach(record.Identity)
	if err != nil {
		return e, err
	}
	e.process, e.held = running, time.Now()
	return e, nil
}

// End ends a start of an earlier manager that is not to be taken over, and returns when nothing of it is left, the end is on
// record, and its own record is removed. One that served has 30 s to end its requests. What is not proven to be of that start is not touched (G2), nor is anything if it is
// of another boot. With an error some of it may be left; call it again.
func (l *Launcher) End(ctx context.Context, leftover Leftover, by string) error {
	record := leftover.record
	request := Request{
		Pool: leftover.Pool, Replica: leftover.Pool.Replica(leftover.Index), Index: leftover.Index,
		Generation: leftover.Generation, Edition: leftover.Edition, StartedBy: record.StartedBy,
	}
	e, err := l.take(leftover, request, plan{stop: process.Graceful(leftoverGrace, leftoverGrace)})
	log := l.config.Logger.With(zap.String("pool_id", record.PoolID), zap.Int("replica", record.Replica),
		zap.Uint64("generation", record.Generation), zap.Int("pid", record.Identity.PID))
	defer e.Release()
	cut := 0
	if err == nil {
		log.Info("an engine of an earlier manager is being ended", zap.String("reason", by), zap.Duration("kill_after", 2*leftoverGrace))
		if err := e.Withdraw(); err != nil { // Or it would never be quiet.
			log.Warn("handoff was not withdrawn", zap.Error(err))
		}
		cut = e.awaitQuiet(ctx)
	}
	stopped, err := e.Stop(ctx, Ending{By: by, RequestsCut: cut})
	if err != nil {
		return fmt.Errorf("end what is left of pool %s, replica %d: %w", record.PoolID, record.Replica, err)
	}
	if e.asked || e.killed {
		log.Warn("an engine of an earlier manager was ended", zap.String("reason", by), zap.Bool("killed", stopped.Killed))
	} else {
		log.Info("record of an earlier manager was removed", zap.Stringer("class", stopped.Exit.Class))
	}
	return nil
}

// EndStray ends a start that nobody has a record of, and returns when nothing of it is left.
func (l *Launcher) EndStray(ctx context.Context, stray Stray) error {
	report, err := l.config.Host.Sweep(ctx, stray.Nonce, process.Graceful(leftoverGrace, leftoverGrace))
	if err != nil {
		return fmt.Errorf("end processes %v of replica %s: %w", stray.PIDs, stray.Replica, err)
	}
	l.config.Logger.Warn("an engine of an earlier manager was ended", zap.String("pool_id", string(stray.Pool)),
		zap.String("replica_id", string(stray.Replica)), zap.Ints("pids", stray.PIDs), zap.String("reason", byStray),
		zap.Bool("killed", !report.KilledAt.IsZero()))
	return nil
}

// remains is a start of an earlier manager whose main process nobody holds: it is gone, or could not be held.
type remains struct {
	host Host
	id   process.Identity
	done chan struct{}
	seen time.Time
}

func newRemains(host Host, id process.Identity) *remains {
	r := &remains{host: host, id: id, done: make(chan struct{}), seen: time.Now()}
	close(r.done)
	return r
}

func (r *remains) Identity() process.Identity { return r.id }

func (r *remains) Done() <-chan struct{} { return r.done }

func (r *remains) Exit() process.ExitStatus {
	return process.ExitStatus{Code: process.CodeUnknown, At: r.seen}
}

func (r *remains) Release() {}

func (r *remains) Sockets(uint16) (process.Sockets, error) {
	return process.Sockets{}, fmt.Errorf("sockets of pid %d: %w", r.id.PID, process.ErrGone)
}

func (r *remains) Vitals() (process.Vitals, error) {
	return process.Vitals{}, fmt.Errorf("vitals of pid %d: %w", r.id.PID, process.ErrGone)
}

// Stop ends the main process if it can be held now, and whatever else is proven to be of the start.
func (r *remains) Stop(ctx context.Context, policy process.Policy) (process.StopReport, error) {
	if r.id.BootID != r.host.BootID() {
		return process.StopReport{}, nil // Nothing outlives its boot.
	}
	if r.id.PID != 0 {
		running, err := r.host.Attach(r.id)
		if err == nil {
			defer running.Release()
			return running.Stop(ctx, policy)
		}
		if !errors.Is(err, process.ErrGone) && !errors.Is(err, process.ErrNotOurs) {
			return process.StopReport{}, reason.New(reason.StopFailed, fmt.Sprintf("process %d of an earlier manager cannot be held", r.id.PID),
				reason.Cause(err), reason.Remedy("see why the kernel refuses it; the process may still have its memory and device"))
		}
	}
	return r.host.Sweep(ctx, r.id.Nonce, policy)
}
