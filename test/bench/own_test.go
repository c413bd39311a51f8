// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// The real engine of these benchmarks: llama-server with a small context, so that a hundred of them fit a small machine.
const ownedContext = 256

// BenchmarkRestart compares the time from kill -9 of an engine that had served for long until it is READY again with the time
// that the same takes by hand: until the killed one is gone, and until the next, asked every millisecond, answers 200. One
// iteration is one pair.
func BenchmarkRestart(b *testing.B) {
	node := harness.Start(b, harness.Config{Store: harness.SharedStore(b)})
	prepared, _ := prepare(b, node, harness.SourceEngine())
	pool := node.MustPreload(b, &poolv1.PoolSpec{
		PoolId: "bench", Workload: &poolv1.PoolSpec_PreparedId{PreparedId: prepared.GetPreparedId()},
		Restart: &poolv1.RestartPolicy{
			ImmediateAfter: durationpb.New(time.Millisecond), // It has served for long.
			Breaker:        &poolv1.BreakerPolicy{FailuresInWindow: 1000},
		},
	})
	watcher := node.Watch(b, "bench")
	var dying, starting, again, difference samples
	for i := 0; b.Loop(); i++ {
		var ready, gone time.Duration
		if i%2 == 0 {
			ready, gone = startByHand(b, prepared)
		}
		replica := pool.GetReplicas()[0]
		killed := time.Now()
		if err := unix.Kill(int(replica.GetPid()), unix.SIGKILL); err != nil {
			b.Fatal(err)
		}
		pool = watcher.Until(b, "it is READY again", func(p *poolv1.Pool) bool {
			return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetGeneration() > replica.GetGeneration()
		})
		t := time.Since(killed)
		if i%2 == 1 {
			ready, gone = startByHand(b, prepared)
		}
		dying, starting = append(dying, gone), append(starting, ready)
		again, difference = append(again, t), append(difference, t-ready-gone)
	}
	b.ReportMetric(0, "ns/op")
	dying.report(b, "by-hand-gone")
	starting.report(b, "by-hand-ready")
	again.report(b, "again")
	difference.report(b, "difference")
}

// BenchmarkManagerRestart kills the pool manager of many engines, starts it again, and reports how long it takes until a client
// knows every pool READY: while nobody asks the engines for anything, and while clients have them take all there is of the
// processors, and then how many completions failed. One iteration is one kill.
func BenchmarkManagerRestart(b *testing.B) {
	for _, engines := range []int{10, 100} {
		b.Run(fmt.Sprint("engines=", engines), func(b *testing.B) {
			node := harness.Start(b, harness.Config{Store: harness.SharedStore(b)})
			endpoints := manyEngines(b, node, engines)
			b.Run("idle", func(b *testing.B) { restartManager(b, node, engines/10) })
			b.Run("busy", func(b *testing.B) {
				traffic := startTraffic(b, func() []string { return endpoints })
				restartManager(b, node, engines/10)
				traffic.report(b)
			})
		})
	}
}

func restartManager(b *testing.B, node *harness.Node, pools int) {
	b.Helper()
	var whole samples
	for b.Loop() {
		node.PoolManager.Kill()
		began := time.Now()
		node.StartPoolManager(b)
		awaitPools(b, node, pools)
		whole = append(whole, time.Since(began))
	}
	b.ReportMetric(0, "ns/op")
	whole.report(b, "registry-whole")
}

// manyEngines loads so many engines, in pools of ten, and returns where they serve.
func manyEngines(b *testing.B, node *harness.Node, engines int) []string {
	b.Helper()
	spec := harness.SourceEngine()
	spec.Launch.ContextTokens = ownedContext
	var endpoints []string
	for i := range engines / 10 {
		pool := harness.Pool(fmt.Sprint("bench-", i), spec)
		pool.Replicas = 10
		for _, replica := range node.MustPreload(b, pool).GetReplicas() {
			endpoints = append(endpoints, replica.GetEndpoint())
		}
	}
	return endpoints
}

