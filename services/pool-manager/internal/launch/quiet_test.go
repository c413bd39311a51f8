// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"testing"
	"testing/synctest"
	"time"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// What belongs to nobody any more ends its requests first, but not for ever.
func TestEndWaitsForRequests(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		requests func(since time.Duration) int
		least    time.Duration
		cut      int
	}{
		{"none", nil, 0, 0},
		{"for a while", func(since time.Duration) int { return max(0, int((12*time.Second - since).Seconds())) }, 10 * time.Second, 0},
		{"always", func(time.Duration) int { return 3 }, leftoverPatience, 3},
		{"it does not answer", func(time.Duration) int { return -1 }, 0, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWorld{requests: tt.requests}
				ask := request(t, processtest.Script{})
				ask.Prepared.Contract.Activity = &enginev1.ActivitySource{Path: "/metrics", Gauges: []string{"running"}}
				e, err := w.launcher(t).Launch(t.Context(), ask, ignoreStage)
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait() // That it is ready is on record.
				e.Release()
				records := w.records
				next := w.launcher(t)
				w.records = records
				found, err := next.Leftovers(t.Context())
				if err != nil || len(found.Engines) != 1 {
					t.Fatalf("Leftovers = %+v, %v", found, err)
				}
				began := time.Now()
				if err := next.End(t.Context(), found.Engines[0], "reload"); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); took < tt.least || took > tt.least+3*time.Second {
					t.Errorf("it took %s, want about %s", took, tt.least)
				}
				if len(w.starts) != 1 || w.starts[0].RequestsCut != tt.cut {
					t.Errorf("on record are %+v, want %d requests cut", w.starts, tt.cut)
				}
			})
		})
	}
}
