// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"cmp"
	"context"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// maxStimuli ends a run that does not come to its end.
const maxStimuli = 200_000

// world is everything around the managers: machine, disk, provisioner, clients and time. One goroutine drives it: it waits until
// all others are waiting, and then does one thing.
type world struct {
	seed     uint64
	schedule *rand.Rand // what happens next.
	nature   *rand.Rand // how engines behave.
	began    time.Time
	wake     chan struct{} // a value: a call has come while time passes.

	mu       sync.Mutex // mu guards what follows, against managers that run; the driver itself works while they wait.
	turns    int
	parked   []*call
	arrivals []string // what has happened since the last stimulus, in no order.
	broken   *violation

	disk     *disk
	boot     int
	starts   []*start
	ports    map[uint16]*start
	thieves  map[uint16]bool
	foreign  map[int]uint64 // pids that belong to others, with when they began.
	nextPort uint16
	nextPID  int
	reason   string // of the start that is made now.
	handoffs map[string]handoff.Entry
	logs     map[registry.PoolID]bool

	manager    *manager
	managers   []*manager
	restartAt  time.Time // when the next manager is started; zero if that is not planned.
	clock      time.Duration
	events     []event
	eventCount int

	plan      []*action
	faults    faults
	pools     map[registry.PoolID]*wish
	commands  sync.WaitGroup
	open      int // commands under way.
	watchers  []*watcher
	crashIn   int  // calls until the manager dies; 0 means never.
	crashLose bool // it then takes what was not synced with it.

	over    context.Context //nolint:containedctx // One that has ended, for asking without waiting.
	tracing bool
	closing bool // no manager is to follow.
	stirred bool // something was begun since all have waited.
	history []string
	sum     hash.Hash64
	stats   stats
}

// violation is a promise that was broken.
type violation struct{ promise, detail string }

func (v *violation) String() string { return v.promise + ": " + v.detail }

// stats are what a run has done.
type stats struct {
	stimuli, commands, managers, starts int
	faults                              map[string]int
	simulated                           time.Duration
}

// event is something that the world does by itself at a time.
type event struct {
	at   time.Time
	seq  int
	what string
	do   func()
}

// call is a call of a manager into the world that has not happened yet.
type call struct {
	key     string
	by      *manager
	seq     int
	release chan bool // true: it happens.
}

func newWorld(ctx context.Context, seed uint64) *world {
	over, end := context.WithCancel(ctx)
	end()
	w := &world{
		seed: seed, schedule: rand.New(rand.NewPCG(seed, 1)), nature: rand.New(rand.NewPCG(seed, 2)), began: time.Now(),
		wake: make(chan struct{}, 1), disk: newDisk(), boot: 1, ports: map[uint16]*start{}, thieves: map[uint16]bool{},
		foreign: map[int]uint64{}, nextPort: 40000, nextPID: 100, handoffs: map[string]handoff.Entry{},
		logs: map[registry.PoolID]bool{}, pools: map[registry.PoolID]*wish{}, sum: fnv.New64a(),
		stats: stats{faults: map[string]int{}}, over: over,
	}
	return w
}

// violate remembers the first promise that was broken.
func (w *world) violate(promise, format string, args ...any) {
	if w.broken == nil {
		w.broken = &violation{promise: promise, detail: fmt.Sprintf(format, args...)}
	}
}

// note adds to the history.
func (w *world) note(what string) {
	_, _ = w.sum.Write([]byte(what))
	var at [8]byte
	since := time.Since(w.began)
	for i := range at {
		at[i] = byte(since >> (8 * i))
	}
	_, _ = w.sum.Write(at[:])
	if w.tracing {
		w.history = append(w.history, fmt.Sprintf("%14s  %s", since, what))
	}
}

// arrive tells the driver of something that has come about among the managers' goroutines. The world's lock is held.
func (w *world) arriveLocked(format string, args ...any) {
	w.arrivals = append(w.arrivals, fmt.Sprintf(format, args...))
}

// at has something happen by itself after a time. The world's lock is held, or the driver calls.
func (w *world) after(d time.Duration, what string, do func()) {
	w.eventCount++
	e := event{at: time.Now().Add(d), seq: w.eventCount, what: what, do: do}
	i, _ := slices.BinarySearchFunc(w.events, e, func(a, b event) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.seq, b.seq)) })
	w.events = slices.Insert(w.events, i, e)
}

