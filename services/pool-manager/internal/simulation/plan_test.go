// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// span is how long commands and faults come, in the time of the world.
const span = 12 * time.Minute

// action is one command or fault of a plan.
type action struct {
	index  int
	at     time.Duration
	kind   string
	pool   registry.PoolID
	random uint64
}

func (a *action) String() string {
	return fmt.Sprintf("%d: %s %s at %s", a.index, a.kind, a.pool, a.at)
}

// kinds are what may happen, as often as they are named.
func kinds() []string {
	return []string{
		"preload", "preload", "preload", "preload", "preload and cancel", "drain", "drain", "drain node", "reload", "reload", "reload",
		"cancel", "cancel reload", "delete", "reset",
		"kill engine", "kill engine", "kill engine", "exit zero", "out of memory", "hang", "mute", "bad starts", "bad starts", "ignore term",
		"stuck engine", "daemon child", "crash", "crash", "crash", "crash", "crash at disk", "crash at disk", "lose power", "leave", "close",
		"disk full", "disk sick", "prepare fails", "prepare slow", "clock", "damage", "pid reuse", "thief", "wrong words", "spawn fails",
	}
}

// makePlan is what happens in a run, but for the actions whose indexes are left out.
func makePlan(seed uint64, without []int) []*action {
	random := rand.New(rand.NewPCG(seed, 3))
	all, pools := kinds(), []registry.PoolID{"a", "b", "c"}
	plan := []*action{}
	for i := range 8 + random.IntN(20) {
		a := &action{index: i, at: time.Duration(random.Int64N(int64(span))), kind: all[random.IntN(len(all))], pool: pools[random.IntN(3)], random: random.Uint64()}
		if i < 2 { // A world without pools has little to break.
			a.kind, a.pool, a.at = "preload", pools[i], time.Duration(random.Int64N(int64(20*time.Second)))
		}
		if !slices.Contains(without, i) {
			plan = append(plan, a)
		}
	}
	return plan
}

// faults are what is wrong with the world now.
type faults struct {
	badPool    string
	badStarts  int
	badHow     badStart
	ignoreTerm bool
	wrongWords bool
	spawn      int // how many spawns fail.

	prepareFails, prepareSlow bool
	diskAt                    time.Time // when the disk was last at fault.
}

// wish is what a pool is known to be by its clients.
type wish struct {
	certain bool // false: nobody knows.
	wanted  bool
	busy    int       // commands under way.
	mixed   bool      // some of them were at once.
	poked   time.Time // when somebody last wanted it to start at once.
}

func (w *world) wishOf(id registry.PoolID) *wish {
	if w.pools[id] == nil {
		w.pools[id] = &wish{certain: true}
	}
	return w.pools[id]
}

// specOf is a spec of a pool.
func specOf(id registry.PoolID, random *rand.Rand) registry.Spec {
	model := fmt.Sprintf("model-%d", random.IntN(3))
	s := registry.Spec{
		ID: id, Prepare: &enginev1.PrepareSpec{Engine: &enginev1.EngineSpec{Kind: "some"}, Model: &enginev1.ModelSpec{Id: model}},
		Replicas: 1 + random.IntN(2), Residency: registry.Pinned, Priority: random.IntN(3),
		Restart: supervision.Policy{Breaker: supervision.BreakerPolicy{
			FailedStarts: 3, FailuresInWindow: 6, OpenFor: time.Minute, MaxOpenFor: 4 * time.Minute, CloseAfter: 30 * time.Second,
		}}.WithDefaults(),
		Health: supervision.Health{
			Interval: time.Duration(4+random.IntN(10)) * time.Second, StallLimit: 40 * time.Second, LoadStallLimit: 30 * time.Second,
			CanaryInterval: 2 * time.Minute, CanaryTimeout: 30 * time.Second,
		}.WithDefaults(),
	}
	switch random.IntN(6) {
	case 0:
		s.Residency = registry.Lazy
	case 1:
		s.Residency, s.IdleTimeout = registry.TTL, 3*time.Minute
	}
	if s.Replicas == 1 && random.IntN(4) == 0 {
		s.Port = 9000 + uint16(id[0])
	}
	return s
}

