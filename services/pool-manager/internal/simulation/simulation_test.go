// SPDX-License-Identifier: Apache-2.0

// Package simulation runs the pool manager's own code through lives that nobody would wish to a machine: a world around
// lifecycle, launch, state, registry and supervision, in which engines hang, disks fill, power fails and managers die at any
// call, and an oracle that knows the truth and checks what was promised.
//
// A run depends on its seed alone. Time is that of a synctest bubble. Whatever the code under test asks of the world waits
// there; one goroutine drives the world, waits until all others wait, and then lets one of the calls happen, has one command
// or fault come, or lets time pass. TestSeeds prints for a seed that fails the command that repeats it.
package simulation

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// settings are the flags of this test.
type settings struct {
	seeds, from uint64
	lasts       time.Duration
	trace       bool
	shrink      bool
	without     string
	mutants     uint64
	only        string
}

// mutantSeeds is how many seeds each mutant is run with.
func (s settings) mutantSeeds() string { return strconv.FormatUint(s.mutants, 10) }

var flags settings

func TestMain(m *testing.M) {
	flag.Uint64Var(&flags.seeds, "seeds", 300, "how many seeds to run")
	flag.Uint64Var(&flags.from, "from", 1, "the first seed")
	flag.DurationVar(&flags.lasts, "lasts", 0, "go on with further seeds for so long")
	flag.BoolVar(&flags.trace, "whole", false, "print the whole history")
	flag.BoolVar(&flags.shrink, "shrink", false, "find the fewest actions that still fail")
	flag.StringVar(&flags.without, "without", "", "indexes of actions to leave out, joined by commas")
	flag.Uint64Var(&flags.mutants, "mutants", 0, "how many seeds to run each mutant with")
	flag.StringVar(&flags.only, "only", "", "run only mutants with this in their name")
	flag.Parse()
	os.Exit(m.Run())
}

// outcome is what a run has come to.
type outcome struct {
	broken  *violation
	stats   stats
	sum     uint64
	plan    []*action
	history []string
}

// play runs a seed, without the actions of these indexes.
func play(t *testing.T, seed uint64, without []int, tracing bool) outcome {
	t.Helper()
	var result outcome
	defer func() {
		if problem := recover(); problem != nil { // Goroutines that wait for ever.
			result.broken = &violation{promise: "G14: nothing waits for ever", detail: fmt.Sprint(problem)}
		}
	}()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t.Context(), seed)
		w.tracing = tracing
		w.live(t, makePlan(seed, without))
		w.stats.simulated = time.Since(w.began)
		result = outcome{broken: w.broken, stats: w.stats, sum: w.sum.Sum64(), plan: w.plan, history: w.history}
	})
	return result
}

// live runs a world from its first manager to the end of its last.
func (w *world) live(t *testing.T, plan []*action) {
	ctx := t.Context()
	w.plan = plan
	w.watchers = []*watcher{{pools: map[registry.PoolID]*registry.Pool{}}, {slow: true, pools: map[registry.PoolID]*registry.Pool{}}}
	for _, a := range plan {
		w.after(a.at, a.String(), func() { w.act(ctx, a) })
	}
	w.sendRequests()
	w.start(ctx)
	w.began = time.Now()
	w.drive(w.began.Add(span), func() bool { w.attend(t); return false })

	w.mu.Lock()
	w.note("all faults cease")
	w.heal()
	w.mu.Unlock()
	why := ""
	settled := w.drive(time.Now().Add(3*time.Hour), func() bool {
		w.attend(t)
		if w.stirred || len(w.parked) > 0 {
			return false
		}
		why = w.settled()
		return why == ""
	})
	if !settled && w.broken == nil {
		w.violate("all comes to rest when faults have ceased", "%s", why)
	}
	for before, limit := uint64(0), time.Now().Add(time.Hour); w.broken == nil && before != w.manager.oracle.revision; { // What is slow catches up.
		before = w.manager.oracle.revision
		w.drive(time.Now().Add(20*time.Second), func() bool { return false })
		if time.Now().After(limit) {
			w.violate("what has come to rest stays at rest", "there is news for an hour")
		}
	}
	if why := w.settled(); w.broken == nil && why != "" {
		w.violate("what has come to rest stays at rest", "%s", why)
	}
	if w.broken == nil {
		w.mu.Lock()
		w.audit()
		w.mu.Unlock()
	}
	w.finish(t)
}

// attend does what a machine does with its managers and clients: they are started when it is time.
func (w *world) attend(t *testing.T) {
	m := w.manager
	if m.dead && !w.restartAt.IsZero() && !time.Now().Before(w.restartAt) && !w.closing {
		w.start(t.Context())
		w.stirred = true
		return
	}
	if m.running && !m.dead && !m.followed {
		m.followed, w.stirred = true, true
		for _, c := range w.watchers {
			w.follow(t.Context(), c, m)
		}
		w.settle()
	}
}

// sendRequests has clients send requests to the engines that are offered, for as long as commands come.
func (w *world) sendRequests() {
	pause := time.Duration(1+w.nature.IntN(8000)) * time.Millisecond
	w.after(pause, "a client calls", func() {
		if offered := slices.Sorted(maps.Keys(w.handoffs)); len(offered) > 0 {
			entry := w.handoffs[offered[w.nature.IntN(len(offered))]]
			port, _ := strconv.Atoi(entry.URL[strings.LastIndex(entry.URL, ":")+1:])
			lasts := time.Duration(1+w.nature.IntN(20_000)) * time.Millisecond
			if w.nature.IntN(20) == 0 {
				lasts *= 60 // Long work is honest work.
			}
			if s := w.ports[uint16(port)]; s != nil && s.alive {
				s.requestLocked(lasts)
			}
		}
		if time.Since(w.began) < span {
			w.sendRequests()
		}
	})
}

