// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"time"
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

// awaitIdle waits until the engines say, twice and settle apart, that they have no request in flight, or until the
// drain's deadline has come, when they are asked once more and once is enough. It returns their last counts and whether
// they are idle. An engine that has ended counts as idle.
func (p *pool) awaitIdle(ctx context.Context, d *drain) (map[*replica]count, bool) {
	var counts map[*replica]count
	var told time.Time
	zeros, pause := 0, firstAsk
	for {
		before := counts
		counts = p.ask(ctx, counts)
		now := time.Now()
		if before == nil || total(before) != total(counts) || allKnown(before) != allKnown(counts) || now.Sub(told) >= tellEvery {
			d.tell(DrainProgress{InFlight: total(counts), Known: allKnown(counts), Remaining: d.remaining(now)})
			told = now
		}
		if allKnown(counts) && total(counts) == 0 {
			zeros++
			pause = settle
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
			counts = p.ask(ctx, counts)
			return counts, allKnown(counts) && total(counts) == 0
		}
	}
}

// ask asks every live engine at once, also when ctx has ended: then they have lastAskLimit to answer. An engine that does
// not answer keeps its last count.
func (p *pool) ask(ctx context.Context, last map[*replica]count) map[*replica]count {
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
	replicas := p.live()
	answers := make(chan answer, len(replicas))
	for _, r := range replicas {
		go func() {
			requests, err := r.engine.InFlight(ctx)
			if err != nil {
				answers <- answer{r, count{requests: last[r].requests}}
				return
			}
			answers <- answer{r, count{requests: requests, known: true}}
		}()
	}
	counts := make(map[*replica]count, len(replicas))
	for range replicas {
		a := <-answers
		counts[a.replica] = a.count
	}
	return counts
}
