// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// someStart picks a start that lives, of the pool if there is one; nil if none lives.
func (w *world) someStart(pool registry.PoolID, random *rand.Rand) *start {
	alive := slices.DeleteFunc(slices.Clone(w.starts), func(s *start) bool { return !s.alive })
	own := slices.DeleteFunc(slices.Clone(alive), func(s *start) bool { return s.command.Pool != string(pool) })
	if len(own) > 0 {
		alive = own
	}
	if len(alive) == 0 {
		return nil
	}
	return alive[random.IntN(len(alive))]
}

// engineFault is what befalls an engine. It says whether the action is that.
func (w *world) engineFault(a *action, random *rand.Rand) bool {
	var do func(s *start)
	switch a.kind {
	case "kill engine":
		do = func(s *start) { s.exitLocked(process.ExitStatus{Code: process.CodeUnknown, Signal: unix.SIGKILL}) }
	case "exit zero":
		do = func(s *start) { s.exitLocked(process.ExitStatus{}) }
	case "out of memory":
		do = func(s *start) {
			s.exitLocked(process.ExitStatus{Code: process.CodeUnknown, Signal: unix.SIGKILL, OOMKilled: true})
		}
	case "hang":
		do = func(s *start) { s.hangLocked(false) }
	case "mute":
		do = func(s *start) { s.hangLocked(true) }
	case "stuck engine":
		do = func(s *start) {
			if till := time.Now().Add(time.Duration(random.IntN(300)) * time.Second); till.After(s.stuckTill) {
				s.stuckTill = till
			}
		}
	case "daemon child":
		do = func(s *start) { s.kids = 1 + random.IntN(3) }
	default:
		return false
	}
	if s := w.someStart(a.pool, random); s != nil {
		w.stats.faults[a.kind]++
		do(s)
	}
	return true
}

// managerFault is what befalls the manager or the machine.
func (w *world) managerFault(a *action, random *rand.Rand) bool {
	switch a.kind {
	case "crash":
		w.crashIn, w.crashLose = 1+random.IntN(40), random.IntN(2) == 0
	case "crash at disk":
		if w.manager != nil {
			w.manager.diskStep, w.crashLose = 1+random.IntN(60), random.IntN(2) == 0
		}
	case "lose power":
		w.losePower()
	case "leave", "close":
		if m := w.manager; m != nil && m.running && !m.dead && !m.ending {
			w.end(m, a.kind == "close")
		}
		return true
	default:
		return false
	}
	w.stats.faults[a.kind]++
	return true
}

// losePower ends every process, and the disk keeps what it must.
func (w *world) losePower() {
	w.crashLose = false
	w.dieLocked(w.manager)
	w.disk.lose(w.nature)
	for _, s := range w.starts {
		s.kids = 0
		if s.alive {
			s.exitLocked(process.ExitStatus{})
		}
	}
	w.boot++
	w.foreign, w.thieves, w.ports = map[int]uint64{}, map[uint16]bool{}, map[uint16]*start{}
	if w.nature.IntN(2) == 0 {
		clear(w.handoffs)
	}
}

// outerFault is what befalls all else, for a while.
func (w *world) outerFault(a *action, random *rand.Rand) bool {
	f := &w.faults
	lasts := time.Duration(1+random.IntN(90)) * time.Second
	restore := func(set func(bool)) {
		set(true)
		w.after(lasts, "no more "+a.kind, func() { set(false) })
	}
	switch a.kind {
	case "bad starts":
		f.badPool, f.badStarts, f.badHow = string(a.pool), 1+random.IntN(6), badStart(1+random.IntN(int(badStarts)-1))
	case "ignore term":
		restore(func(on bool) { f.ignoreTerm = on })
	case "wrong words":
		restore(func(on bool) { f.wrongWords = on })
	case "spawn fails":
		f.spawn = 1 + random.IntN(3)
	case "disk full":
		w.forgiveRecent()
		restore(func(on bool) { w.disk.full, f.diskAt = on, time.Now() })
	case "disk sick":
		w.forgiveRecent()
		restore(func(on bool) { w.disk.sick, f.diskAt = on, time.Now() })
	case "prepare fails":
		restore(func(on bool) { f.prepareFails = on })
	case "prepare slow":
		restore(func(on bool) { f.prepareSlow = on })
	case "clock":
		w.clock = time.Duration(random.Int64N(int64(48*time.Hour))) - 24*time.Hour
	case "damage":
		w.damageWhenDown(random)
	case "pid reuse":
		w.reusePID(random)
	case "thief":
		port := 9000 + uint16(a.pool[0])
		if w.ports[port] == nil {
			restore(func(on bool) { w.thieves[port] = on })
		}
	default:
		return false
	}
	w.stats.faults[a.kind]++
	return true
}

