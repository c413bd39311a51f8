// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

var (
	chaosCommands = flag.Int("chaos.commands", 200, "how many random commands the chaos has")
	chaosSeed     = flag.Uint64("chaos.seed", 0, "the seed of the chaos; 0 draws one")
)

// chaosWorkers is how many commands are under way at once.
const chaosWorkers = 6

// chaos is the run of a plan.
type chaos struct {
	node *harness.Node

	mu sync.Mutex // guards what follows
	// life counts the beginnings and the ends of the manager's lives: it is odd while the manager is down.
	life     int
	outcomes map[string]int
	broken   []string
}

// Random commands at once, and engines and managers that are killed meanwhile: no command fails for another reason than those
// that it may, what is to serve serves in the end and nothing else runs, and when all is drained nothing is left, neither of the
// engines nor in the daemons.
func TestChaos(t *testing.T) {
	t.Parallel()
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	again := fmt.Sprintf("go test -race ./test/e2e -run '^TestChaos$' -chaos.commands %d -chaos.seed %d", *chaosCommands, seed)
	t.Logf("again: %s", again)
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	node.StartPoolManager(t, node.MetricsFlags()...)
	c := &chaos{node: node, outcomes: map[string]int{}}
	node.MustPreload(t, chaosSpec(t, node, "first", 9)) // what the daemons need for that they may keep
	c.end(t)
	first := c.measure(t)

	c.play(t, planChaos(seed, *chaosCommands))
	c.settle(t)
	c.end(t)
	testkit.Eventually(t, harness.Patience, "the daemons have open and run what they had at first", func() (bool, string) {
		now := c.measure(t)
		return !slices.ContainsFunc([]string{"files", "goroutines", "provisioner"}, func(of string) bool { return now[of] > first[of] }),
			fmt.Sprintf("%v, at first %v", now, first)
	})
	for _, broken := range c.broken {
		t.Error(broken)
	}
	t.Logf("outcomes: %v", c.outcomes)
}

// play runs the commands, a few at a time, begun in their order.
func (c *chaos) play(t *testing.T, plan []deed) {
	t.Helper()
	deeds := make(chan deed)
	var workers sync.WaitGroup
	for range chaosWorkers {
		workers.Go(func() {
			for d := range deeds {
				c.do(t, d)
			}
		})
	}
	for _, d := range plan {
		if d.what == killManager {
			c.restartManager(t)
			c.note(d, nil)
			continue
		}
		deeds <- d
	}
	close(deeds)
	workers.Wait()
}

// restartManager kills the manager in the middle of whatever it does, and starts another.
func (c *chaos) restartManager(t *testing.T) {
	t.Helper()
	c.turn()
	c.node.PoolManager.Kill()
	c.node.StartPoolManager(t, c.node.MetricsFlags()...)
	testkit.Eventually(t, harness.Patience, "the manager answers again", func() (bool, string) {
		_, err := c.node.Pools.ListPools(t.Context(), &poolv1.ListPoolsRequest{})
		return err == nil, fmt.Sprint(err)
	})
	c.turn()
}

func (c *chaos) turn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.life++
}

func (c *chaos) now() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.life
}

// note counts how a command ended.
func (c *chaos) note(d deed, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	how := "ok"
	if err != nil {
		how = strings.TrimPrefix(reason.Of(err).String(), "REASON_")
	}
	c.outcomes[d.what+": "+how]++
}

