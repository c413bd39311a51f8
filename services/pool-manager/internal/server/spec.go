// SPDX-License-Identifier: Apache-2.0

package server

import (
	"maps"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// specOf reads a spec, fills in its defaults, and refuses what the rules of the proto cannot tell. The error names every field
// at fault.
func specOf(spec *poolv1.PoolSpec) (registry.Spec, error) {
	s := registry.Spec{
		ID:             registry.PoolID(spec.GetPoolId()),
		Prepare:        spec.GetPrepare(),
		PreparedID:     spec.GetPreparedId(),
		Replicas:       max(int(spec.GetReplicas()), 1),
		Port:           uint16(spec.GetPort()),
		StartupTimeout: spec.GetStartupTimeout().AsDuration(),
		Residency:      registry.Residency(spec.GetResidency()),
		IdleTimeout:    spec.GetIdleTimeout().AsDuration(),
		Priority:       int(spec.GetPriority()),
		Labels:         maps.Clone(spec.GetLabels()),
	}
	if s.Residency == 0 {
		s.Residency = registry.Pinned
	}
	restart, health := policyOf(spec.GetRestart()), healthOf(spec.GetHealth())
	if err := together(checkSpec(s), restart.Check(), health.Check()); err != nil {
		return registry.Spec{}, err
	}
	s.Restart, s.Health = restart.WithDefaults(), health.WithDefaults()
	return s, nil
}

func policyOf(p *poolv1.RestartPolicy) supervision.Policy {
	b := p.GetBreaker()
	return supervision.Policy{
		FirstDelay: p.GetFirstDelay().AsDuration(), MaxDelay: p.GetMaxDelay().AsDuration(),
		ImmediateAfter: p.GetImmediateAfter().AsDuration(), ResetAfter: p.GetResetAfter().AsDuration(),
		Breaker: supervision.BreakerPolicy{
			FailedStarts: int(b.GetFailedStarts()), FailuresInWindow: int(b.GetFailuresInWindow()), Window: b.GetWindow().AsDuration(),
			OpenFor: b.GetOpenFor().AsDuration(), MaxOpenFor: b.GetMaxOpenFor().AsDuration(), CloseAfter: b.GetCloseAfter().AsDuration(),
		},
	}
}

func healthOf(h *poolv1.HealthPolicy) supervision.Health {
	return supervision.Health{
		Interval: h.GetInterval().AsDuration(), StallLimit: h.GetStallLimit().AsDuration(),
		LoadStallLimit: h.GetLoadStallLimit().AsDuration(), CanaryInterval: h.GetCanaryInterval().AsDuration(),
		CanaryTimeout: h.GetCanaryTimeout().AsDuration(), NoCanary: h.GetNoCanary(),
	}
}

func specMessage(s registry.Spec) *poolv1.PoolSpec {
	spec := &poolv1.PoolSpec{
		PoolId: string(s.ID), Replicas: uint32(s.Replicas), Port: uint32(s.Port), StartupTimeout: durationOf(s.StartupTimeout),
		Restart: policyMessage(s.Restart), Health: healthMessage(s.Health), Residency: poolv1.Residency(s.Residency),
		IdleTimeout: durationOf(s.IdleTimeout), Priority: int32(s.Priority), Labels: s.Labels,
	}
	switch {
	case s.Prepare != nil:
		spec.Workload = &poolv1.PoolSpec_Prepare{Prepare: s.Prepare}
	case s.PreparedID != "":
		spec.Workload = &poolv1.PoolSpec_PreparedId{PreparedId: s.PreparedID}
	}
	return spec
}

func policyMessage(p supervision.Policy) *poolv1.RestartPolicy {
	b := p.Breaker
	return &poolv1.RestartPolicy{
		FirstDelay: durationOf(p.FirstDelay), MaxDelay: durationOf(p.MaxDelay), ImmediateAfter: durationOf(p.ImmediateAfter),
		ResetAfter: durationOf(p.ResetAfter),
		Breaker: &poolv1.BreakerPolicy{
			FailedStarts: uint32(b.FailedStarts), FailuresInWindow: uint32(b.FailuresInWindow), Window: durationOf(b.Window),
			OpenFor: durationOf(b.OpenFor), MaxOpenFor: durationOf(b.MaxOpenFor), CloseAfter: durationOf(b.CloseAfter),
		},
	}
}

func healthMessage(h supervision.Health) *poolv1.HealthPolicy {
	return &poolv1.HealthPolicy{
		Interval: durationOf(h.Interval), StallLimit: durationOf(h.StallLimit), LoadStallLimit: durationOf(h.LoadStallLimit),
		CanaryInterval: durationOf(h.CanaryInterval), CanaryTimeout: durationOf(h.CanaryTimeout), NoCanary: h.NoCanary,
	}
}

// durationOf leaves out what is 0.
func durationOf(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}
