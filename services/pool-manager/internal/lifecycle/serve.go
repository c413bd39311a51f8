// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// serve owns an engine that is ready until nothing of it is left. It returns how it failed, or over if it was told to end.
func (r *replica) serve(engine Engine) (failure supervision.Failure, over bool) {
	r.ready(engine)
	watching, cancel := context.WithCancel(r.pool.pools.base)
	hung := make(chan string, 1)
	watched := make(chan struct{})
	stopWatching := func() { // Whoever watches may offer the engine again, which nobody must once it is withdrawn.
		cancel()
		<-watched
	}
	defer stopWatching()
	r.pool.pools.work.Go(func() {
		defer close(watched)
		r.watch(watching, engine, hung)
	})

	failure = supervision.Failure{WasReady: true}
	stable := r.stable(nil)
	done := engine.Done()
	var retry <-chan time.Time
	ending := launch.Ending{By: "restart"}
	for {
		select {
		case <-done:
			done = nil
			stopWatching()
			exit, err := r.bury(engine)
			if err == nil {
				return r.failed(exit), false
			}
			retry = time.After(stopAgain)
		case cause := <-hung:
			done = nil
			r.pool.pools.config.Observer.HealthCheck("hung")
			r.pool.pools.log.Warn("replica is hung", r.fields(zap.String("cause", cause))...)
			ending = launch.Ending{By: "hung", Hung: true, Cause: cause}
			exit, err := r.stop(engine, ending)
			if err == nil {
				return r.failed(exit), false
			}
			retry = time.After(stopAgain)
		case <-retry:
			exit, err := r.stop(engine, ending)
			if err == nil {
				return r.failed(exit), false
			}
			retry = time.After(stopAgain)
		case <-stable:
			stable = r.stable(stable)
		case order := <-r.stops:
			stopWatching()
			if r.obey(engine, order) {
				return failure, true
			}
			retry = time.After(stopAgain) // Its giver knows that the engine is left.
		}
	}
}

// obey does what an order says, and says whether nothing is left to own.
func (r *replica) obey(engine Engine, order stopOrder) bool {
	if order.leave {
		r.pool.mu.Lock()
		r.engine = nil
		r.pool.mu.Unlock()
		engine.Release()
		return true
	}
	if _, err := r.stop(engine, order.ending); err != nil {
		order.failed <- err
		return false
	}
	return true
}

// endSurvivors owns what a failed start has left until it is gone. It says whether the replica was told to end.
func (r *replica) endSurvivors(engine Engine, cause error) (over bool) {
	r.pool.update(func() { r.pool.failure = r.pool.failed(cause) })
	ending := launch.Ending{By: "restart"}
	retry := time.After(stopAgain)
	for {
		select {
		case <-retry:
			if _, err := r.stop(engine, ending); err == nil {
				return false
			}
			retry = time.After(stopAgain)
		case order := <-r.stops:
			if r.obey(engine, order) {
				return true
			}
		}
	}
}

// ready makes known that the replica serves.
func (r *replica) ready(engine Engine) {
	p := r.pool
	info := engine.Info()
	p.mu.Lock()
	r.engine, r.lastActive = engine, p.pools.config.Now()
	r.trackLocked(p.tracks[r.index].Ready(p.pools.config.Now()))
	if info.LoadTime > 0 {
		p.loadTimes[r.index] = info.LoadTime
	}
	unoffered := r.unofferedLocked()
	r.changeLocked(func(view *registry.Replica) {
		view.State, view.Loading, view.Adopted = registry.ReplicaReady, nil, info.Adopted
		if unoffered {
			view.State = registry.ReplicaDraining
		}
		view.Endpoint, view.PID, view.SlotsTotal = info.Endpoint, info.PID, info.Slots
		view.Started, view.Ready, view.LogPath = info.Started, info.Ready, info.LogPath
	})
	if r.supervised {
		p.saveLocked()
	}
	p.publishLocked()
	p.mu.Unlock()
	if unoffered { // The others have been withdrawn before.
		r.withdraw(engine)
	}
	r.madeProcess = true
	r.settle(nil)
	p.pools.log.Info("replica ready", r.fields(zap.Uint64("generation", r.view.Generation), zap.Int("pid", info.PID),
		zap.Bool("adopted", info.Adopted), zap.Duration("duration", info.Ready.Sub(info.Started)))...)
}