// finish ends the last manager, and returns when no goroutine of any is left.
func (w *world) finish(t *testing.T) {
	w.closing = true
	m := w.manager
	if w.broken == nil && m.running && !m.dead {
		w.end(m, true)
		if !w.drive(time.Now().Add(30*time.Minute), func() bool { return m.gone }) && w.broken == nil {
			w.violate("Close ends", "it has not within 30 minutes")
		}
	}
	w.mu.Lock()
	w.dieLocked(m)
	w.mu.Unlock()
	for _, m := range w.managers {
		if !m.buried {
			w.bury(m)
		}
	}
	for _, m := range w.managers {
		<-m.ended
	}
	w.commands.Wait()
	_ = t
}

func TestSeeds(t *testing.T) {
	t.Parallel()
	began := time.Now()
	var mu sync.Mutex
	var workers sync.WaitGroup
	next, last := flags.from, flags.from+flags.seeds
	total := stats{faults: map[string]int{}}
	seeds := 0
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if t.Failed() || next >= last && time.Since(began) >= flags.lasts {
			return 0, false
		}
		next++
		return next - 1, true
	}
	for range 2 {
		workers.Go(func() {
			for seed, more := take(); more; seed, more = take() {
				result := play(t, seed, excluded(t), flags.trace)
				mu.Lock()
				total.add(result.stats)
				seeds++
				mu.Unlock()
				if result.broken != nil {
					report(t, seed, result)
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d seeds in %s: %s", seeds, time.Since(began).Round(time.Millisecond), total.String())
}

func (s *stats) add(o stats) {
	s.stimuli += o.stimuli
	s.commands += o.commands
	s.managers += o.managers
	s.starts += o.starts
	s.simulated += o.simulated
	for kind, n := range o.faults {
		s.faults[kind] += n
	}
}

func (s *stats) String() string {
	var sum int
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(s.faults)) {
		sum += s.faults[kind]
		kinds = append(kinds, fmt.Sprintf("%s %d", kind, s.faults[kind]))
	}
	return fmt.Sprintf("%.0f hours simulated, %d managers, %d engines started, %d commands, %d stimuli, %d faults (%s)",
		s.simulated.Hours(), s.managers, s.starts, s.commands, s.stimuli, sum, strings.Join(kinds, ", "))
}

// excluded reads the flag of actions to leave out.
func excluded(t *testing.T) []int {
	t.Helper()
	var without []int
	for word := range strings.SplitSeq(flags.without, ",") {
		if word == "" {
			continue
		}
		index, err := strconv.Atoi(word)
		if err != nil {
			t.Errorf("-without: %v", err)
		}
		without = append(without, index)
	}
	return without
}

// report tells of a seed that fails, with the way to it.
func report(t *testing.T, seed uint64, result outcome) {
	t.Helper()
	without := excluded(t)
	if flags.shrink {
		without = shrink(t, seed, result, without)
	}
	again := play(t, seed, without, true)
	if again.broken == nil {
		again.broken = &violation{promise: "the same seed has the same history", detail: fmt.Sprintf("%v came only once", result.broken)}
	}
	command := fmt.Sprintf("go test ./internal/simulation -run TestSeeds -seeds 1 -from %d", seed)
	if len(without) > 0 {
		command += " -without " + strings.Trim(strings.ReplaceAll(fmt.Sprint(without), " ", ","), "[]")
	}
	shown := again.history
	if !flags.trace {
		shown = shown[max(0, len(shown)-60):]
	}
	var plan []string
	for _, a := range again.plan {
		plan = append(plan, a.String())
	}
	t.Errorf("seed %d: %v\nrepeat: %s\nplan:\n  %s\nhistory:\n%s", seed, again.broken, command, strings.Join(plan, "\n  "), strings.Join(shown, "\n"))
}

// shrink leaves out one action after another for as long as the same promise is broken.
func shrink(t *testing.T, seed uint64, result outcome, without []int) []int {
	t.Helper()
	for changed := true; changed; {
		changed = false
		for _, a := range slices.Backward(result.plan) {
			if slices.Contains(without, a.index) {
				continue
			}
			fewer := append(slices.Clone(without), a.index)
			if now := play(t, seed, fewer, false); now.broken != nil && now.broken.promise == result.broken.promise {
				without, changed = fewer, true
			}
		}
	}
	slices.Sort(without)
	return without
}

// TestKeptSeeds runs the seeds that have failed once.
func TestKeptSeeds(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join("testdata", "seeds.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
		number, why, _ := strings.Cut(line, " ")
		if number == "#" {
			continue
		}
		seed, err := strconv.ParseUint(number, 10, 64)
		if err != nil {
			t.Errorf("seeds.txt: %q: %v", why, err)
			continue
		}
		if result := play(t, seed, nil, false); result.broken != nil {
			report(t, seed, result)
		}
	}
}

func TestSameSeedSameHistory(t *testing.T) {
	t.Parallel()
	for seed := flags.from; seed < flags.from+max(flags.seeds/30, 1); seed++ {
		first, second := play(t, seed, nil, true), play(t, seed, nil, true)
		if first.sum == second.sum {
			continue
		}
		for i := range first.history {
			if i >= len(second.history) || first.history[i] != second.history[i] {
				t.Errorf("seed %d differs at %d:\n%s\nagainst:\n%s", seed, i,
					strings.Join(first.history[max(0, i-5):min(len(first.history), i+3)], "\n"),
					strings.Join(second.history[max(0, i-5):min(len(second.history), i+3)], "\n"))
				break
			}
		}
	}
}