// deadlineOf is how long requests are waited for.
func deadlineOf(random *rand.Rand) time.Duration {
	return []time.Duration{0, 500 * time.Millisecond, 10 * time.Second, time.Minute}[random.IntN(4)]
}

// act does one action. The world's lock is held.
func (w *world) act(ctx context.Context, a *action) {
	random := rand.New(rand.NewPCG(a.random, 4))
	if w.command(ctx, a, random) || w.engineFault(a, random) || w.managerFault(a, random) || w.outerFault(a, random) {
		return
	}
	w.violate("plan", "nobody knows how to %s", a.kind)
}

// command is what a client does. It says whether the action is one.
func (w *world) command(ctx context.Context, a *action, random *rand.Rand) bool {
	one := []registry.PoolID{a.pool}
	switch a.kind {
	case "preload", "preload and cancel":
		w.preload(ctx, a, random)
	case "drain":
		options := lifecycle.DrainOptions{Deadline: deadlineOf(random), GiveUp: random.IntN(5) == 0}
		w.issue(ctx, a, one, leaveAfter(random), func(ctx context.Context, m *manager) (func(), error) {
			seen := w.cutSoFar(a.pool)
			result, err := m.pools.Drain(ctx, a.pool, options, func(lifecycle.DrainProgress) error { return nil })
			return func() { w.drainedLocked(m, a.pool, result, seen) }, err
		})
	case "drain node":
		ids := []registry.PoolID{"a", "b", "c"}
		w.issue(ctx, a, ids, 0, func(ctx context.Context, m *manager) (func(), error) {
			left := map[registry.PoolID]bool{}
			_, err := m.pools.DrainNode(ctx, lifecycle.DrainOptions{Deadline: deadlineOf(random)}, 2, func(d lifecycle.PoolDrained) error {
				left[d.Pool] = d.Failure != nil || d.Result.GaveUp
				return nil
			})
			return func() {
				for _, id := range ids {
					if failed, was := left[id]; was && !failed {
						w.knowLocked(id, false)
					}
				}
			}, err
		})
	case "reload":
		w.reload(ctx, a, random)
	case "cancel":
		w.issue(ctx, a, nil, 0, func(ctx context.Context, m *manager) (func(), error) {
			_, err := m.pools.Cancel(ctx, a.pool)
			return nil, err
		})
	case "cancel reload":
		w.issue(ctx, a, nil, 0, func(ctx context.Context, m *manager) (func(), error) {
			_, err := m.pools.CancelReload(ctx, a.pool)
			return nil, err
		})
	case "delete":
		w.forgive(a.pool)
		w.issue(ctx, a, one, 0, func(_ context.Context, m *manager) (func(), error) {
			return func() { w.knowLocked(a.pool, false) }, m.pools.Delete(a.pool)
		})
	case "reset":
		w.issue(ctx, a, nil, 0, func(_ context.Context, m *manager) (func(), error) {
			_, err := m.pools.ResetBreaker(a.pool)
			return nil, err
		})
	default:
		return false
	}
	return true
}

// leaveAfter is when the caller goes away; 0 is never.
func leaveAfter(random *rand.Rand) time.Duration {
	if random.IntN(4) > 0 {
		return 0
	}
	return time.Duration(random.IntN(5000)) * time.Millisecond
}

func (w *world) preload(ctx context.Context, a *action, random *rand.Rand) {
	spec := specOf(a.pool, random)
	id := ""
	if random.IntN(3) == 0 {
		id = fmt.Sprint("request-", a.index)
	}
	if a.kind == "preload and cancel" {
		w.after(time.Duration(random.IntN(12000))*time.Millisecond, "cancel "+string(a.pool), func() {
			w.issue(ctx, &action{kind: "cancel", pool: a.pool}, nil, 0, func(ctx context.Context, m *manager) (func(), error) {
				_, err := m.pools.Cancel(ctx, a.pool)
				return nil, err
			})
		})
	}
	w.issue(ctx, a, []registry.PoolID{a.pool}, leaveAfter(random), func(ctx context.Context, m *manager) (func(), error) {
		_, known := m.known.Get(a.pool)
		pool, err := m.pools.Preload(ctx, spec, id, func(lifecycle.LoadEvent) error { return nil })
		if err != nil {
			if !known {
				w.mu.Lock()
				w.forgive(a.pool)
				w.mu.Unlock()
			}
			return nil, err
		}
		return func() {
			if pool.State != registry.StateReady && !w.hasJustEnded(a.pool) {
				w.violate("Preload returns a pool that is READY", "%s is %s", a.pool, pool.State)
			}
			w.knowLocked(a.pool, true)
		}, nil
	})
}

