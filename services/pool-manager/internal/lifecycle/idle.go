// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"time"
)

// How the engines' own counts are read while a drain waits. There is no way to be told, so they are asked: soon at first, since
// most requests end soon, then less often. Idle must be seen twice, quiet apart: a request that has just been accepted
// is not counted by the engine yet.
const (
	firstAsk   = 25 * time.Millisecond
	slowestAsk = 250 * time.Millisecond
	quiet      = 50 * time.Millisecond
	// askLimit is how long an engine may take to answer; an engine that does not is one that does not say.
	askLimit = 2 * time.Second
	// lastAskLimit is how long it may take at the deadline, to be told how many requests are cut.
	lastAskLimit = 500 * time.Millisecond
	// tellEvery is how often callers are told although nothing has changed.
	tellEvery = time.Second
)

// count is what one engine says of its requests in flight.
type count struct {
	requests int
	known    bool
}

func total(counts map[*replica]count) int {
	sum := 0
	for _, c := range counts {
		sum += c.requests
	}
	return sum
}

func allKnown(counts map[*replica]count) bool {
	for _, c := range counts {
		if !c.known {
			return false
		}
	}
	return true
}

// awaitIdle waits until the engines say, twice and quiet apart, that they have no request in flight, or until ctx ends, which is
// the deadline, when they are asked once more and once is enough. It returns their last counts and whether they are idle. An
// engine that has ended counts as idle. members are asked for anew each time; tell is told of changes, and once a second.
func awaitIdle(ctx context.Context, members func() []*replica, tell func(counts map[*replica]count)) (map[*replica]count, bool) {
	var counts map[*replica]count
	var told time.Time
	zeros, pause := 0, firstAsk
	for {
		before := counts
		counts = ask(ctx, members(), counts)
		now := time.Now()
		if before == nil || total(before) != total(counts) || allKnown(before) != allKnown(counts) || now.Sub(told) >= tellEvery {
			tell(counts)
			told = now
		}
		if allKnown(counts) && total(counts) == 0 {
			zeros++
			pause = quiet
		} else {
			zeros = 0
			pause = min(pause*3/2, slowestAsk)
		}
		if zeros >= 2 || len(counts) == 0 {
			return counts, true
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			counts = ask(ctx, members(), counts)
			return counts, allKnown(counts) && total(counts) == 0
		}
	}
}

// ask asks every engine that serves at once, also when ctx has ended: then they have lastAskLimit to answer. An engine that does
// not answer keeps its last count.
func ask(ctx context.Context, members []*replica, last map[*replica]count) map[*replica]count {
	limit := askLimit
	if ctx.Err() != nil {
		limit = lastAskLimit
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	type answer struct {
		replica *replica
		count   count
	}
	answers := make(chan answer, len(members))
	asked := 0
	for _, r := range members {
		engine := r.serving()
		if engine == nil {
			continue
		}
		asked++
		go func() {
			activity, err := engine.Activity(ctx)
			if err != nil {
				answers <- answer{r, count{requests: last[r].requests}}
				return
			}
			answers <- answer{r, count{requests: activity.InFlight, known: true}}
		}()
	}
	counts := make(map[*replica]count, asked)
	for range asked {
		a := <-answers
		counts[a.replica] = a.count
	}
	return counts
}

// serving returns the replica's engine while it serves; nil otherwise.
func (r *replica) serving() Engine {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	return r.engine
}
