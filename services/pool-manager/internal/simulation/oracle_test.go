// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// durable decodes a record of what would be on the disk after a loss of power; false if there is none.
func durable[T any](w *world, dir, name string) (T, bool) {
	var envelope struct {
		Record T `json:"record"`
	}
	folder := w.disk.at(dir)
	if folder == nil || folder.durable[name] == nil {
		return envelope.Record, false
	}
	err := json.Unmarshal(folder.durable[name].synced, &envelope)
	return envelope.Record, err == nil
}

// checkSpawnLocked is asked before a process is made.
func (w *world) checkSpawnLocked(c process.Command) {
	index := c.Replica[strings.LastIndex(c.Replica, "-")+1:]
	record, ok := durable[state.Record](w, "/state/replicas", fmt.Sprintf("%s-%s-g%d.json", c.Pool, index, c.Generation))
	if !ok || record.Identity.Nonce != c.Nonce {
		w.violate("G1: a record is durable before its spawn", "%s g%d is spawned without", c.Replica, c.Generation)
	}
	var last *start
	for _, s := range w.starts {
		if s.command.Replica != c.Replica || s.boot != w.boot {
			continue
		}
		last = s
		if s.goneLocked() {
			continue
		}
		if s.command.Generation == c.Generation || record.StartedBy != "reload" && !w.isBeside(s) && !w.isOfReload(c) {
			w.violate("G1: one live process of a replica", "%s g%d is spawned by %s while g%d lives", c.Replica, c.Generation, record.StartedBy, s.command.Generation)
		}
	}
	if since := w.drainingSince(registry.PoolID(c.Pool)); !since.IsZero() && record.CreatedAt.After(since) && record.StartedBy != "reload" {
		w.violate("nothing is started while its pool is drained", "%s g%d, drained since %s", c.Replica, c.Generation, since)
	}
	if last != nil && record.StartedBy == "restart" {
		w.checkDelay(last)
	}
	w.reason = record.StartedBy
}

// isOfCrew is whether a start is the one that its pool has now in that place.
func isOfCrew(pool *registry.Pool, s *start) bool {
	return slices.ContainsFunc(pool.Replicas, func(view registry.Replica) bool {
		return string(view.ID) == s.command.Replica && view.Generation == s.command.Generation
	})
}

// isBeside is whether a start is one of the two that a reload has at once: one that is to take over, or one that retires.
func (w *world) isBeside(s *start) bool { return w.isOfReload(s.command) }

func (w *world) isOfReload(c process.Command) bool {
	pool, ok := w.manager.known.Get(registry.PoolID(c.Pool))
	if !ok {
		return false
	}
	beside := slices.Clone(pool.Retiring)
	if pool.Reload != nil {
		beside = append(beside, pool.Reload.Candidates...)
	}
	return slices.ContainsFunc(beside, func(view registry.Replica) bool {
		return string(view.ID) == c.Replica && view.Generation == c.Generation
	})
}

func (w *world) drainingSince(id registry.PoolID) time.Time {
	if w.manager.oracle == nil {
		return time.Time{}
	}
	return w.manager.oracle.draining[id]
}

// checkDelay is asked before a replica is started again, of which last was the last start.
func (w *world) checkDelay(last *start) {
	wish := w.wishOf(registry.PoolID(last.command.Pool))
	failed, gpu := 0, 0 // What the device has broken is counted apart.
	for _, s := range slices.Backward(w.starts) {
		if s.command.Replica != last.command.Replica {
			continue
		}
		if s.by != w.manager || s.alive || s.reason == "reload" || s.reason == "preload" || wish.poked.After(s.began) || !s.readyAt.IsZero() || s.signalledBy != nil && s.how.bad == goodStart {
			break
		}
		failed++
		if s.how.bad == gpuFault && s.exit.Code == 1 {
			gpu++
		}
	}
	if failed == 0 || wish.busy > 0 {
		return
	}
	least := min(time.Second<<(failed-1), time.Minute) * 9 / 10
	if gpu >= 3 || failed-gpu >= 3 {
		least = time.Minute
	}
	if gap := time.Since(last.endedAt); gap < least {
		w.violate("G8: restarts wait", "%s is started again after %s, although %d starts in a row have failed", last.name(), gap, failed)
	}
}

