// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// watch looks at an engine that serves until ctx ends or it is hung, which it tells once with the cause. What supervision makes
// of what it sees decides; the pool's policy is read anew each time.
func (r *replica) watch(ctx context.Context, engine Engine, hung chan<- string) {
	health := r.health()
	liveness := supervision.Liveness{}
	observer := r.pool.pools.config.Observer
	timer := time.NewTimer(health.Interval)
	defer timer.Stop()
	canary := make(chan error, 1)
	asked := false
	for {
		var finding supervision.Finding
		select {
		case <-ctx.Done():
			return
		case err := <-canary:
			asked = false
			observer.HealthCheck(canaryResult(err))
			sample := r.sample(ctx, engine)
			liveness, finding = liveness.CanaryDone(limitsOf(health, engine), sample, err)
		case <-timer.C:
			health = r.health()
			sample := r.sample(ctx, engine)
			if sample.Answered {
				observer.HealthCheck("fine")
			} else {
				observer.HealthCheck("unanswered")
			}
			liveness, finding = liveness.Observe(limitsOf(health, engine), sample)
			r.keepOffered(engine)
			timer.Reset(health.Interval)
		}
		if ctx.Err() != nil {
			return
		}
		switch finding.Pulse {
		case supervision.Fine:
		case supervision.AskCanary:
			if !asked {
				asked = true
				limit := health.CanaryTimeout
				r.pool.pools.work.Go(func() {
					asking, cancel := context.WithTimeout(ctx, limit)
					defer cancel()
					canary <- engine.Canary(asking)
				})
			}
		case supervision.Hung:
			hung <- finding.Cause
			return
		}
		r.active(liveness.LastActive())
	}
}

// keepOffered writes the handoff file of an engine that serves if that was not possible before.
func (r *replica) keepOffered(engine Engine) {
	if !r.isReady() {
		return
	}
	if err := engine.Offer(); err != nil {
		r.pool.pools.log.Warn("handoff is not written yet", r.fields(zap.Error(err))...)
	}
	if !r.isReady() { // It was to be withdrawn meanwhile.
		_ = engine.Withdraw() // The end of the engine withdraws it again.
	}
}

func (r *replica) isReady() bool {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	return r.pool.crew[r.index] == r && r.view.State == registry.ReplicaReady
}

func canaryResult(err error) string {
	if err != nil {
		return "canary_failed"
	}
	return "canary_ok"
}

func (r *replica) health() supervision.Health {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	return r.pool.spec.Health
}

func limitsOf(health supervision.Health, engine Engine) supervision.Health {
	health.NoCanary = health.NoCanary || !engine.HasCanary()
	return health
}

func (r *replica) sample(ctx context.Context, engine Engine) supervision.Sample {
	asking, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	activity, err := engine.Activity(asking)
	return supervision.Sample{
		At: r.pool.pools.config.Now(), Answered: err == nil, InFlight: activity.InFlight, Known: err == nil, Counters: activity.Counters,
		HasCounters: activity.HasCounters, CPU: engine.CPU(),
	}
}

// active remembers when the engine had last something to do, and unloads its pool if that is long enough ago for all.
func (r *replica) active(last time.Time) {
	p := r.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if last.After(r.lastActive) {
		r.lastActive = last
	}
	now := p.pools.config.Now()
	if p.spec.IdleTimeout == 0 || !p.wanted || p.draining != nil || p.reloading != nil || p.loading != nil || len(p.retiring) > 0 {
		return
	}
	for _, member := range p.crew {
		if member.engine == nil || now.Sub(member.lastActive) < p.spec.IdleTimeout {
			return
		}
	}
	if len(p.crew) == len(p.views) {
		p.unloadLocked()
	}
}