// do runs one command and looks at how it ended.
func (c *chaos) do(t *testing.T, d deed) {
	t.Helper()
	before := c.now()
	err := c.call(t, d)
	after := c.now()
	c.note(d, err)
	if err == nil || mayFail(reason.Of(err)) {
		return
	}
	if killed := before != after || before%2 == 1; killed && status.Code(err) == codes.Unavailable {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = append(c.broken, fmt.Sprintf("%v: %v %v: %v", d, status.Code(err), reason.Of(err), err))
}

// call runs one command.
func (c *chaos) call(t *testing.T, d deed) error {
	t.Helper()
	ctx, pools := t.Context(), c.node.Pools
	var err error
	switch d.what {
	case "preload":
		err = c.node.Preload(ctx, &poolv1.PreloadRequest{Spec: chaosSpec(t, c.node, d.pool, d.pick)}).Err
	case "reload":
		request := &poolv1.ReloadRequest{
			Spec: chaosSpec(t, c.node, d.pool, d.pick), DrainDeadline: durationpb.New(200 * time.Millisecond), AcceptOutage: d.pick/80%3 == 0,
		}
		if d.pick/240%2 == 0 {
			request.Proof = &poolv1.ReloadProof{Prompt: "count", Contains: "1 2 3"}
		}
		err = c.node.Reload(ctx, request).Err
	case "drain":
		deadlines := []time.Duration{0, 50 * time.Millisecond, time.Second}
		err = c.node.Drain(ctx, &poolv1.DrainRequest{
			PoolId: d.pool, Deadline: durationpb.New(deadlines[d.pick%3]), OnDeadline: poolv1.DrainDeadlineAction(d.pick / 3 % 3),
		}).Err
	case "delete":
		_, err = pools.DeletePool(ctx, &poolv1.DeletePoolRequest{PoolId: d.pool})
	case "cancel preload":
		_, err = pools.CancelPreload(ctx, &poolv1.CancelPreloadRequest{PoolId: d.pool})
	case "cancel reload":
		_, err = pools.CancelReload(ctx, &poolv1.CancelReloadRequest{PoolId: d.pool})
	case "reset breaker":
		_, err = pools.ResetBreaker(ctx, &poolv1.ResetBreakerRequest{PoolId: d.pool})
	case "ask":
		err = c.ask(ctx, d)
	case "starts":
		_, err = pools.ListStarts(ctx, &poolv1.ListStartsRequest{PoolId: d.pool})
	case "logs":
		err = c.readLogs(ctx, d)
	case killEngine:
		c.node.KillEngine(d.pick)
	default:
		t.Errorf("there is no command %q", d.what)
	}
	return err
}

// ask asks an engine for something, so that there are requests in flight; that it is killed meanwhile is no failure.
func (c *chaos) ask(ctx context.Context, d deed) error {
	answer, err := c.node.Pools.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: d.pool})
	if err != nil {
		return err
	}
	for _, replica := range answer.GetPool().GetReplicas() {
		if replica.GetState() == poolv1.ReplicaState_REPLICA_STATE_READY {
			_, _ = harness.NewChat("tiny", 50+d.pick%200).Ask(ctx, replica.GetEndpoint())
			break
		}
	}
	return nil
}

// readLogs reads what a replica has printed, as far as it is kept.
func (c *chaos) readLogs(ctx context.Context, d deed) error {
	stream, err := c.node.Pools.Logs(ctx, &poolv1.LogsRequest{PoolId: d.pool, Replica: uint32(d.pick % 2)})
	if err != nil {
		return err
	}
	for {
		_, err := stream.Recv()
		switch {
		case err == nil:
		case reason.Of(err) == reason.InvalidParams: // there is no such replica
			return nil
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}

// settle waits until the pools are what they are to be: those that are wanted serve, with an engine and a record for each
// replica and no other, and of the rest nothing runs.
func (c *chaos) settle(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, 2*harness.Patience, "what is to serve serves, and nothing else runs", func() (bool, string) {
		answer, err := c.node.Pools.ListPools(t.Context(), &poolv1.ListPoolsRequest{})
		if err != nil {
			return false, err.Error()
		}
		var serving []int
		for _, pool := range answer.GetPools() {
			state := pool.GetState()
			if pool.GetWanted() != (state == poolv1.PoolState_POOL_STATE_READY) || pool.GetReload() != nil || len(pool.GetRetiring()) > 0 {
				return false, fmt.Sprintf("pool %v", pool)
			}
			for _, replica := range pool.GetReplicas() {
				if replica.GetPid() != 0 {
					serving = append(serving, int(replica.GetPid()))
				}
			}
		}
		var engines []int
		for _, p := range c.node.Engines() {
			if p.Name == "llama-server" { // else it is a child of one
				engines = append(engines, p.PID)
			}
		}
		slices.Sort(serving)
		slices.Sort(engines)
		records := c.node.Records()
		return slices.Equal(serving, engines) && len(records) == len(serving) && len(c.node.HandoffFiles()) == len(serving),
			fmt.Sprintf("processes %v, pools tell of %v, records %v, handoff files %v", engines, serving, records, c.node.HandoffFiles())
	})
}

// end drains the node and forgets every pool: nothing is left.
func (c *chaos) end(t *testing.T) {
	t.Helper()
	_, sum, err := c.node.DrainNode(t.Context(), &poolv1.DrainNodeRequest{Deadline: durationpb.New(0)})
	if err != nil || sum == nil {
		t.Errorf("DrainNode = %v, %v; want a sum", sum, err)
	}
	c.node.AssertNothingRuns(t)
	for _, id := range c.node.PoolIDs(t) {
		if _, err := c.node.Pools.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: id}); err != nil {
			t.Errorf("DeletePool of %s: %v", id, err)
		}
	}
	if left := c.node.PoolRecords(); len(left) > 0 {
		t.Errorf("records of pools = %v, want none", left)
	}
}

// measure counts what the daemons have open, and the goroutines of the manager, when they have done something.
func (c *chaos) measure(t *testing.T) map[string]int {
	t.Helper()
	if _, err := c.node.Pools.ListPools(t.Context(), &poolv1.ListPoolsRequest{}); err != nil {
		t.Fatal(err)
	}
	return map[string]int{
		"files":       c.node.PoolManager.Files(t),
		"goroutines":  int(c.node.Metrics(t)["go_goroutines"]),
		"provisioner": c.node.Provisioner.Files(t),
	}
}