// checkSignalLocked is asked before the first signal to a start.
func (w *world) checkSignalLocked(m *manager, s *start) {
	id := registry.PoolID(s.command.Pool)
	if m.known != nil {
		pool, there := m.known.Get(id)
		s.drained = there && pool.State == registry.StateDraining && pool.Reload == nil && !w.isBeside(s)
	}
	if !s.alive || s.hung || s.how.bad != goodStart || m.known == nil || s.stray {
		return
	}
	if m.leaving {
		w.checkLeaving(m, s)
	}
	if !s.ready {
		return
	}
	if entry := w.handoffs[s.command.Replica]; entry.PID == s.pid && !w.diskFaulty() {
		pool, ok := m.known.Get(id)
		if !ok || pool.State != registry.StateLoading {
			w.violate("nothing that is offered is told to end", "%s", s.name())
		}
	}
	if m.ending && !m.leaving {
		return
	}
	pool, ok := m.known.Get(id)
	if !ok || !m.running {
		w.checkLeftover(s)
		return
	}
	if pool.State == registry.StateDraining && pool.Reload == nil && !w.diskFaulty() && isOfCrew(pool, s) {
		record, there := durable[state.PoolRecord](w, "/state/pools", string(id)+".json")
		if there && record.Wanted {
			w.violate("a drain is durable before it stops anything", "%s is told to end while its pool is to serve", s.name())
		}
		return
	}
	if !pool.Wanted || pool.Reload != nil || pool.State == registry.StateDraining || w.wishOf(id).busy > 0 {
		return
	}
	for _, view := range pool.Replicas {
		if string(view.ID) == s.command.Replica && view.Generation == s.command.Generation && view.Started.Before(time.Now()) {
			w.violate("an engine that serves is not interrupted", "%s of pool %s, which is %s", s.name(), id, pool.State)
		}
	}
}

// checkLeaving is asked before a start is ended while a manager leaves its engines running.
func (w *world) checkLeaving(m *manager, s *start) {
	pool, ok := m.known.Get(registry.PoolID(s.command.Pool))
	if !ok || !pool.Wanted || pool.Reload != nil || pool.State == registry.StateDraining {
		return
	}
	for _, view := range pool.Replicas {
		record, recorded := durable[state.Record](w, "/state/replicas", fmt.Sprintf("%s-g%d.json", view.ID, view.Generation))
		if string(view.ID) == s.command.Replica && view.Generation == s.command.Generation && recorded && record.Phase != state.Intended {
			w.violate("G4: a manager that leaves stops no engine", "%s of pool %s", s.name(), pool.Spec.ID)
		}
	}
}

// checkLeftover is asked before a start is ended while what was before is restored.
func (w *world) checkLeftover(s *start) {
	index := s.command.Replica[strings.LastIndex(s.command.Replica, "-")+1:]
	pool, known := durable[state.PoolRecord](w, "/state/pools", s.command.Pool+".json")
	record, recorded := durable[state.Record](w, "/state/replicas", fmt.Sprintf("%s-%s-g%d.json", s.command.Pool, index, s.command.Generation))
	if !known || !recorded || record.Phase == state.Intended || !pool.Wanted || pool.Edition != record.Edition || record.Replica >= len(pool.Replicas) || w.wishOf(registry.PoolID(s.command.Pool)).busy > 0 {
		return
	}
	for _, other := range w.starts { // The newest start of a replica is the one that is taken over.
		if other.command.Replica == s.command.Replica && other.seq > s.seq && other.boot == s.boot {
			return
		}
	}
	w.violate("G4: adoption never interrupts", "%s is told to end at the start of a manager", s.name())
}

// cutSoFar is how many requests each start of a pool has lost.
func (w *world) cutSoFar(id registry.PoolID) map[int]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	seen := map[int]bool{}
	for _, s := range w.starts {
		if s.command.Pool == string(id) && s.signalledBy != nil {
			seen[s.seq] = true
		}
	}
	return seen
}

// drainedLocked is asked when a drain has ended. Starts that were told to end before it are in seen.
func (w *world) drainedLocked(m *manager, id registry.PoolID, result lifecycle.DrainResult, seen map[int]bool) {
	if result.GaveUp {
		return
	}
	w.knowLocked(id, false)
	cut, unsure := 0, false
	for _, s := range w.starts {
		if s.command.Pool != string(id) {
			continue
		}
		if !s.goneLocked() && !s.stray {
			w.violate("G9: a drain proves that all is gone", "%s lives after it", s.name())
		}
		if s.signalledBy == m && !seen[s.seq] && s.drained {
			cut += s.cut
			unsure = unsure || s.hung
		}
	}
	if !unsure && !result.Forced && cut > 0 {
		w.violate("a drain that was not forced cuts nothing", "pool %s: %d requests", id, cut)
	}
	if !unsure && cut > 0 && result.RequestsCut < cut {
		w.violate("cut requests are counted", "pool %s: %d were cut, told %d", id, cut, result.RequestsCut)
	}
}

