// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

var (
	errQuiet   = errors.New("nothing has changed")
	errStalled = errors.New("the reader takes nothing")
)

// Watch tells what pools there are and every change of them.
func (s *Service) Watch(request *poolv1.WatchRequest, stream poolv1.PoolManagerService_WatchServer) error {
	filter := make([]registry.PoolID, len(request.GetPoolIds()))
	for i, id := range request.GetPoolIds() {
		filter[i] = registry.PoolID(id)
	}
	ctx, stop := untilStopping(stream.Context())
	defer stop(nil)
	watcher := s.registry.Watch(request.GetResumeToken(), filter)
	for {
		waiting, cancel := context.WithTimeoutCause(ctx, s.heartbeat, errQuiet)
		events, err := watcher.Next(waiting)
		cancel()
		switch {
		case errors.Is(err, errQuiet):
			err = s.send(stream, []*poolv1.WatchResponse{{
				ResumeToken: watcher.Token(), Event: &poolv1.WatchResponse_Heartbeat{Heartbeat: &poolv1.Heartbeat{}},
			}})
		case err == nil:
			err = s.send(stream, watchEvents(events))
		}
		if err != nil {
			return err
		}
	}
}

// send sends in order. It returns, leaving what it was about to send, when the reader has taken nothing for too long.
func (s *Service) send(stream poolv1.PoolManagerService_WatchServer, messages []*poolv1.WatchResponse) error {
	sent := make(chan error, 1)
	progress := make(chan struct{}, 1)
	go func() { // Ends with the stream, which ends when Watch returns.
		for _, message := range messages {
			if err := stream.Send(message); err != nil {
				sent <- err
				return
			}
			select {
			case progress <- struct{}{}:
			default:
			}
		}
		sent <- nil
	}()
	timer := time.NewTimer(s.stall)
	defer timer.Stop()
	for {
		select {
		case err := <-sent:
			return err
		case <-progress:
			timer.Reset(s.stall)
		case <-timer.C:
			return reason.New(reason.LimitExceeded, "watch ended", reason.Cause(errStalled), reason.Meta("limit", s.stall.String()),
				reason.Remedy("read faster, and resume with the last token"))
		}
	}
}

func watchEvents(events []registry.Event) []*poolv1.WatchResponse {
	messages := make([]*poolv1.WatchResponse, len(events))
	for i, event := range events {
		message := &poolv1.WatchResponse{ResumeToken: event.Token}
		switch event.Kind {
		case registry.EventUpsert:
			message.Event = &poolv1.WatchResponse_Upsert{Upsert: poolOf(event.Pool)}
		case registry.EventDelete:
			message.Event = &poolv1.WatchResponse_Deleted{Deleted: &poolv1.Deleted{PoolId: string(event.ID)}}
		case registry.EventSynced:
			message.Event = &poolv1.WatchResponse_Synced{Synced: &poolv1.Synced{}}
		case registry.EventReset:
			message.Event = &poolv1.WatchResponse_Reset_{Reset_: &poolv1.Reset{}}
		}
		messages[i] = message
	}
	return messages
}
