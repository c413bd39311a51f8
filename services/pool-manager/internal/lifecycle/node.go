// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// defaultParallelDrains is how many pools are drained at once unless a caller says otherwise.
const defaultParallelDrains = 8

// PoolDrained is how the drain of one pool of a node ended.
type PoolDrained struct {
	Pool   registry.PoolID
	Result DrainResult
	// Failure is why it failed; nil if it did not.
	Failure *registry.Failure
}

// NodeDrained is how the drain of a node ended.
type NodeDrained struct {
	Pools       int
	RequestsCut int
	GaveUp      int
	Duration    time.Duration
}

// DrainNode drains every pool, parallel at once (0 means 8), and tells emit of each that was, one at a time. One that fails does
// not stop the others; the error then has the reason StopFailed. If ctx ends, or emit fails, the call returns; drains under
// way go on, and no other begins.
func (p *Pools) DrainNode(ctx context.Context, options DrainOptions, parallel int, emit func(PoolDrained) error) (NodeDrained, error) {
	began := p.config.Now()
	if parallel == 0 {
		parallel = defaultParallelDrains
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pools := p.all()
	slices.SortFunc(pools, func(a, b *pool) int { return strings.Compare(string(a.id), string(b.id)) })
	drained := make(chan PoolDrained, len(pools))
	ended := make(chan error, 1)
	go func() {
		ended <- p.drainAll(ctx, pools, parallel, func(ctx context.Context, pool *pool) error {
			result, err := p.Drain(ctx, pool.id, options, func(DrainProgress) error { return nil })
			if ctx.Err() != nil || reason.Of(err) == reason.PoolNotFound { // The load of one that was not there before is undone.
				return context.Cause(ctx)
			}
			one := PoolDrained{Pool: pool.id, Result: result}
			if err != nil {
				one.Failure = pool.failed(err)
			}
			drained <- one
			return nil
		})
		close(drained)
	}()
	var sum NodeDrained
	var failed []string
	for one := range drained {
		sum.add(one.Result)
		if one.Failure != nil {
			failed = append(failed, string(one.Pool))
		}
		if err := emit(one); err != nil {
			cancel(err)
			return sum, err
		}
	}
	err := <-ended
	sum.Duration = p.config.Now().Sub(began)
	if err == nil && len(failed) > 0 {
		err = reason.New(reason.StopFailed, fmt.Sprintf("%d pools could not be drained: %s", len(failed), strings.Join(failed, ", ")),
			reason.Remedy("see why in each pool's failure, and drain them again"))
	}
	return sum, err
}

func (n *NodeDrained) add(result DrainResult) {
	n.Pools++
	n.RequestsCut += result.RequestsCut
	if result.GaveUp {
		n.GaveUp++
	}
}

// drainAll does something to each pool, parallel at once, and returns when all is done, or what went wrong. Once ctx has ended it
// begins nothing more.
func (p *Pools) drainAll(ctx context.Context, pools []*pool, parallel int, do func(context.Context, *pool) error) error {
	failures := make(chan error, len(pools))
	room := make(chan struct{}, parallel)
	for _, pool := range pools {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			failures <- context.Cause(ctx)
			continue
		}
		go func() {
			defer func() { <-room }()
			failures <- do(ctx, pool)
		}()
	}
	var err error
	for range pools {
		if failure := <-failures; failure != nil && !errors.Is(err, failure) {
			err = errors.Join(err, failure)
		}
	}
	return err
}