// oracle watches a manager as a client does, and checks what it is told.
type oracle struct {
	watcher  *registry.Watcher
	begun    bool
	revision uint64
	draining map[registry.PoolID]time.Time
}

// check looks at what has changed since the last stimulus.
func (w *world) check() {
	m := w.manager
	if m == nil || m.pools == nil || m.dead || w.broken != nil {
		return
	}
	if m.oracle == nil {
		m.oracle = &oracle{watcher: m.known.Watch("", nil), draining: map[registry.PoolID]time.Time{}}
	}
	if m.running && !m.oracle.begun {
		m.oracle.begun = true
		for _, s := range w.starts {
			if _, known := m.known.Get(registry.PoolID(s.command.Pool)); !known {
				s.forgiven = true // What a load has left that was cut short before its pool was owned.
			}
		}
	}
	events, _ := m.oracle.watcher.Next(w.over) // Whose context has ended: it never waits.
	for _, e := range events {
		switch e.Kind {
		case registry.EventUpsert:
			if e.Pool.Revision <= m.oracle.revision {
				w.violate("Watch is ordered", "revision %d after %d", e.Pool.Revision, m.oracle.revision)
			}
			m.oracle.revision = e.Pool.Revision
			w.checkPool(m, e.Pool)
		case registry.EventDelete:
			delete(m.oracle.draining, e.ID)
			w.forgive(e.ID) // Its starts are forgotten with it.
		case registry.EventSynced:
		case registry.EventReset:
			w.violate("Watch goes on", "a watcher that was never away was reset")
		}
	}
}

// checkPool checks a snapshot.
func (w *world) checkPool(m *manager, pool *registry.Pool) {
	id := pool.Spec.ID
	if pool.State == registry.StateDraining && pool.Reload == nil {
		if m.oracle.draining[id].IsZero() {
			m.oracle.draining[id] = time.Now()
		}
	} else {
		delete(m.oracle.draining, id)
	}
	ready := 0
	for _, view := range pool.Replicas {
		if view.State == registry.ReplicaReady {
			ready++
			w.checkReady(m, pool, view)
		}
	}
	if pool.State == registry.StateReady && ready < len(pool.Replicas) {
		w.violate("READY means every replica", "pool %s: %d of %d", id, ready, len(pool.Replicas))
	}
}

// checkReady checks a replica that is said to be READY.
func (w *world) checkReady(m *manager, pool *registry.Pool, view registry.Replica) {
	for _, s := range slices.Backward(w.starts) {
		if s.pid != view.PID || s.boot != m.boot {
			continue
		}
		want := pool.Spec.Prepare.GetModel().GetId()
		right := s.command.Replica == string(view.ID) && s.command.Generation == view.Generation && !s.readyAt.IsZero()
		if !right || s.alive && (s.model != want || view.Endpoint != "http://"+endpointOf(s.port).String()) {
			w.violate("G6: READY is proven", "%s is READY with model %s at %d, want %s", view.ID, s.model, s.port, want)
		}
		s.proven = true
		return
	}
	w.violate("G6: READY is proven", "%s is READY as process %d, which never was", view.ID, view.PID)
}

// checkStill is asked when nobody has anything to do but to wait.
func (w *world) checkStill() {
	m := w.manager
	if m == nil || !m.running || m.dead || m.ending || time.Since(m.restored) < time.Minute {
		return
	}
	for _, s := range w.starts {
		if s.alive && !s.stray && !s.stillAt.IsZero() && s.signalledBy == nil && time.Since(s.stillAt) > time.Minute && time.Since(m.restored) > 2*time.Minute {
			w.violate("a load that stalls is ended", "%s stands still since %s", s.name(), time.Since(s.stillAt))
		}
	}
	if w.diskFaulty() {
		return
	}
	for _, pool := range m.known.List() {
		if pool.State != registry.StateReady || pool.Reload != nil {
			continue
		}
		for _, view := range pool.Replicas {
			if entry := w.handoffs[string(view.ID)]; entry.PID != view.PID {
				w.violate("a READY replica is offered", "%s is process %d, offered is %d", view.ID, view.PID, entry.PID)
			}
		}
	}
}

