// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

const (
	// sampleEvery is how often it is looked at what moves of an engine that is waited for. One that is ready before the
	// first look costs none.
	sampleEvery = 250 * time.Millisecond
	// tellEvery is how often progress is told that is not visible.
	tellEvery = time.Second
	// visible is the part of the whole that is worth telling: one in a hundred.
	visible = 100
)

// What an engine does in a second merely because it is asked whether it is ready, some twenty times, with room to spare: its
// heap grows a bit, and is given back. A load that does less than all of that would not end this day.
const (
	trickleBytes  = 64 << 10               // read and written.
	trickleFaults = 256                    // page faults.
	trickleMemory = 1 << 20                // bytes of memory that come or go.
	trickleCPU    = 100 * time.Millisecond // processor time.
)

// watchLoad samples the engine until the returned function is called, which waits for that to end. It tells stage how the
// load comes on, unless the engine was ready before. When nothing has moved for the limit, the returned context ends with
// that as its cause, and e.stuck is true.
func (e *Engine) watchLoad(ctx context.Context, limit time.Duration, stage func(Stage)) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := loadWatch{engine: e, limits: supervision.Health{Interval: sampleEvery, LoadStallLimit: limit}, told: time.Now()}
	w.last = e.progress(time.Since(e.info.Started), 0)
	if e.wasReady() {
		stage = func(Stage) {}
	}
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-e.process.Done():
				return
			case <-tick.C:
			}
			if err := w.look(stage); err != nil {
				e.stuck = true
				cancel(err)
				return
			}
		}
	})
	return ctx, func() {
		cancel(nil)
		watching.Wait()
	}
}

// loadWatch is one load that is watched.
type loadWatch struct {
	engine *Engine
	limits supervision.Health
	load   supervision.Load
	sieve  sieve
	last   registry.LoadProgress // as it was told last.
	told   time.Time
}

// look takes one sample. It returns an error when nothing has moved for too long.
func (w *loadWatch) look(stage func(Stage)) error {
	vitals, err := w.engine.process.Vitals()
	if err != nil {
		return nil //nolint:nilerr // An engine that cannot be looked at is not judged.
	}
	size, err := w.engine.launcher.config.Logs.Size(w.engine.info.LogPath)
	if err != nil {
		size = 0 // A log that is gone does not grow.
	}
	sample := w.sieve.pass(vitals)
	sample.LogBytes = uint64(size)
	var movement supervision.Movement
	w.load, movement = w.load.Observe(w.limits, sample)
	if movement.Stalled {
		return w.engine.stall(w.limits.LoadStallLimit)
	}
	progress := w.engine.progress(vitals.At.Sub(w.engine.info.Started), int64(vitals.RSS))
	progress.StillSince = movement.StillSince
	if w.worthTelling(progress, vitals.At) {
		w.last, w.told = progress, vitals.At
		s := w.engine.stage(registry.PhaseLoading)
		s.Loading = &progress
		stage(s)
	}
	return nil
}

func (w *loadWatch) worthTelling(now registry.LoadProgress, at time.Time) bool {
	if now == w.last {
		return false
	}
	came := now.LoadedBytes - w.last.LoadedBytes
	return at.Sub(w.told) >= tellEvery || !now.StillSince.Equal(w.last.StillSince) ||
		came != 0 && max(came, -came) >= now.TotalBytes/visible
}

// progress is how far the load has come that has so many bytes in memory after it has lasted so long.
func (e *Engine) progress(lasted time.Duration, resident int64) registry.LoadProgress {
	var total int64
	for _, file := range e.request.Prepared.GetModel().GetFiles() {
		total += file.GetSizeBytes()
	}
	return registry.LoadProgress{
		LoadedBytes: min(resident, total), TotalBytes: total, Remaining: max(0, e.request.ExpectedLoad-max(0, lasted)),
	}
}

// stall says that nothing of the engine moves.
func (e *Engine) stall(limit time.Duration) error {
	if e.wasReady() {
		return reason.New(reason.WorkerStartTimeout,
			fmt.Sprintf("replica %s: its engine does not answer, and nothing of it has moved for %s", e.request.Replica, limit),
			reason.Remedy("read the engine's log"))
	}
	return reason.New(reason.WorkerStartTimeout,
		fmt.Sprintf("replica %s: nothing of its engine's load has moved for %s", e.request.Replica, limit),
		reason.Field("spec.health.load_stall_limit"), reason.Meta("load_stall_limit", limit.String()),
		reason.Remedy("read the engine's log; if it only waits for a slow disk or device, raise the limit"))
}

// sieve holds back what of an engine's vitals is due to our own questions, so that those do not look like a load.
type sieve struct {
	base process.Vitals // what the next growth is measured from.
	held supervision.LoadSample
}

// pass returns what the vitals say of a load.
func (s *sieve) pass(v process.Vitals) supervision.LoadSample {
	if s.base.At.IsZero() {
		s.base = v
	}
	// Over less than a second, a few questions in a row would look like many.
	lasted := v.At.Sub(s.base.At)
	seconds := max(lasted, time.Second).Seconds()
	bytes := beyond(v.IOBytes, s.base.IOBytes, trickleBytes*seconds)
	faults := beyond(v.Faults, s.base.Faults, trickleFaults*seconds)
	used := beyond(uint64(v.CPU), uint64(s.base.CPU), float64(trickleCPU)*seconds)
	memory := beyond(max(v.RSS, s.base.RSS), min(v.RSS, s.base.RSS), trickleMemory*seconds)
	if memory > 0 {
		s.held.RSS = v.RSS
	}
	if bytes > 0 || faults > 0 || used > 0 || memory > 0 || lasted >= time.Second {
		s.base = v
	}
	s.held.IOBytes, s.held.Faults, s.held.CPU = s.held.IOBytes+bytes, s.held.Faults+faults, s.held.CPU+time.Duration(used)
	s.held.At = v.At
	return s.held
}

// beyond returns how much a total has grown, or 0 if that is a trickle.
func beyond(now, before uint64, trickle float64) uint64 {
	if now <= before || float64(now-before) <= trickle {
		return 0
	}
	return now - before
}