// enter is how a manager comes into the world: it waits until the driver lets the call happen. It returns an error if the call
// does not, because the manager has died or ctx has ended.
func (m *manager) enter(ctx context.Context, format string, args ...any) error {
	w := m.world
	c := &call{key: fmt.Sprintf(format, args...), by: m, release: make(chan bool, 1)}
	w.mu.Lock()
	if m.dead {
		w.mu.Unlock()
		return errCrashed
	}
	c.seq = len(w.parked)
	w.parked = append(w.parked, c)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
	select {
	case happens := <-c.release:
		if !happens {
			return errCrashed
		}
		return nil
	case <-ctx.Done():
		w.mu.Lock()
		defer w.mu.Unlock()
		if i := slices.Index(w.parked, c); i >= 0 {
			w.parked = slices.Delete(w.parked, i, i+1)
			return context.Cause(ctx)
		}
		if !<-c.release {
			return errCrashed
		}
		return nil
	}
}

// settle waits until nobody but the driver has anything to do.
func (w *world) settle() {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	slices.Sort(w.arrivals)
	for _, what := range w.arrivals {
		w.note(what)
	}
	w.arrivals = w.arrivals[:0]
	slices.SortStableFunc(w.parked, func(a, b *call) int { return strings.Compare(a.key, b.key) })
	select {
	case <-w.wake:
	default:
	}
}

// handOver ends the turn of the driver: what it has looked at without the lock while all others waited, they may change now.
func (w *world) handOver() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turns++
}

// pass lets time pass, until something calls.
func (w *world) pass(d time.Duration) {
	if d <= 0 {
		return
	}
	w.handOver()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.wake:
	case <-timer.C:
	}
}

// drive does one thing after another until done says so, a promise is broken, or it is late.
func (w *world) drive(until time.Time, done func() bool) bool {
	for {
		w.settle()
		w.afterSettling()
		if w.stats.stimuli++; w.stats.stimuli > maxStimuli {
			w.violate("progress", "the run has not ended after %d stimuli", maxStimuli)
		}
		switch {
		case w.broken != nil:
			return false
		case done():
			return true
		case !time.Now().Before(until):
			return false
		case w.stirred: // What was begun comes to where it waits first.
			w.stirred = false
		default:
			w.stimulus(until)
		}
	}
}

// stimulus does one thing.
func (w *world) stimulus(until time.Time) {
	now := time.Now()
	n := len(w.parked)
	switch {
	case len(w.events) > 0 && !w.events[0].at.After(now) && (n == 0 || w.schedule.IntN(3) == 0):
		next := w.events[0]
		w.events = slices.Delete(w.events, 0, 1)
		w.note(next.what)
		w.mu.Lock()
		next.do()
		w.mu.Unlock()
	case n > 0 && w.schedule.IntN(24) > 0:
		w.release(w.schedule.IntN(n))
	default:
		if n == 0 {
			w.checkStill()
		}
		limit := until.Sub(now)
		if n > 0 { // What was called takes its time.
			limit = min(limit, time.Duration(1+w.schedule.IntN(400))*time.Millisecond+time.Duration(w.schedule.IntN(1000)))
		}
		if len(w.events) > 0 {
			limit = min(limit, max(w.events[0].at.Sub(now), 1))
		}
		w.pass(limit)
	}
}

// release lets one call happen, or has the manager die instead.
func (w *world) release(i int) {
	c := w.parked[i]
	if w.crashIn > 0 {
		if w.crashIn--; w.crashIn == 0 {
			w.note("crash instead of " + c.key)
			w.mu.Lock()
			w.dieLocked(w.manager)
			w.mu.Unlock()
			return
		}
	}
	w.note(c.key)
	w.mu.Lock()
	defer w.mu.Unlock()
	// Calls that cannot be told apart happen together: which of them comes first is nothing that a seed could decide.
	w.parked = slices.DeleteFunc(w.parked, func(other *call) bool {
		same := other.key == c.key && other.by == c.by
		if same {
			other.release <- true
		}
		return same
	})
}
