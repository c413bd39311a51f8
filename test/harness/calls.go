// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// callLimit is how long one call may take: a download and a build from source included.
const callLimit = 20 * time.Minute

// Load is what a Preload has told.
type Load struct {
	Phases   []poolv1.LoadPhase
	Progress Progress
	// Pool is the result; nil after an error.
	Pool *poolv1.Pool
	Err  error
}

// Progress is what a Prepare has told, by step.
type Progress struct {
	// Steps are the ids of the steps in the order of their begin.
	Steps []string
	// Last is the newest state of each step.
	Last map[string]*enginev1.Step
	// Statuses are all statuses of each step in the order of their coming.
	Statuses map[string][]*enginev1.Status
	// Logs is all output of each step.
	Logs map[string]string
}

func (p *Progress) add(event *enginev1.Progress) {
	if p.Last == nil {
		p.Last, p.Statuses, p.Logs = map[string]*enginev1.Step{}, map[string][]*enginev1.Status{}, map[string]string{}
	}
	switch e := event.GetEvent().(type) {
	case *enginev1.Progress_Step:
		if p.Last[e.Step.GetId()] == nil {
			p.Steps = append(p.Steps, e.Step.GetId())
		}
		p.Last[e.Step.GetId()] = e.Step
	case *enginev1.Progress_Status:
		p.Statuses[e.Status.GetStepId()] = append(p.Statuses[e.Status.GetStepId()], e.Status)
	case *enginev1.Progress_Log:
		p.Logs[e.Log.GetStepId()] += string(e.Log.GetData())
	}
}

// Cached tells whether every step was done already.
func (p *Progress) Cached() bool {
	for _, step := range p.Last {
		if !step.GetCached() {
			return false
		}
	}
	return len(p.Last) > 0
}

// Preload calls Preload and returns when the stream has ended.
func (n *Node) Preload(ctx context.Context, request *poolv1.PreloadRequest) Load {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var load Load
	stream, err := n.Pools.Preload(ctx, request)
	if err != nil {
		load.Err = err
		return load
	}
	load.Err = drainStream(stream, func(message *poolv1.PreloadResponse) {
		switch event := message.GetEvent().(type) {
		case *poolv1.PreloadResponse_Phase:
			load.Phases = append(load.Phases, event.Phase)
		case *poolv1.PreloadResponse_Progress:
			load.Progress.add(event.Progress)
		case *poolv1.PreloadResponse_Pool:
			load.Pool = event.Pool
		}
	})
	return load
}

// MustPreload is Preload of a spec that must get READY.
func (n *Node) MustPreload(tb testing.TB, spec *poolv1.PoolSpec) *poolv1.Pool {
	tb.Helper()
	load := n.Preload(tb.Context(), &poolv1.PreloadRequest{Spec: spec})
	if load.Err != nil || load.Pool.GetState() != poolv1.PoolState_POOL_STATE_READY {
		tb.Fatalf("Preload of %s = %v, %v; want a pool that is READY", spec.GetPoolId(), load.Pool, load.Err)
	}
	return load.Pool
}

// Drained is what a Drain has told.
type Drained struct {
	Progress []*poolv1.DrainProgress
	// Result is nil after an error.
	Result *poolv1.DrainResult
	Err    error
}

// Drain calls Drain and returns when the stream has ended.
func (n *Node) Drain(ctx context.Context, request *poolv1.DrainRequest) Drained {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var drained Drained
	stream, err := n.Pools.Drain(ctx, request)
	if err != nil {
		drained.Err = err
		return drained
	}
	drained.Err = drainStream(stream, func(message *poolv1.DrainResponse) {
		switch event := message.GetEvent().(type) {
		case *poolv1.DrainResponse_Progress:
			drained.Progress = append(drained.Progress, event.Progress)
		case *poolv1.DrainResponse_Result:
			drained.Result = event.Result
		}
	})
	return drained
}

// Prepared is what a Prepare has told.
type Prepared struct {
	Progress Progress
	// Engine is the result; nil after an error.
	Engine *enginev1.PreparedEngine
	Err    error
}

// Prepare calls Prepare and returns when the stream has ended. Told, unless nil, gets each message as it comes.
func (n *Node) Prepare(ctx context.Context, spec *enginev1.PrepareSpec, told func(*provisionerv1.PrepareResponse)) Prepared {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var prepared Prepared
	stream, err := n.Prepares.Prepare(ctx, &provisionerv1.PrepareRequest{Spec: spec})
	if err != nil {
		prepared.Err = err
		return prepared
	}
	prepared.Err = drainStream(stream, func(message *provisionerv1.PrepareResponse) {
		switch event := message.GetEvent().(type) {
		case *provisionerv1.PrepareResponse_Progress:
			prepared.Progress.add(event.Progress)
		case *provisionerv1.PrepareResponse_Prepared:
			prepared.Engine = event.Prepared
		}
		if told != nil {
			told(message)
		}
	})
	return prepared
}

// MustPrepare is Prepare of a spec that must succeed.
func (n *Node) MustPrepare(tb testing.TB, spec *enginev1.PrepareSpec) *enginev1.PreparedEngine {
	tb.Helper()
	prepared := n.Prepare(tb.Context(), spec, nil)
	if prepared.Err != nil {
		tb.Fatalf("Prepare: %v", prepared.Err)
	}
	return prepared.Engine
}

// Logs is the output of a pool's first replica, as far as it is kept.
func (n *Node) Logs(tb testing.TB, pool string) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), Patience)
	defer cancel()
	stream, err := n.Pools.Logs(ctx, &poolv1.LogsRequest{PoolId: pool})
	if err != nil {
		tb.Fatalf("Logs of %s: %v", pool, err)
	}
	var text []byte
	if err := drainStream(stream, func(message *poolv1.LogsResponse) { text = append(text, message.GetData()...) }); err != nil {
		tb.Fatalf("Logs of %s: %v", pool, err)
	}
	return string(text)
}

// GetPool is the newest snapshot of a pool.
func (n *Node) GetPool(tb testing.TB, id string) *poolv1.Pool {
	tb.Helper()
	answer, err := n.Pools.GetPool(tb.Context(), &poolv1.GetPoolRequest{PoolId: id})
	if err != nil {
		tb.Fatalf("GetPool %s: %v", id, err)
	}
	return answer.GetPool()
}

// PoolIDs are the ids of all pools.
func (n *Node) PoolIDs(tb testing.TB) []string {
	tb.Helper()
	answer, err := n.Pools.ListPools(tb.Context(), &poolv1.ListPoolsRequest{})
	if err != nil {
		tb.Fatalf("ListPools: %v", err)
	}
	ids := []string{}
	for _, pool := range answer.GetPools() {
		ids = append(ids, pool.GetPoolId())
	}
	return ids
}

// drainStream hands every message to fn until the stream has ended. It returns nil for a good end.
func drainStream[T any](stream grpc.ServerStreamingClient[T], fn func(*T)) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		fn(message)
	}
}

// Await returns what comes from a channel, and fails the test if nothing comes for long.
func Await[T any](tb testing.TB, what string, from <-chan T) T {
	tb.Helper()
	timer := time.NewTimer(2 * Patience)
	defer timer.Stop()
	select {
	case got := <-from:
		return got
	case <-timer.C:
		tb.Fatalf("not within %v: %s", 2*Patience, what)
		panic("unreachable")
	}
}