// settled is whether nothing is about to change any more, and why not.
func (w *world) settled() string {
	m := w.manager
	if m == nil || !m.running || m.dead || m.gone {
		return "no manager runs"
	}
	if w.open > 0 {
		return fmt.Sprintf("%d commands are under way", w.open)
	}
	serving := map[string]uint64{}
	for _, pool := range m.known.List() {
		if why := w.settledPool(pool); why != "" {
			return why
		}
		for _, view := range pool.Replicas {
			if view.State == registry.ReplicaReady {
				serving[string(view.ID)] = view.Generation
			}
		}
	}
	for _, s := range w.starts {
		if s.goneLocked() {
			continue
		}
		if serving[s.command.Replica] != s.command.Generation || s.stray {
			return s.name() + " lives and does not serve"
		}
		if s.hung {
			return s.name() + " is hung"
		}
		delete(serving, s.command.Replica)
	}
	for replica := range serving {
		return replica + " serves and does not live"
	}
	if folder := w.disk.at("/state/replicas"); folder != nil {
		for name := range folder.names {
			if !slices.ContainsFunc(w.starts, func(s *start) bool {
				return !s.goneLocked() && name == fmt.Sprintf("%s-g%d.json", s.command.Replica, s.command.Generation)
			}) {
				return "record " + name + " stands for nothing"
			}
		}
	}
	return ""
}

func (w *world) settledPool(pool *registry.Pool) string {
	switch {
	case pool.Reload != nil || len(pool.Retiring) > 0:
		return fmt.Sprintf("pool %s is being reloaded", pool.Spec.ID)
	case !pool.Wanted && (pool.State == registry.StateStopped || pool.State == registry.StateFailed):
		return ""
	case pool.Wanted && pool.State == registry.StateReady:
		return ""
	case pool.Wanted:
		for _, view := range pool.Replicas {
			if view.State != registry.ReplicaReady && view.State != registry.ReplicaFailed {
				return fmt.Sprintf("pool %s is %s: replica %s is %s", pool.Spec.ID, pool.State, view.ID, view.State)
			}
			if view.State == registry.ReplicaFailed && !w.isPermanent(view) {
				return fmt.Sprintf("replica %s was given up without a permanent cause: %+v", view.ID, view.Exit)
			}
		}
		return ""
	default:
		return fmt.Sprintf("pool %s is %s", pool.Spec.ID, pool.State)
	}
}

// isPermanent is whether the last start of a replica would end again as it has.
func (w *world) isPermanent(view registry.Replica) bool {
	if view.Exit != nil && view.Exit.Class != enginev1.ExitClass_EXIT_CLASS_CONFIG {
		return false
	}
	for _, s := range slices.Backward(w.starts) {
		if s.command.Replica == string(view.ID) && (s.reason != "reload" && s.reason != "preload" || s.how.bad == exitsConfig) {
			return s.how.bad == exitsConfig
		}
	}
	return false
}

// audit checks the world when all is settled.
func (w *world) audit() {
	m := w.manager
	offered := map[string]bool{}
	live := map[string]bool{}
	for _, pool := range m.known.List() {
		for _, view := range pool.Replicas {
			if view.State == registry.ReplicaReady {
				offered[string(view.ID)] = true
				live[fmt.Sprintf("%s-g%d.json", view.ID, view.Generation)] = true
			}
		}
		w.auditPool(pool)
	}
	if got, want := slices.Sorted(maps.Keys(w.handoffs)), slices.Sorted(maps.Keys(offered)); !slices.Equal(got, want) && !w.diskFaulty() {
		w.violate("handoff files are the READY replicas", "files %v, READY %v", got, want)
	}
	if folder := w.disk.at("/state/replicas"); folder != nil {
		if got, want := slices.Sorted(maps.Keys(folder.names)), slices.Sorted(maps.Keys(live)); !slices.Equal(got, want) {
			w.violate("records are those of the engines that live", "records %v, engines %v", got, want)
		}
	}
	for id, wish := range w.pools {
		if _, there := m.known.Get(id); !there && wish.certain && wish.wanted {
			w.violate("no pool is lost", "%s is to serve and is not known", id)
		}
	}
	w.auditStarts()
	w.auditWatchers()
}

