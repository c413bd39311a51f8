// SPDX-License-Identifier: Apache-2.0

// Package bench measures both services against an engine that is started by hand, in the same run.
//
// Each figure is a distribution over pairs taken in turn, so that a machine that gets slower meanwhile slows both. They
// are printed, never judged: `make bench`.
package bench

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// engines are the engines that are measured, with the same model and the same context.
func engines(b *testing.B) map[string]*enginev1.PrepareSpec {
	b.Helper()
	return map[string]*enginev1.PrepareSpec{"llamacpp": harness.SourceEngine(), "xllamacpp": harness.QuickEngine(b)}
}

// samples are durations of one kind.
type samples []time.Duration

func (s samples) at(share float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return float64(sorted[min(int(share*float64(len(sorted))), len(sorted)-1)].Microseconds()) / 1000
}

func (s samples) report(b *testing.B, name string) {
	b.ReportMetric(s.at(0.5), name+"-p50-ms")
	b.ReportMetric(s.at(0.9), name+"-p90-ms")
}

// BenchmarkPreloadReady compares the time until a prepared engine is READY through Preload with the time until the same
// engine, started by hand and asked every millisecond, answers 200. One iteration is one pair.
func BenchmarkPreloadReady(b *testing.B) {
	for name, spec := range engines(b) {
		b.Run("engine="+name, func(b *testing.B) {
			node := harness.Start(b, harness.Config{Store: harness.SharedStore(b)})
			prepared, _ := prepare(b, node, spec)
			var byHand, through, difference samples
			for i := 0; b.Loop(); i++ {
				// By turns first: what ran before leaves the machine busy for a moment.
				var h, t time.Duration
				if i%2 == 0 {
					h, _ = startByHand(b, prepared)
				}
				t = preload(b, node, fmt.Sprint("bench-", i), prepared.GetPreparedId())
				if i%2 == 1 {
					h, _ = startByHand(b, prepared)
				}
				byHand, through, difference = append(byHand, h), append(through, t), append(difference, t-h)
			}
			b.ReportMetric(0, "ns/op")
			byHand.report(b, "by-hand")
			through.report(b, "preload")
			difference.report(b, "difference")
		})
	}
}

// startByHand starts the engine and returns how long it took to answer 200, asked every millisecond, and then, from a KILL
// on, to be gone.
func startByHand(b *testing.B, prepared *enginev1.PreparedEngine) (ready, dying time.Duration) {
	b.Helper()
	port := freePort(b)
	var args []string
	for _, arg := range prepared.GetProcess().GetArgs() {
		switch arg.GetPlaceholder() {
		case enginev1.Placeholder_PLACEHOLDER_HOST:
			args = append(args, "127.0.0.1")
		case enginev1.Placeholder_PLACEHOLDER_PORT:
			args = append(args, strconv.Itoa(port))
		default:
			args = append(args, arg.GetLiteral())
		}
	}
	cmd := exec.CommandContext(b.Context(), prepared.GetProcess().GetExecutable(), args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	for name, value := range prepared.GetProcess().GetEnv() {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	url := fmt.Sprintf("http://127.0.0.1:%d%s", port, prepared.GetContract().GetReady().GetPath())
	began := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		killed := time.Now()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // Its error says that it was killed.
		dying = time.Since(killed)
	}()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if answers(b.Context(), url) {
			return time.Since(began), 0
		}
		if time.Since(began) > time.Minute {
			b.Fatal("the engine started by hand does not get ready")
		}
	}
	return 0, 0
}

func answers(ctx context.Context, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func freePort(b *testing.B) int {
	b.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	_, port, err := net.SplitHostPort(listener.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		b.Fatal(err)
	}
	return number
}

// preload returns how long it took until the caller was told that the pool is READY. The pool is drained again.
func preload(b *testing.B, node *harness.Node, pool, preparedID string) time.Duration {
	b.Helper()
	began := time.Now()
	stream, err := node.Pools.Preload(b.Context(), &poolv1.PreloadRequest{Spec: &poolv1.PoolSpec{
		PoolId: pool, Workload: &poolv1.PoolSpec_PreparedId{PreparedId: preparedID},
	}})
	if err != nil {
		b.Fatal(err)
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			b.Fatal(err)
		}
		if response.GetPool() != nil {
			break
		}
	}
	took := time.Since(began)
	drain(b, node, pool)
	return took
}

func drain(b *testing.B, node *harness.Node, pool string) {
	b.Helper()
	stream, err := node.Pools.Drain(b.Context(), &poolv1.DrainRequest{PoolId: pool})
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

// BenchmarkWarmPrepare measures a Prepare of which everything is in the store, over the Unix socket.
func BenchmarkWarmPrepare(b *testing.B) {
	for name, spec := range engines(b) {
		b.Run("engine="+name, func(b *testing.B) {
			node := harness.Start(b, harness.Config{Store: harness.SharedStore(b)})
			prepare(b, node, spec)
			var took samples
			for b.Loop() {
				_, duration := prepare(b, node, spec)
				took = append(took, duration)
			}
			b.ReportMetric(0, "ns/op")
			took.report(b, "prepare")
		})
	}
}

// prepare returns a prepared engine and how long it took until the caller had it.
func prepare(b *testing.B, node *harness.Node, spec *enginev1.PrepareSpec) (*enginev1.PreparedEngine, time.Duration) {
	b.Helper()
	began := time.Now()
	stream, err := node.Prepares.Prepare(b.Context(), &provisionerv1.PrepareRequest{Spec: spec})
	if err != nil {
		b.Fatal(err)
	}
	for {
		response, err := stream.Recv()
		if err != nil {
			b.Fatal(err)
		}
		if prepared := response.GetPrepared(); prepared != nil {
			return prepared, time.Since(began)
		}
	}
}
