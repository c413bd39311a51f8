// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// FAILED means that nobody tries any more: a pool whose engines are to be started again is never seen so, not even between a
// failure and the decision what comes of it, for which the time is read.
func TestPoolThatIsTriedAgainIsNeverSeenFailed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world, pools *Pools, known *registry.Registry) {
		var seen atomic.Int32
		now := pools.config.Now
		pools.config.Now = func() time.Time {
			if pool, ok := known.Get("a"); ok && pool.State == registry.StateFailed {
				seen.Add(1)
			}
			return now()
		}
		mustPreload(t, pools, spec("a", 1))
		w.mu.Lock()
		w.launchErr["a-0"] = reason.New(reason.WorkerStartFailed, "exit code 1")
		w.mu.Unlock()
		w.engine(t, "a-0").crash()
		pass(time.Minute)
		if r := firstReplica(t, known); r.Supervision.FailedStarts == 0 {
			t.Errorf("replica is %+v, want one whose starts have failed", r)
		}
		if n := seen.Load(); n > 0 {
			t.Errorf("the pool was FAILED %d times", n)
		}
	})
}