// damageWhenDown damages a record that nobody uses, which takes a manager that is gone: it is killed first.
func (w *world) damageWhenDown(random *rand.Rand) {
	w.crashLose = false
	w.dieLocked(w.manager)
	var all []string
	for _, dir := range []string{"/state/replicas", "/state/pools"} {
		if n := w.disk.at(dir); n != nil {
			for _, name := range slices.Sorted(maps.Keys(n.names)) {
				all = append(all, path.Join(dir, name))
			}
		}
	}
	if len(all) == 0 {
		return
	}
	file := all[random.IntN(len(all))]
	n := w.disk.at(file)
	text := slices.Clone(n.data)
	switch {
	case len(text) == 0:
	case random.IntN(3) == 0:
		text = text[:random.IntN(len(text))]
	case random.IntN(2) == 0:
		text = []byte(strings.Replace(string(text), `{"schema":2`, `{"schema":9`, 1))
	default:
		text[random.IntN(min(len(text), 200))] ^= 1 << random.IntN(7)
	}
	n.data, n.synced = text, text
	w.note("damage " + file)
	for _, s := range w.starts { // Of whom nobody knows any more how it ended.
		if file == fmt.Sprintf("/state/replicas/%s-g%d.json", s.command.Replica, s.command.Generation) {
			s.forgiven = true
		}
	}
	if pool, ok := strings.CutPrefix(file, "/state/pools/"); ok {
		w.wishOf(registry.PoolID(strings.TrimSuffix(pool, ".json"))).certain = false
	}
}

// reusePID has an engine end while no manager lives, and a stranger get its pid.
func (w *world) reusePID(random *rand.Rand) {
	w.dieLocked(w.manager)
	s := w.someStart("", random)
	if s == nil {
		return
	}
	s.exitLocked(process.ExitStatus{Code: process.CodeUnknown, Signal: unix.SIGKILL})
	w.foreign[s.pid] = s.ticks + 100
}

// forgive excuses that the starts of a pool are not on record any more.
func (w *world) forgive(id registry.PoolID) {
	for _, s := range w.starts {
		if s.command.Pool == string(id) {
			s.forgiven = true
		}
	}
}

// forgiveRecent excuses that starts are not on record which end while the disk is at fault.
func (w *world) forgiveRecent() {
	for _, s := range w.starts {
		if s.alive || time.Since(s.endedAt) < 3*time.Minute {
			s.forgiven = true
		}
	}
}

// diskFaulty is whether the disk is at fault, or was a moment ago.
func (w *world) diskFaulty() bool {
	return w.disk.full || w.disk.sick || !w.faults.diskAt.IsZero() && time.Since(w.faults.diskAt) < time.Minute
}

// heal ends all faults.
func (w *world) heal() {
	if w.disk.full || w.disk.sick {
		w.faults.diskAt = time.Now()
	}
	w.faults = faults{diskAt: w.faults.diskAt}
	w.disk.full, w.disk.sick = false, false
	w.crashIn, w.crashLose = 0, false
	if w.manager != nil {
		w.manager.diskStep = 0
	}
	clear(w.thieves)
	for _, s := range w.starts {
		if !s.goneLocked() && time.Until(s.stuckTill) > 0 {
			s.stuckTill = time.Now()
		}
	}
}
