// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// BenchmarkAdopt is a manager that starts anew beside so many engines: from the look at what there is until all are proven
// and offered.
func BenchmarkAdopt(b *testing.B) {
	for _, engines := range []int{1, 100} {
		b.Run(fmt.Sprintf("engines=%d", engines), func(b *testing.B) { benchmarkAdopt(b, engines) })
	}
}

func benchmarkAdopt(b *testing.B, engines int) {
	w, r := newWorld(b), request(b, ready())
	requests := map[registry.PoolID]Request{}
	for i := range engines {
		r.Pool = registry.PoolID(fmt.Sprintf("p%d", i))
		r.Replica = r.Pool.Replica(0)
		requests[r.Pool] = r
		w.mustLaunch(b, r).Release()
	}
	adopted := make([]*Engine, engines)
	for b.Loop() {
		l, found := w.find(b)
		if len(found.Engines) != engines {
			b.Fatalf("found %d engines, want %d", len(found.Engines), engines)
		}
		began := time.Now()
		var adopting sync.WaitGroup
		for i, leftover := range found.Engines {
			adopting.Go(func() {
				var err error
				if adopted[i], err = l.Adopt(b.Context(), leftover, requests[leftover.Pool], ignoreStage); err != nil {
					b.Error(err)
				}
			})
		}
		adopting.Wait()
		b.ReportMetric(float64(time.Since(began).Microseconds())/1000, "ms-to-ready")
		b.StopTimer()
		for _, e := range adopted {
			e.Release()
		}
		b.StartTimer()
	}
}
