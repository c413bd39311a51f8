// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// deed is one command of the chaos.
type deed struct {
	what string
	pool string
	// pick is chance for the command to use: which spec, which process, which deadline.
	pick int
}

func (d deed) String() string { return fmt.Sprintf("%s %s %d", d.what, d.pool, d.pick) }

// The commands that are more than one call.
const (
	killEngine  = "kill an engine"
	killManager = "kill the manager"
)

// chaosPools are few, so that commands meet.
const chaosPools = 8

// quietTail is the part of the commands, the last, in which the manager lives: what it has leaked is to be seen.
const quietTail = 0.4

// planChaos draws the commands of a seed.
func planChaos(seed uint64, commands int) []deed {
	chances := []struct {
		what   string
		weight int
	}{
		{"preload", 26},
		{"reload", 16},
		{"drain", 12},
		{"delete", 8},
		{"cancel preload", 7},
		{"cancel reload", 5},
		{"reset breaker", 3},
		{"ask", 6},
		{"starts", 3},
		{"logs", 2},
		{killEngine, 10},
		{killManager, 2},
	}
	var hat []string
	for _, chance := range chances {
		hat = append(hat, slices.Repeat([]string{chance.what}, chance.weight)...)
	}
	random := rand.New(rand.NewPCG(seed, 1))
	plan := make([]deed, commands)
	for i := range plan {
		d := deed{what: hat[random.IntN(len(hat))], pool: "chaos-" + strconv.Itoa(random.IntN(chaosPools)), pick: random.IntN(1 << 20)}
		if d.what == killManager && float64(i) > float64(commands)*(1-quietTail) {
			d.what = killEngine
		}
		plan[i] = d
	}
	return plan
}

// chaosSpec is one of the specs that a pool may have: they differ in what needs other engines, and in what does not. Some
// engines end at once, some never get ready, and some have a child that ignores SIGTERM.
func chaosSpec(t *testing.T, node *harness.Node, id string, pick int) *poolv1.PoolSpec {
	t.Helper()
	var flags []string
	spec := node.FakePool(t, id)
	switch pick % 10 {
	case 0:
		flags = []string{"--fake-exit", "7", "--fake-last-words", "not today"}
	case 1:
		flags = []string{"--fake-load-until", "/nonexistent/file"}
		spec.StartupTimeout = durationpb.New(time.Second)
	case 2:
		flags = []string{"--fake-forks", "1"}
	default:
		flags = []string{"--fake-pause", "2ms"}
	}
	spec.GetPrepare().GetLaunch().Flags = flags
	spec.GetPrepare().GetLaunch().ContextTokens = 512 * uint32(1+pick/10%2)
	spec.Replicas = uint32(1 + pick/20%2)
	spec.Labels = map[string]string{"look": strconv.Itoa(pick / 40 % 2)}
	spec.Restart = quickRestart()
	spec.Restart.Breaker = &poolv1.BreakerPolicy{FailedStarts: 1000, FailuresInWindow: 1000}
	return spec
}

// mayFail tells whether a command may be refused, or fail, for a reason while others do what they like.
func mayFail(why reason.Reason) bool {
	return slices.Contains([]reason.Reason{
		reason.PoolNotFound, reason.PoolExists, reason.PoolBusy, reason.PoolUnready, reason.PoolDraining, reason.Cancelled,
		reason.WorkerStartFailed, reason.WorkerStartTimeout, reason.ProofFailed,
	}, why)
}
