// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// manager is one run of the program, from its start to its end or death.
type manager struct {
	world *world
	n     int
	boot  int
	clock time.Duration // how wrong its clock is.
	life  context.Context
	died  chan struct{}
	store *state.Store
	known *registry.Registry
	pools *lifecycle.Pools
	holds []*hold

	booted chan struct{} // closed when it runs, or has failed to.
	ended  chan struct{} // closed when none of its goroutines runs.
	leave  context.CancelFunc

	// Guarded by the world's lock.
	dead     bool
	failed   error // why it does not run.
	running  bool  // what was before it is restored.
	ending   bool  // it was told to end.
	leaving  bool  // and to leave its engines running.
	gone     bool  // it has ended as it was told to.
	buried   bool
	diskStep int // uses of the disk until it dies; 0 means never.
	restored time.Time

	// The driver alone uses these.
	oracle   *oracle
	followed bool
}

func (m *manager) isDead() bool {
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	return m.dead
}

// stepLocked is one use of the disk. It says whether the manager is still there to make it.
func (m *manager) stepLocked() bool {
	if m.dead {
		return false
	}
	if m.diskStep > 0 {
		if m.diskStep--; m.diskStep == 0 {
			m.world.arriveLocked("crash at the disk")
			m.world.dieLocked(m)
			return false
		}
	}
	return true
}

// dieLocked is kill -9 of the manager.
func (w *world) dieLocked(m *manager) {
	if m == nil || m.dead {
		return
	}
	m.dead = true
	close(m.died)
	w.parked = slices.DeleteFunc(w.parked, func(c *call) bool {
		if c.by == m {
			c.release <- false
		}
		return c.by == m
	})
	if w.crashLose {
		w.disk.lose(w.nature)
		w.crashLose = false
	}
}

// start runs a new manager. It belongs to the driver.
func (w *world) start(ctx context.Context) {
	life, leave := context.WithCancel(ctx)
	m := &manager{
		world: w, n: len(w.managers), boot: w.boot, clock: w.clock, life: life, leave: leave,
		died: make(chan struct{}), booted: make(chan struct{}), ended: make(chan struct{}),
	}
	w.manager, w.restartAt = m, time.Time{}
	w.managers = append(w.managers, m)
	w.stats.managers++
	w.note("a manager starts")
	go func() {
		defer close(m.booted)
		err := m.run()
		w.mu.Lock()
		defer w.mu.Unlock()
		m.running, m.failed, m.restored = err == nil, err, time.Now()
		if err != nil {
			w.arriveLocked("the manager does not start")
			w.dieLocked(m)
		}
	}()
}

// run makes a manager of its parts, as the daemon does, and restores what was before.
func (m *manager) run() error {
	if err := m.enter(m.life, "open the state directory"); err != nil {
		return err
	}
	store, err := state.OpenFS("/state", mount{m})
	if err != nil {
		return err
	}
	m.store = store
	now := func() time.Time { return time.Now().Add(m.clock) }
	if m.known, err = registry.New(registry.Config{Now: now}); err != nil {
		return err
	}
	kept := records{Store: store, by: m}
	logger := zap.NewNop()
	launcher, err := launch.New(launch.Config{
		Host: host{m}, Records: kept, Handoff: files{m}, Trust: verifier{m}, Prober: prober{m}, Logs: logs{m}, Logger: logger,
	})
	if err != nil {
		return err
	}
	pools, err := lifecycle.New(m.life, lifecycle.Config{
		Registry: m.known, Preparer: preparer{m}, Machine: machine{launcher}, Records: kept, BootID: bootName(m.boot),
		Now: now, Random: m.world.spread, Logger: logger,
	})
	if err != nil {
		return err
	}
	m.world.mu.Lock()
	m.pools = pools
	m.world.mu.Unlock()
	return pools.Restore(m.life)
}

// spread is a random number that depends on the time alone, whoever asks first.
func (w *world) spread() float64 {
	since := uint64(time.Since(w.began)) ^ w.seed
	since = (since ^ since>>33) * 0xff51afd7ed558ccd
	return float64((since^since>>33)%1000) / 1000
}

// bury ends the goroutines of a manager that has died or was told to end: nothing that they do reaches the world any more.
func (w *world) bury(m *manager) {
	m.buried = true
	go func() {
		defer close(m.ended)
		<-m.booted
		if m.pools != nil {
			if err := m.pools.Close(context.WithoutCancel(m.life), 0); err != nil {
				w.mu.Lock()
				w.violate("G14: nothing waits for ever", "a manager that has died does not end: %v", err)
				w.mu.Unlock()
			}
		}
		m.leave()
	}()
}

// end tells the manager to end, which takes as long as it takes: its engines stay, or are stopped.
func (w *world) end(m *manager, stopEngines bool) { //nolint:revive // flag-parameter: the daemon's own setting is one.
	m.ending, m.leaving = true, !stopEngines
	w.stats.faults["manager ends"]++
	began := time.Now()
	go func() {
		var err error
		if stopEngines {
			err = m.pools.Close(context.WithoutCancel(m.life), 5*time.Second)
		} else {
			err = m.pools.Leave(context.WithoutCancel(m.life))
		}
		if m.enter(context.WithoutCancel(m.life), "the manager has ended") != nil {
			return // It has died before.
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		m.gone = true
		stuck := slices.ContainsFunc(w.starts, func(s *start) bool { return s.stuckTill.After(began) })
		if err != nil && !stuck && !w.diskFaulty() {
			w.violate("a manager ends as it was told to", "%v", err)
		}
		if stopEngines && err == nil && !stuck {
			w.checkClosedLocked()
		}
		w.dieLocked(m)
	}()
}

// afterSettling is what follows when all wait: managers that have died are buried and started anew, watchers are checked.
func (w *world) afterSettling() {
	for _, m := range w.managers {
		if m.dead && !m.buried {
			w.bury(m)
			if w.restartAt.IsZero() {
				wait := time.Duration(w.schedule.IntN(int(3 * time.Second)))
				if w.schedule.IntN(8) == 0 {
					wait *= 100
				}
				if m.failed != nil {
					wait += 5 * time.Second
				}
				w.restartAt = time.Now().Add(wait)
				w.after(wait, "restart", func() {})
			}
		}
	}
	w.check()
}
