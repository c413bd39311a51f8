// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/enginelog"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// maxLogMessage is the most of a log that one message carries, in bytes.
const maxLogMessage = 64 << 10

// Logs gives the output of one replica's newest process.
func (s *Service) Logs(request *poolv1.LogsRequest, stream poolv1.PoolManagerService_LogsServer) error {
	pool, err := s.pool(request.GetPoolId())
	if err != nil {
		return err
	}
	replica, err := logOf(pool, int(request.GetReplica()))
	if err != nil {
		return err
	}
	offset := request.GetOffset()
	if start, ok := request.GetStart().(*poolv1.LogsRequest_TailLines); ok {
		offset, err = enginelog.TailOffset(replica.LogPath, int(start.TailLines))
	}
	if err != nil {
		return logError(request.GetPoolId(), err)
	}
	out := &logWriter{stream: stream, generation: replica.Generation}
	offset, err = enginelog.Read(stream.Context(), replica.LogPath, offset, out.line)
	if err == nil {
		err = out.flush()
	}
	if err == nil && (request.GetFollow() || isOver(replica)) { // Of a process that is over, following gives the rest.
		err = s.follow(stream.Context(), pool.Spec.ID, replica, offset, out)
	}
	return logError(request.GetPoolId(), err)
}

func logOf(pool *registry.Pool, index int) (registry.Replica, error) {
	if index >= len(pool.Replicas) {
		return registry.Replica{}, reason.New(reason.InvalidParams, fmt.Sprintf("pool %s has no replica %d", pool.Spec.ID, index),
			reason.Field("replica"), reason.Remedy(fmt.Sprintf("it has %d, counted from 0", len(pool.Replicas))))
	}
	replica := pool.Replicas[index]
	if replica.LogPath == "" {
		return registry.Replica{}, reason.New(reason.PoolUnready, fmt.Sprintf("replica %s was never started", replica.ID),
			reason.Meta("pool_id", string(pool.Spec.ID)), reason.Remedy("call again when it is LOADING"))
	}
	return replica, nil
}

// follow goes on with a log until its process has ended, or the caller or the service wants to end.
func (s *Service) follow(ctx context.Context, pool registry.PoolID, replica registry.Replica, offset int64, out *logWriter) error {
	ctx, stop := untilStopping(ctx)
	defer stop(nil)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		s.awaitEnd(ctx, pool, replica)
		stop(errEnded)
	}()
	err := enginelog.Follow(ctx, replica.LogPath, offset, func(line enginelog.Line) error {
		return errors.Join(out.line(line), out.flush())
	})
	stop(nil)
	<-watching
	if err == nil && !errors.Is(context.Cause(ctx), errEnded) {
		err = context.Cause(ctx)
	}
	return err
}

// errEnded ends the following of a log whose process has ended.
var errEnded = errors.New("the process has ended")

// awaitEnd returns when the start that a log belongs to is over, or ctx ends.
func (s *Service) awaitEnd(ctx context.Context, id registry.PoolID, replica registry.Replica) {
	watcher := s.registry.Watch("", []registry.PoolID{id})
	for {
		pool, ok := s.registry.Get(id)
		if !ok || replica.Index >= len(pool.Replicas) {
			return
		}
		now := pool.Replicas[replica.Index]
		if now.Generation != replica.Generation || isOver(now) {
			return
		}
		if _, err := watcher.Next(ctx); err != nil {
			return
		}
	}
}

// isOver tells whether a replica has no process any more, so that its log is complete.
func isOver(replica registry.Replica) bool {
	return replica.State == registry.ReplicaStopped || replica.State == registry.ReplicaFailed
}

func logError(pool string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return reason.New(reason.PoolUnready, fmt.Sprintf("the log of pool %s is gone", pool), reason.Meta("pool_id", pool),
			reason.Remedy("call again; if it is still gone, the next start of the pool writes a new one"))
	default:
		return err
	}
}

// logWriter gathers lines into messages.
type logWriter struct {
	stream     poolv1.PoolManagerService_LogsServer
	generation uint64
	message    *poolv1.LogsResponse
}

func (w *logWriter) line(line enginelog.Line) error {
	if m := w.message; m != nil {
		// What a cut line has more would put the offsets of all behind it in the wrong.
		adjoins := line.Offset == m.GetOffset()+int64(len(m.GetData()))
		if line.Gap || !adjoins || len(m.GetData())+len(line.Text) >= maxLogMessage {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	if w.message == nil {
		w.message = &poolv1.LogsResponse{Offset: line.Offset, Gap: line.Gap, Generation: w.generation}
	}
	w.message.Data = append(append(w.message.Data, line.Text...), '\n')
	return nil
}

func (w *logWriter) flush() error {
	if w.message == nil {
		return nil
	}
	message := w.message
	w.message = nil
	return w.stream.Send(message)
}