// hasJustEnded is whether an engine of the pool has ended a moment ago.
func (w *world) hasJustEnded(id registry.PoolID) bool {
	return slices.ContainsFunc(w.starts, func(s *start) bool {
		return s.command.Pool == string(id) && !s.alive && time.Since(s.endedAt) < 5*time.Second
	})
}

func (w *world) reload(ctx context.Context, a *action, random *rand.Rand) {
	spec := specOf(a.pool, random)
	options := lifecycle.ReloadOptions{DrainDeadline: deadlineOf(random), AcceptOutage: random.IntN(3) == 0}
	if random.IntN(3) == 0 {
		options.Proof = launch.Proof{Prompt: "say gold", Contains: "golden", Timeout: 20 * time.Second}
	}
	change := random.IntN(3)
	w.issue(ctx, a, []registry.PoolID{a.pool}, leaveAfter(random), func(ctx context.Context, m *manager) (func(), error) {
		if now, ok := m.known.Get(a.pool); ok && change == 0 { // A change that may need no other engines.
			again := now.Spec
			again.Priority, again.Replicas = spec.Priority, spec.Replicas
			spec = again
		}
		_, err := m.pools.Reload(ctx, spec, options, func(lifecycle.ReloadEvent) error { return nil })
		return func() { w.knowLocked(a.pool, true) }, err
	})
}

// issue has a client call the manager. What follows from a call that has succeeded is done unless others were under way for the
// same pools; what a call that has not succeeded has come to, nobody knows.
func (w *world) issue(
	ctx context.Context, a *action, ids []registry.PoolID, leave time.Duration, do func(context.Context, *manager) (func(), error),
) {
	m := w.manager
	if m == nil || !m.running || m.dead || m.gone {
		return
	}
	w.stats.commands++
	for _, id := range ids {
		wish := w.wishOf(id)
		wish.busy++
		wish.mixed = wish.mixed || wish.busy > 1
	}
	poked := w.wishOf(a.pool)
	poked.poked = time.Now()
	w.open++
	w.commands.Go(func() {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if leave > 0 {
			time.AfterFunc(leave, cancel)
		}
		then, err := do(ctx, m)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.open--
		poked.poked = time.Now()
		if m.dead { // What a client of a dead manager is told depends on what its goroutines were about.
			w.arriveLocked("%s %s: nobody answers", a.kind, a.pool)
		} else {
			w.arriveLocked("%s %s: %s", a.kind, a.pool, reason.Of(err))
		}
		certain := err == nil && !m.dead
		for _, id := range ids {
			wish := w.wishOf(id)
			certain = certain && !wish.mixed
		}
		for _, id := range ids {
			wish := w.wishOf(id)
			if !certain && changesNothing(err) && !m.dead && !wish.mixed {
				continue
			}
			if !certain {
				wish.certain = false
			}
		}
		if certain && then != nil {
			then()
		}
		for _, id := range ids {
			wish := w.wishOf(id)
			if wish.busy--; wish.busy == 0 {
				wish.mixed = false
			}
		}
	})
}

// changesNothing is whether a call that failed so has left its pool as it was.
func changesNothing(err error) bool {
	switch reason.Of(err) {
	case reason.PoolNotFound, reason.PoolBusy, reason.PoolExists, reason.PoolDraining, reason.PoolUnready, reason.OutageNotAccepted:
		return true
	default:
		return false
	}
}

func (w *world) knowLocked(id registry.PoolID, wanted bool) {
	// What could not be written is tried again, and is lost if the manager dies before.
	w.wishOf(id).certain, w.wishOf(id).wanted = wanted || !w.diskFaulty(), wanted
}