func (w *world) auditPool(pool *registry.Pool) {
	id := pool.Spec.ID
	wish := w.wishOf(id)
	record, there := durable[state.PoolRecord](w, "/state/pools", string(id)+".json")
	switch {
	case wish.certain && wish.wanted && !pool.Wanted && pool.Spec.Residency == registry.Pinned:
		w.violate("a pool that was loaded is owned", "%s is %s", id, pool.State)
	case wish.certain && !wish.wanted && pool.Wanted:
		w.violate("a pool that was drained stays so", "%s is %s", id, pool.State)
	case pool.Wanted && (!there || !record.Wanted || record.Edition != pool.Edition):
		w.violate("what a pool is to be is durable", "%s is wanted at edition %d, on disk it is %v at %d", id, pool.Edition, record.Wanted, record.Edition)
	case !pool.Wanted && there && record.Wanted:
		w.violate("what a pool is to be is durable", "%s is not wanted, on disk it is", id)
	}
}

// auditStarts checks that it is on record how each start has ended, once.
func (w *world) auditStarts() {
	newest := map[string]*start{}
	for _, s := range w.starts {
		newest[s.name()] = s
	}
	count := map[string]int{}
	for _, s := range slices.Backward(w.starts) {
		if count[s.command.Replica]++; count[s.command.Replica] > 18 || newest[s.name()] != s || !s.goneLocked() || s.forgiven || s.stray {
			continue
		}
		index := s.command.Replica[strings.LastIndex(s.command.Replica, "-")+1:]
		record, ok := durable[state.StartRecord](w, "/state/starts/"+s.command.Pool, fmt.Sprintf("%s-g%d.json", index, s.command.Generation))
		switch {
		case !ok:
			w.violate("G7: each start ends in a record", "%s, process %d, has none", s.name(), s.pid)
		case record.PID != s.pid && record.PID != 0:
			w.violate("G7: each start ends in a record", "%s: of process %d, which was %d", s.name(), record.PID, s.pid)
		case s.signalledBy == nil && (record.Class == "STOPPED" || record.Class == "KILLED"):
			w.violate("G7: the record says how it ended", "%s ended by itself, recorded is %s", s.name(), record.Class)
		}
	}
}

// checkClosedLocked is asked when a manager has closed.
func (w *world) checkClosedLocked() {
	for _, s := range w.starts {
		if !s.goneLocked() {
			w.violate("Close leaves no engine", "%s lives", s.name())
		}
	}
	if len(w.handoffs) > 0 && !w.diskFaulty() {
		w.violate("Close leaves no handoff file", "%v", slices.Sorted(maps.Keys(w.handoffs)))
	}
	if folder := w.disk.at("/state/replicas"); folder != nil && len(folder.names) > 0 && !w.diskFaulty() {
		w.violate("Close leaves no record of an engine", "%v", slices.Sorted(maps.Keys(folder.names)))
	}
}

// watcher is a client that keeps up with the pools, over managers.
type watcher struct {
	slow  bool
	token string
	pools map[registry.PoolID]*registry.Pool
}

// follow has a client watch a manager until that has died.
func (w *world) follow(ctx context.Context, c *watcher, m *manager) {
	ctx, cancel := context.WithCancel(ctx)
	w.commands.Go(func() {
		defer cancel()
		<-m.died
	})
	w.commands.Go(func() {
		reader := m.known.Watch(c.token, nil)
		first := c.token != ""
		for {
			events, err := reader.Next(ctx)
			if err != nil {
				return
			}
			w.mu.Lock()
			if first && events[0].Kind != registry.EventReset {
				w.violate("Watch: a token of another epoch is worthless", "the first event is %d", events[0].Kind)
			}
			first = false
			for _, e := range events {
				c.apply(e)
			}
			w.mu.Unlock()
			if c.slow {
				pause := time.NewTimer(7 * time.Second)
				select {
				case <-pause.C:
				case <-ctx.Done():
				}
				pause.Stop()
			}
		}
	})
}

func (c *watcher) apply(e registry.Event) {
	c.token = e.Token
	switch e.Kind {
	case registry.EventReset:
		clear(c.pools)
	case registry.EventUpsert:
		c.pools[e.ID] = e.Pool
	case registry.EventDelete:
		delete(c.pools, e.ID)
	case registry.EventSynced:
	}
}

// auditWatchers checks that every client that has kept up knows what there is.
func (w *world) auditWatchers() {
	var want []string
	for _, pool := range w.manager.known.List() {
		want = append(want, fmt.Sprint(pool.Spec.ID, pool.Revision))
	}
	for i, c := range w.watchers {
		var got []string
		for _, id := range slices.Sorted(maps.Keys(c.pools)) {
			got = append(got, fmt.Sprint(id, c.pools[id].Revision))
		}
		if !slices.Equal(got, want) {
			w.violate("Watch converges", "client %d knows %v, there is %v", i, got, want)
		}
	}
}
