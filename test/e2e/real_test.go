// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// The faults that a real llama-server meets, one after the other: it is killed idle, with a stream, and while it loads; it is
// stopped; its manager is killed with a stream; and it is reloaded under constant load.
func TestRealEngineUnderFaults(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{Store: harness.SharedStore(t)})
	spec := harness.Pool("real", harness.SourceEngine())
	spec.Restart = quickRestart()
	spec.Restart.Breaker = &poolv1.BreakerPolicy{FailedStarts: 100, FailuresInWindow: 100}
	// The limit is for a machine that has much to do, on which an engine may not run at all for a while.
	spec.Health = &poolv1.HealthPolicy{Interval: durationpb.New(200 * time.Millisecond), StallLimit: durationpb.New(2 * time.Second)}
	node.MustPreload(t, spec)
	real := &realEngine{node: node, watcher: node.Watch(t, "real")}
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"killed idle", real.killedIdle},
		{"killed with a stream", real.killedWithStream},
		{"killed while it loads", real.killedLoading},
		{"stopped", real.stopped},
		{"its manager is killed with a stream", real.managerKilled},
		{"reloaded under load", real.reloaded},
	} {
		t.Run(step.name, step.run) //nolint:paralleltest // one after the other
	}
}

// realEngine is a pool of one real engine.
type realEngine struct {
	node    *harness.Node
	watcher *harness.Watcher
}

// now is the engine that serves.
func (r *realEngine) now(t *testing.T) *poolv1.Replica {
	t.Helper()
	pool := r.node.GetPool(t, "real")
	if pool.GetState() != poolv1.PoolState_POOL_STATE_READY {
		t.Fatalf("pool = %v, want READY", pool)
	}
	return pool.GetReplicas()[0]
}

// next waits for an engine after this one that serves, and uses it.
func (r *realEngine) next(t *testing.T, after *poolv1.Replica) *poolv1.Replica {
	t.Helper()
	ready := r.watcher.Until(t, "another engine serves", func(p *poolv1.Pool) bool {
		return p.GetState() == poolv1.PoolState_POOL_STATE_READY && p.GetReplicas()[0].GetGeneration() > after.GetGeneration()
	}).GetReplicas()[0]
	if answer, err := harness.NewChat(harness.ModelID, 4).Ask(t.Context(), ready.GetEndpoint()); err != nil || answer.Usage.CompletionTokens != 4 {
		t.Errorf("answer of the new engine = %v, %v; want 4 tokens", answer, err)
	}
	return ready
}

func (r *realEngine) assertEnded(t *testing.T, old *poolv1.Replica, class enginev1.ExitClass) {
	t.Helper()
	for _, start := range r.node.Starts(t, "real") {
		if start.GetGeneration() == old.GetGeneration() {
			if start.GetExit().GetClass() != class {
				t.Errorf("start = %v, want %v", start, class)
			}
			return
		}
	}
	t.Errorf("the end of %v is not on record", old)
}

func (r *realEngine) killedIdle(t *testing.T) {
	old := r.now(t)
	harness.Signal(t, old, syscall.SIGKILL)
	r.next(t, old)
	r.assertEnded(t, old, enginev1.ExitClass_EXIT_CLASS_SIGNAL)
}

func (r *realEngine) killedWithStream(t *testing.T) {
	old := r.now(t)
	stream := harness.NewChat(harness.ModelID, 1900).Begin(t, old.GetEndpoint())
	harness.Signal(t, old, syscall.SIGKILL)
	r.next(t, old)
	r.assertEnded(t, old, enginev1.ExitClass_EXIT_CLASS_SIGNAL)
	if _, _, err := stream.Wait(); err == nil {
		t.Error("the stream of the killed engine has ended well")
	}
}

// killedLoading kills engine after engine as soon as its process is there, until one had not been ready. It does not wait for its
// progress: on a machine that has much to do, that is first told when the whole of so small a model is in memory.
func (r *realEngine) killedLoading(t *testing.T) {
	const tries = 10
	old := r.now(t)
	for range tries {
		harness.Signal(t, old, syscall.SIGKILL)
		generation := old.GetGeneration() + 1
		old = r.watcher.Until(t, "another engine has a process", func(p *poolv1.Pool) bool {
			replica := p.GetReplicas()[0]
			return replica.GetGeneration() == generation && replica.GetPid() != 0
		}).GetReplicas()[0]
		harness.Signal(t, old, syscall.SIGKILL)
		ready := r.next(t, old)
		r.assertEnded(t, old, enginev1.ExitClass_EXIT_CLASS_SIGNAL)
		for _, start := range r.node.Starts(t, "real") {
			if start.GetGeneration() == old.GetGeneration() && start.GetReady() == nil {
				return
			}
		}
		old = ready
	}
	t.Errorf("none of %d engines was killed before it was ready", tries)
}

func (r *realEngine) stopped(t *testing.T) {
	old := r.now(t)
	stream := harness.NewChat(harness.ModelID, 1900).Begin(t, old.GetEndpoint())
	harness.Signal(t, old, syscall.SIGSTOP)
	r.next(t, old)
	r.assertEnded(t, old, enginev1.ExitClass_EXIT_CLASS_HUNG)
	if _, _, err := stream.Wait(); err == nil {
		t.Error("the stream of the hung engine has ended well")
	}
}

func (r *realEngine) managerKilled(t *testing.T) {
	const tokens = 400
	old := r.now(t)
	stream := harness.NewChat(harness.ModelID, tokens).Begin(t, old.GetEndpoint())
	r.node.PoolManager.Kill()
	r.node.StartPoolManager(t)
	assertAdopted(t, r.node, "real", old)
	if _, pieces, err := stream.Wait(); err != nil || pieces < tokens/2 {
		t.Errorf("stream = %d pieces, %v; want all of it", pieces, err)
	}
}

func (r *realEngine) reloaded(t *testing.T) {
	const before, after = 5, 10
	old := r.now(t)
	spec := proto.CloneOf(r.node.GetPool(t, "real").GetSpec())
	spec.GetPrepare().GetLaunch().ContextTokens = 1024
	traffic := r.node.Traffic(t, "real", harness.NewChat(harness.ModelID, 8), 2)
	traffic.Await(t, before)
	reloaded := r.node.Reload(t.Context(), &poolv1.ReloadRequest{
		Spec: spec, Proof: &poolv1.ReloadProof{Prompt: "Once upon a time", MaxTokens: 8, MinTokensPerSecond: 0.1},
	})
	if reloaded.Err != nil || reloaded.Result.GetRequestsCut() != 0 || reloaded.Result.GetPool().GetModel().GetContextTokens() != 1024 ||
		reloaded.Result.GetPool().GetReplicas()[0].GetPid() == old.GetPid() {
		t.Errorf("Reload = %v, %v; want another engine with a context of 1024 tokens, and nothing cut", reloaded.Result, reloaded.Err)
	}
	traffic.Await(t, after)
	if asked, failures := traffic.Stop(); len(failures) > 0 {
		t.Errorf("%d of %d requests have failed: %v", len(failures), asked, failures)
	}
}