// awaitPools returns when a client that watches knows so many pools READY.
func awaitPools(b *testing.B, node *harness.Node, pools int) {
	b.Helper()
	stream, err := node.Pools.Watch(b.Context(), &poolv1.WatchRequest{})
	if err != nil {
		b.Fatal(err)
	}
	ready := map[string]bool{}
	for len(ready) < pools {
		message, err := stream.Recv()
		if err != nil {
			b.Fatal(err)
		}
		if pool := message.GetUpsert(); pool.GetState() == poolv1.PoolState_POOL_STATE_READY {
			ready[pool.GetPoolId()] = true
		}
	}
}

// traffic asks for completions of one token all the time.
type traffic struct {
	cancel        context.CancelFunc
	clients       sync.WaitGroup
	asked, failed atomic.Int64
}

// startTraffic starts two clients, each of which asks the endpoints in turn, as they are at that moment.
func startTraffic(b *testing.B, endpoints func() []string) *traffic {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t := &traffic{cancel: cancel}
	chat := harness.NewChat(harness.ModelID, 1)
	chat.CachePrompt = true // Many short ones: each is a chance to fail.
	for client := range 2 {
		t.clients.Go(func() {
			for n := client; ctx.Err() == nil; n += 2 {
				now := endpoints()
				// A request that was begun is ended: only what the engine does counts.
				_, err := chat.Ask(context.WithoutCancel(ctx), now[n%len(now)])
				t.asked.Add(1)
				if err != nil {
					t.failed.Add(1)
					b.Logf("a completion failed: %v", err)
				}
			}
		})
	}
	return t
}

// report ends the traffic and reports how many completions were asked for and how many of them failed.
func (t *traffic) report(b *testing.B) {
	b.Helper()
	t.cancel()
	t.clients.Wait()
	b.ReportMetric(float64(t.asked.Load()), "completions")
	b.ReportMetric(float64(t.failed.Load()), "failed-completions")
}

// BenchmarkReload reloads a pool again and again while clients that follow Watch ask for completions, and reports how long a
// reload takes, of that until the new engine serves, and how many completions failed. One iteration is one reload.
func BenchmarkReload(b *testing.B) {
	node := harness.Start(b, harness.Config{Store: harness.SharedStore(b)})
	spec := harness.Pool("bench", harness.SourceEngine())
	pool := node.MustPreload(b, spec)
	var endpoint atomic.Value
	endpoint.Store(pool.GetReplicas()[0].GetEndpoint())
	watching, stop := context.WithCancel(context.Background())
	defer stop()
	stream, err := node.Pools.Watch(watching, &poolv1.WatchRequest{})
	if err != nil {
		b.Fatal(err)
	}
	switched := make(chan time.Time, 64)
	go func() {
		for {
			message, err := stream.Recv()
			if err != nil {
				return
			}
			if replicas := message.GetUpsert().GetReplicas(); len(replicas) > 0 && replicas[0].GetEndpoint() != "" {
				if endpoint.Swap(replicas[0].GetEndpoint()) != replicas[0].GetEndpoint() {
					switched <- time.Now()
				}
			}
		}
	}()
	traffic := startTraffic(b, func() []string { now, _ := endpoint.Load().(string); return []string{now} })
	var toSwitch, all samples
	for i := 0; b.Loop(); i++ {
		spec.GetPrepare().Launch.ContextTokens = uint32(1024 + i%2*1024)
		began := time.Now()
		reload(b, node, spec)
		all = append(all, time.Since(began))
		if i%2 == 0 || len(switched) > 0 {
			toSwitch = append(toSwitch, (<-switched).Sub(began))
		}
	}
	traffic.report(b)
	b.ReportMetric(0, "ns/op")
	toSwitch.report(b, "until-switch")
	all.report(b, "reload")
}

func reload(b *testing.B, node *harness.Node, spec *poolv1.PoolSpec) {
	b.Helper()
	stream, err := node.Pools.Reload(b.Context(), &poolv1.ReloadRequest{Spec: spec})
	if err != nil {
		b.Fatal(err)
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			b.Fatal(err)
		}
		if response.GetResult() != nil {
			return
		}
	}
}