// unofferedLocked is whether the replica is to get no new requests: its pool is drained, or it is to make way for a reload.
func (r *replica) unofferedLocked() bool {
	p := r.pool
	if slices.Contains(p.retiring, r) {
		return true
	}
	stopping := p.draining != nil || p.reloading != nil && p.reloading.phase == registry.ReloadStoppingOld
	return stopping && p.crew[r.index] == r
}

// withdraw takes back what Launch has offered, unless the drain that it is for has been given up by then.
func (r *replica) withdraw(engine Engine) {
	err := engine.Withdraw()
	r.pool.mu.Lock()
	serves := !r.unofferedLocked()
	r.pool.mu.Unlock()
	if serves {
		err = errors.Join(err, engine.Offer())
	}
	if err != nil {
		r.pool.pools.log.Warn("handoff was not withdrawn", r.fields(zap.Error(err))...)
	}
}

// stable is called when an engine gets ready, and when the time has come that the last call has named: it tells
// supervision that the engine still serves, and returns when to tell it again; nil if there is nothing to tell.
func (r *replica) stable(due <-chan time.Time) <-chan time.Time {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.pools.config.Now()
	if due != nil {
		track, changed := p.tracks[r.index].Stable(now, p.spec.Restart)
		if changed {
			r.trackLocked(track)
			p.saveLocked()
			p.publishLocked()
		}
	}
	at := p.tracks[r.index].NextCheck(p.spec.Restart)
	if at.IsZero() {
		return nil
	}
	return time.After(max(at.Sub(now), time.Millisecond))
}

// bury clears away after an engine that ended by itself.
func (r *replica) bury(engine Engine) (registry.Exit, error) {
	ctx, cancel := context.WithTimeout(r.pool.pools.base, stopLimit)
	defer cancel()
	exit, err := engine.Bury(ctx)
	failpoint.Hit(failpoint.RestartBuried)
	p := r.pool
	p.mu.Lock()
	r.engine = nil
	r.changeLocked(func(view *registry.Replica) {
		view.State, view.Endpoint, view.PID, view.Exit = registry.ReplicaFailed, "", 0, &exit
		if r.supervised && r.life.Err() == nil {
			view.State = registry.ReplicaBackoff
		}
		if err != nil {
			view.State = registry.ReplicaStopping
		}
	})
	if p.crew[r.index] == r {
		p.failure = p.exited(r.view)
	}
	p.publishLocked()
	p.mu.Unlock()
	p.pools.config.Observer.EngineEnded(exit.Class, exit.Uptime)
	p.pools.log.Warn("replica ended by itself", r.fields(zap.Stringer("class", exit.Class), zap.Int("code", exit.Code),
		zap.String("signal", exit.Signal), zap.Duration("uptime", exit.Uptime), zap.Error(err))...)
	return exit, err
}

// stop ends the engine and returns nil when nothing of it is left.
func (r *replica) stop(engine Engine, ending launch.Ending) (registry.Exit, error) {
	r.change(func(view *registry.Replica) {
		r.engine = nil
		view.State, view.Endpoint = registry.ReplicaStopping, ""
	})
	ctx, cancel := context.WithTimeout(r.pool.pools.base, stopLimit)
	defer cancel()
	stopped, err := engine.Stop(ctx, ending)
	if err != nil {
		r.pool.pools.log.Error("replica could not be stopped", r.fields(zap.Error(err))...)
		r.pool.update(func() { r.pool.failure = r.pool.failed(err) })
		return registry.Exit{}, err
	}
	r.stopped = stopped
	r.pool.pools.config.Observer.EngineEnded(stopped.Exit.Class, stopped.Exit.Uptime)
	r.finish(&stopped.Exit)
	r.pool.pools.log.Info("replica stopped", r.fields(zap.String("by", ending.By), zap.Stringer("class", stopped.Exit.Class),
		zap.Int("requests_cut", ending.RequestsCut), zap.Bool("killed", stopped.Killed))...)
	return stopped.Exit, nil
}

// failed is what supervision is told of an engine that was ready.
func (r *replica) failed(exit registry.Exit) supervision.Failure {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	failure := supervision.Failure{Class: exit.Class, WasReady: true}
	if !r.view.Ready.IsZero() {
		failure.ReadyFor = exit.Ended.Sub(r.view.Ready)
	}
	if failure.Class == enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED {
		failure.Class = enginev1.ExitClass_EXIT_CLASS_UNKNOWN
	}
	return failure
}
