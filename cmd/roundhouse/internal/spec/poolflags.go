// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"maps"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// PoolFlags are Flags and what a pool has besides. A flag that was not given leaves what there is; one that was given as 0 has the
// default take its place.
type PoolFlags struct {
	set changed
	// Spec says what runs in the pool.
	Spec Flags
	// PreparedID names something prepared before, in place of Spec.
	PreparedID string
	// Pool is the pool's id.
	Pool string
	// Replicas is the number of engines.
	Replicas uint32
	// Port is the port to serve on.
	Port uint32
	// StartupTimeout limits the start of each engine.
	StartupTimeout time.Duration
	// Policy is what can change without another engine.
	Policy PolicyFlags
}

// changed tells whether a flag of that name was given.
type changed func(name string) bool

// PolicyFlags say when a pool is loaded and how its engines are looked after.
type PolicyFlags struct {
	// Residency is one of the words of residencies.
	Residency string
	// IdleTimeout unloads the pool.
	IdleTimeout time.Duration
	// Priority of the pool when pools come back.
	Priority int32
	// Labels are added to those that there are.
	Labels map[string]string
	// RestartDelay is the first delay, RestartMaxDelay the longest.
	RestartDelay, RestartMaxDelay time.Duration
	// StallLimit is for engines that serve, LoadStallLimit for those that load.
	StallLimit, LoadStallLimit time.Duration
	// NoCanary asks idle engines for nothing.
	NoCanary bool
}

// Register adds the flags to set.
func (f *PoolFlags) Register(set *pflag.FlagSet) {
	f.Spec.Register(set)
	f.set = set.Changed
	set.StringVar(&f.PreparedID, "prepared-id", "", "run what was prepared before as `sha256:HEX`")
	set.StringVar(&f.Pool, "pool", "", "name the pool `NAME`")
	set.Uint32Var(&f.Replicas, "replicas", 0, "run `N` engines (0: 1)")
	set.Uint32Var(&f.Port, "port", 0, "serve on `PORT` of 127.0.0.1 (0, best: each engine picks a free one)")
	set.DurationVar(&f.StartupTimeout, "startup-timeout", 0, "`TIME` that each engine has to get ready (0: the engine's own)")
	p := &f.Policy
	set.StringVar(&p.Residency, "residency", "",
		"`WHEN` it is loaded: pinned (always), ttl (unloaded when idle) or lazy (not by itself after a reboot) (empty: pinned)")
	set.DurationVar(&p.IdleTimeout, "idle-timeout", 0, "unload the pool after `TIME` without a request; ttl needs it, pinned has none")
	set.Int32Var(&p.Priority, "priority", 0, "bring it back before pools of a lower `NUMBER`, -1000 to 1000")
	set.StringToStringVar(&p.Labels, "label", nil, "add label `KEY=VALUE`; repeatable")
	set.DurationVar(&p.RestartDelay, "restart-delay", 0, "wait `TIME` before an engine that failed is started again, longer each time (0: 1s)")
	set.DurationVar(&p.RestartMaxDelay, "restart-max-delay", 0, "never wait longer than `TIME` (0: 60s)")
	set.DurationVar(&p.StallLimit, "stall-limit", 0, "start an engine again that has requests and makes no progress for `TIME` (0: 60s)")
	set.DurationVar(&p.LoadStallLimit, "load-stall-limit", 0, "end a load that does not move for `TIME` (0: 2m)")
	set.BoolVar(&p.NoCanary, "no-canary", false, "never ask an idle engine for a token to see whether it works")
}

// override puts the pool flags that were given over what spec says.
func (f *PoolFlags) override(spec *poolv1.PoolSpec) error {
	if f.Pool != "" {
		spec.PoolId = f.Pool
	}
	if f.set("replicas") {
		spec.Replicas = f.Replicas
	}
	if f.set("port") {
		spec.Port = f.Port
	}
	f.set.override(&spec.StartupTimeout, "startup-timeout", f.StartupTimeout)
	return f.Policy.override(spec, f.set)
}

func (p *PolicyFlags) override(spec *poolv1.PoolSpec, set changed) error {
	if p.Residency != "" {
		residency, err := enumValue("--residency", p.Residency, residencies())
		if err != nil {
			return err
		}
		spec.Residency = residency
		if residency == poolv1.Residency_RESIDENCY_PINNED {
			spec.IdleTimeout = nil
		}
	}
	set.override(&spec.IdleTimeout, "idle-timeout", p.IdleTimeout)
	if set("priority") {
		spec.Priority = p.Priority
	}
	if len(p.Labels) > 0 {
		labels := maps.Clone(spec.GetLabels())
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, p.Labels)
		spec.Labels = labels
	}
	if set("restart-delay") || set("restart-max-delay") {
		if spec.GetRestart() == nil {
			spec.Restart = &poolv1.RestartPolicy{}
		}
		set.override(&spec.Restart.FirstDelay, "restart-delay", p.RestartDelay)
		set.override(&spec.Restart.MaxDelay, "restart-max-delay", p.RestartMaxDelay)
	}
	if set("stall-limit") || set("load-stall-limit") || set("no-canary") {
		if spec.GetHealth() == nil {
			spec.Health = &poolv1.HealthPolicy{}
		}
		set.override(&spec.Health.StallLimit, "stall-limit", p.StallLimit)
		set.override(&spec.Health.LoadStallLimit, "load-stall-limit", p.LoadStallLimit)
		if set("no-canary") {
			spec.Health.NoCanary = p.NoCanary
		}
	}
	return nil
}

// residencies are the words for when a pool is loaded.
func residencies() map[string]poolv1.Residency {
	return map[string]poolv1.Residency{
		"pinned": poolv1.Residency_RESIDENCY_PINNED,
		"ttl":    poolv1.Residency_RESIDENCY_TTL,
		"lazy":   poolv1.Residency_RESIDENCY_LAZY,
	}
}

// override sets target if the flag was given; 0 leaves it to the default.
func (c changed) override(target **durationpb.Duration, name string, d time.Duration) {
	switch {
	case !c(name):
	case d == 0:
		*target = nil
	default:
		*target = durationpb.New(d)
	}
}

// overrideDuration sets target if d is not 0.
func overrideDuration(target **durationpb.Duration, d time.Duration) {
	if d != 0 {
		*target = durationpb.New(d)
	}
}
