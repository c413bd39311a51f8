// SPDX-License-Identifier: Apache-2.0

// Package server answers roundhouse.pool.v1.PoolManagerService.
//
// It turns requests into calls of lifecycle and registry, and what they return into messages, and decides nothing else.
// Requests have passed the rules of their proto before they come here.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// Config of a Service. Every field without a default is required.
type Config struct {
	Pools    *lifecycle.Pools
	Registry *registry.Registry
	// Heartbeat is how often a quiet watch shows that it lives; 0 means 15 s.
	Heartbeat time.Duration
	// Stall is how long the reader of a watch may take nothing before its watch is ended; 0 means 30 s, as the contract says.
	Stall time.Duration
}

const (
	// defaultHeartbeat is well below what routers and people take for dead.
	defaultHeartbeat = 15 * time.Second
	defaultStall     = 30 * time.Second
)

// Service is the PoolManagerService. Make one with New.
type Service struct {
	poolv1.UnimplementedPoolManagerServiceServer
	pools     *lifecycle.Pools
	registry  *registry.Registry
	heartbeat time.Duration
	stall     time.Duration
}

// New returns a Service. It starts nothing.
func New(config Config) (*Service, error) {
	if config.Pools == nil || config.Registry == nil {
		return nil, errors.New("server: pools and registry are required")
	}
	if config.Heartbeat < 0 || config.Stall < 0 {
		return nil, fmt.Errorf("server: heartbeat %s or stall %s is negative", config.Heartbeat, config.Stall)
	}
	return &Service{
		pools: config.Pools, registry: config.Registry,
		heartbeat: cmp.Or(config.Heartbeat, defaultHeartbeat), stall: cmp.Or(config.Stall, defaultStall),
	}, nil
}

// Preload makes a pool be what the spec says.
func (s *Service) Preload(request *poolv1.PreloadRequest, stream poolv1.PoolManagerService_PreloadServer) error {
	spec, err := specOf(request.GetSpec())
	if err != nil {
		return err
	}
	pool, err := s.pools.Preload(stream.Context(), spec, request.GetRequestId(), func(event lifecycle.LoadEvent) error {
		if event.Progress != nil {
			return stream.Send(&poolv1.PreloadResponse{Event: &poolv1.PreloadResponse_Progress{Progress: event.Progress}})
		}
		return stream.Send(&poolv1.PreloadResponse{Event: &poolv1.PreloadResponse_Phase{Phase: phaseOf(event.Phase)}})
	})
	if err != nil {
		return err
	}
	return stream.Send(&poolv1.PreloadResponse{Event: &poolv1.PreloadResponse_Pool{Pool: poolOf(pool)}})
}

// CancelPreload cancels the load of a pool.
func (s *Service) CancelPreload(ctx context.Context, request *poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error) {
	cancelled, err := s.pools.Cancel(ctx, registry.PoolID(request.GetPoolId()))
	if err != nil {
		return nil, err
	}
	return &poolv1.CancelPreloadResponse{Cancelled: cancelled}, nil
}

// Drain takes a pool out of service.
func (s *Service) Drain(request *poolv1.DrainRequest, stream poolv1.PoolManagerService_DrainServer) error {
	result, err := s.pools.Drain(stream.Context(), registry.PoolID(request.GetPoolId()), drainOptionsOf(request),
		func(progress lifecycle.DrainProgress) error {
			return stream.Send(&poolv1.DrainResponse{Event: &poolv1.DrainResponse_Progress{Progress: drainProgressOf(progress)}})
		})
	if err != nil {
		return err
	}
	return stream.Send(&poolv1.DrainResponse{Event: &poolv1.DrainResponse_Result{Result: drainResultOf(result)}})
}

// GetPool answers with the newest snapshot of one pool.
func (s *Service) GetPool(_ context.Context, request *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
	pool, err := s.pool(request.GetPoolId())
	if err != nil {
		return nil, err
	}
	return &poolv1.GetPoolResponse{Pool: poolOf(pool)}, nil
}

func (s *Service) pool(id string) (*registry.Pool, error) {
	pool, ok := s.registry.Get(registry.PoolID(id))
	if !ok {
		return nil, reason.New(reason.PoolNotFound, fmt.Sprintf("no pool %q", id), reason.Field("pool_id"),
			reason.Meta("pool_id", id), reason.Remedy("list the pools to see which there are"))
	}
	return pool, nil
}

// DeletePool forgets a pool that has no engine.
func (s *Service) DeletePool(_ context.Context, request *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
	if err := s.pools.Delete(registry.PoolID(request.GetPoolId())); err != nil {
		return nil, err
	}
	return &poolv1.DeletePoolResponse{}, nil
}
