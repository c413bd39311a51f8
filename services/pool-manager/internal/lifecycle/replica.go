// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// stopLimit is how long a stop may take beyond the waits of the engine's own stop protocol: KILL, and the proof.
const stopLimit = 2 * time.Minute

// replica is one start of one replica: the actor that alone talks to its engine's process.
type replica struct {
	pool    *pool
	request launch.Request

	// cancelLaunch ends a launch under way.
	cancelLaunch context.CancelCauseFunc
	// launched is closed once engine or launchErr is set.
	launched  chan struct{}
	engine    Engine
	launchErr error
	// stops takes orders to stop the engine; gone is closed when nothing of it is left.
	stops chan stopOrder
	gone  chan struct{}
	// stopped is how it was stopped, valid once gone is closed.
	stopped launch.Stopped
}

// stopOrder asks the actor to stop its engine.
type stopOrder struct {
	requestsCut int
	failed      chan error // gets an error if the engine could not be stopped; else gone is closed.
}

// newReplica registers a start. Its caller holds the pool's lock and runs it.
func (p *pool) newReplicaLocked(request launch.Request) *replica {
	p.generations[request.Index]++
	request.Generation = p.generations[request.Index]
	r := &replica{
		pool:     p,
		request:  request,
		launched: make(chan struct{}),
		stops:    make(chan stopOrder),
		gone:     make(chan struct{}),
	}
	p.alive[request.Index] = r
	return r
}

// run owns the engine from its launch until nothing of it is left. ctx bounds nothing but the launch.
func (r *replica) run(ctx context.Context) {
	defer r.end()
	r.launch(ctx)
	if r.engine == nil {
		return
	}
	done := r.engine.Done()
	if r.launchErr != nil {
		done = nil // Some of it is left: only an order can help.
	}
	for {
		select {
		case <-done:
			if r.bury(ctx) {
				return
			}
			done = nil // Some of it is left: only an order can help now.
		case order := <-r.stops:
			if err := r.stop(ctx, order.requestsCut); err != nil {
				order.failed <- err
				continue
			}
			return
		}
	}
}

func (r *replica) end() {
	r.pool.mu.Lock()
	if r.pool.alive[r.request.Index] == r {
		delete(r.pool.alive, r.request.Index)
	}
	r.pool.mu.Unlock()
	close(r.gone)
}

func (r *replica) launch(ctx context.Context) {
	defer close(r.launched)
	r.engine, r.launchErr = r.pool.pools.config.Launch(ctx, r.request, r.stage)
	if r.launchErr == nil {
		info := r.engine.Info()
		r.change("replica ready", func(replica *registry.Replica) {
			replica.State = registry.ReplicaReady
			replica.Endpoint, replica.PID, replica.SlotsTotal = info.Endpoint, info.PID, info.Slots
			replica.Started, replica.Ready = info.Started, info.Ready
		}, zap.Duration("duration", info.Ready.Sub(info.Started)), zap.Int("pid", info.PID))
		return
	}
	state := registry.ReplicaFailed
	switch {
	case r.engine != nil: // It was told to stop, and does not.
		state = registry.ReplicaStopping
	case ctx.Err() != nil: // It was told to stop.
		state = registry.ReplicaStopped
	}
	var failed *launch.Error
	if errors.As(r.launchErr, &failed) {
		r.change("replica did not get ready", func(replica *registry.Replica) {
			replica.State, replica.Exit = state, failed.Exit
			if r.engine == nil {
				replica.PID = 0
			}
		}, zap.Error(r.launchErr))
		return
	}
	r.change("replica was not started", func(replica *registry.Replica) { replica.State = state }, zap.Error(r.launchErr))
}

// hadEngine says whether the process of the engine was made, whatever became of it. It is for a replica that is launched.
func (r *replica) hadEngine() bool {
	var failed *launch.Error
	return r.launchErr == nil || errors.As(r.launchErr, &failed)
}

func (r *replica) stage(stage launch.Stage) {
	r.pool.update(func(pool *registry.Pool) {
		replica := &pool.Replicas[r.request.Index]
		replica.PID, replica.Started, replica.LogPath = stage.PID, stage.Started, stage.LogPath
		if pool.Phase != 0 && pool.Phase < stage.Phase {
			pool.Phase = stage.Phase
		}
	})
	r.pool.mu.Lock()
	loading := r.pool.loading
	r.pool.mu.Unlock()
	if loading != nil {
		loading.enter(stage.Phase)
	}
}

// bury clears away after an engine that ended by itself, and says whether nothing is left.
func (r *replica) bury(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	exit, err := r.engine.Bury(ctx)
	r.pool.update(func(pool *registry.Pool) {
		replica := &pool.Replicas[r.request.Index]
		replica.State, replica.Endpoint, replica.PID, replica.Exit = registry.ReplicaFailed, "", 0, &exit
		if err != nil {
			replica.State = registry.ReplicaStopping
		}
		if pool.State == registry.StateReady {
			pool.State, pool.Failure = registry.StateFailed, r.pool.exited(*replica)
		}
	})
	r.pool.pools.log.Warn("replica ended by itself", r.fields(zap.Stringer("class", exit.Class), zap.Duration("uptime", exit.Uptime), zap.Error(err))...)
	return err == nil
}

// exited says why a pool has failed one of whose replicas has ended by itself.
func (p *pool) exited(replica registry.Replica) *registry.Failure {
	message := fmt.Sprintf("replica %s ended by itself", replica.ID)
	if replica.Exit != nil {
		message += ": " + launch.Describe(*replica.Exit)
	}
	return &registry.Failure{Reason: reason.EngineExited, Message: message, At: p.pools.config.Now()}
}

// stop ends the engine and returns nil when nothing of it is left.
func (r *replica) stop(ctx context.Context, requestsCut int) error {
	r.change("replica stopping", func(replica *registry.Replica) {
		replica.State, replica.Endpoint = registry.ReplicaStopping, ""
	})
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	stopped, err := r.engine.Stop(ctx)
	if err != nil {
		r.pool.pools.log.Error("replica could not be stopped", r.fields(zap.Error(err))...)
		return err
	}
	stopped.Exit.RequestsCut = requestsCut
	r.stopped = stopped
	r.change("replica stopped", func(replica *registry.Replica) {
		replica.State, replica.PID, replica.Exit = registry.ReplicaStopped, 0, &stopped.Exit
	}, zap.Bool("killed", stopped.Killed))
	return nil
}

// shut stops the replica wherever it is and returns when nothing of it is left. It may be called by anybody.
func (r *replica) shut(requestsCut int, cause error) error {
	r.cancelLaunch(cause)
	order := stopOrder{requestsCut: requestsCut, failed: make(chan error, 1)}
	select {
	case r.stops <- order:
	case <-r.gone:
		return nil
	}
	select {
	case err := <-order.failed:
		return err
	case <-r.gone:
		return nil
	}
}

func (r *replica) change(event string, change func(*registry.Replica), fields ...zap.Field) {
	r.pool.updateReplica(r.request.Index, change)
	r.pool.pools.log.Info(event, r.fields(fields...)...)
}

func (r *replica) fields(more ...zap.Field) []zap.Field {
	return append([]zap.Field{
		zap.String("pool_id", string(r.pool.id)),
		zap.String("replica_id", string(r.request.Replica)),
		zap.Uint64("generation", r.request.Generation),
	}, more...)
}
