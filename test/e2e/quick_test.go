// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// The whole life of a pool on a real engine out of a package.
func TestQuickEngine(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{Store: harness.SharedStore(t)})
	serveAndDrain(t, node, harness.Pool("quick", harness.QuickEngine(t)), "package")
}

// serveAndDrain loads a pool of a real engine, uses it, and drains it twice: once with a stream that ends in time and
// once with one that does not.
func serveAndDrain(t *testing.T, node *harness.Node, spec *poolv1.PoolSpec, mode string) {
	t.Helper()
	watcher := node.Watch(t)
	load := node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec})
	if load.Err != nil {
		t.Fatalf("Preload: %v", load.Err)
	}
	wantPhases := []poolv1.LoadPhase{
		poolv1.LoadPhase_LOAD_PHASE_PREPARING, poolv1.LoadPhase_LOAD_PHASE_STARTING, poolv1.LoadPhase_LOAD_PHASE_LOADING,
		poolv1.LoadPhase_LOAD_PHASE_VERIFYING,
	}
	if diff := cmp.Diff(wantPhases, load.Phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	if len(load.Progress.Steps) == 0 {
		t.Error("Preload did not forward the progress of the provisioner")
	}
	pool := load.Pool
	assertReady(t, node, pool)
	assertHandoff(t, node, pool, mode)
	assertServes(t, pool)
	if log := node.Logs(t, spec.GetPoolId()); !strings.Contains(log, "listening on") {
		t.Errorf("Logs = %q, want the engine's own words", log)
	}
	drainInTime(t, node, watcher, pool)

	again := node.MustPreload(t, spec)
	if got := again.GetReplicas()[0].GetGeneration(); got != 2 {
		t.Errorf("generation of the second start = %d, want 2", got)
	}
	drainTooLate(t, node, again)
	assertWatched(t, watcher)
}

func assertReady(t *testing.T, node *harness.Node, pool *poolv1.Pool) {
	t.Helper()
	if pool.GetState() != poolv1.PoolState_POOL_STATE_READY || len(pool.GetReplicas()) != 1 {
		t.Fatalf("pool = %v, want READY with one replica", pool)
	}
	replica := pool.GetReplicas()[0]
	if replica.GetState() != poolv1.ReplicaState_REPLICA_STATE_READY || replica.GetSlotsTotal() != 1 || replica.GetPid() == 0 ||
		!strings.HasPrefix(replica.GetEndpoint(), "http://127.0.0.1:") {
		t.Errorf("replica = %v, want READY with an endpoint, a pid and 1 slot", replica)
	}
	if model := pool.GetModel(); model.GetId() != harness.ModelID || model.GetContextTokens() != 2048 || len(model.GetSha256()) != 64 {
		t.Errorf("model = %v", model)
	}
	if engine := pool.GetEngine(); engine.GetVersion() == "" || !strings.HasPrefix(engine.GetDigest(), "sha256:") {
		t.Errorf("engine = %v", engine)
	}
	if got := node.Records(); len(got) != 1 {
		t.Errorf("records = %v, want one", got)
	}
	engines := node.Engines()
	if len(engines) == 0 || engines[0].PID != int(replica.GetPid()) {
		t.Errorf("engine processes = %v, want %d", engines, replica.GetPid())
	}
	if diff := cmp.Diff(pool.GetReplicas()[0].GetEndpoint(), node.GetPool(t, pool.GetPoolId()).GetReplicas()[0].GetEndpoint()); diff != "" {
		t.Errorf("endpoint that GetPool tells (-want +got):\n%s", diff)
	}
}

func assertHandoff(t *testing.T, node *harness.Node, pool *poolv1.Pool, mode string) {
	t.Helper()
	replica := pool.GetReplicas()[0]
	text, err := os.ReadFile(filepath.Join(node.Handoff, replica.GetReplicaId()+".json"))
	if err != nil {
		t.Fatalf("handoff file: %v", err)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatalf("handoff file: %v", err)
	}
	want := map[string]string{
		"engine": pool.GetEngine().GetKind(), "engine_version": pool.GetEngine().GetVersion(), "provisioning_mode": mode,
		"url": replica.GetEndpoint(), "pool_id": pool.GetPoolId(), "replica_id": replica.GetReplicaId(), "device_mask": "",
		"slots_total": "1", "slots_free": "1",
	}
	for key, value := range want {
		if text := strings.Trim(string(got[key]), `"`); text != value {
			t.Errorf("handoff file has %s = %s, want %s", key, text, value)
		}
	}
	var model struct{ ID, Path string }
	if err := json.Unmarshal(got["model"], &model); err != nil || model.ID != harness.ModelID {
		t.Errorf("handoff file has the model %s, %v", got["model"], err)
	}
	if _, err := os.Stat(model.Path); err != nil {
		t.Errorf("model file of the handoff file: %v", err)
	}
}

// assertServes asks for completions and looks at their shape: the small model's words are fluent and wrong.
func assertServes(t *testing.T, pool *poolv1.Pool) {
	t.Helper()
	endpoint := pool.GetReplicas()[0].GetEndpoint()
	chat := harness.NewChat(harness.ModelID, 24)
	var texts []string
	for range 2 {
		answer, err := chat.Ask(t.Context(), endpoint)
		if err != nil {
			t.Fatalf("ask: %v", err)
		}
		if len(answer.Choices) != 1 || answer.Choices[0].Message.Role != "assistant" || answer.Choices[0].FinishReason != "length" ||
			answer.Usage.CompletionTokens != 24 || answer.Usage.PromptTokens == 0 || answer.Model != harness.ModelID {
			t.Errorf("answer = %+v, want 24 tokens of the assistant from %s", answer, harness.ModelID)
		}
		texts = append(texts, answer.Choices[0].Message.Content)
	}
	if texts[0] == "" || texts[0] != texts[1] {
		t.Errorf("the same question at temperature 0 was answered %q and %q", texts[0], texts[1])
	}
	text, pieces, err := chat.Begin(t, endpoint).Wait()
	if err != nil || pieces < 2 || text != texts[0] {
		t.Errorf("stream = %q in %d pieces, %v; want %q in many", text, pieces, err, texts[0])
	}
}

// drainInTime drains a pool with a stream in flight that ends before the deadline.
func drainInTime(t *testing.T, node *harness.Node, watcher *harness.Watcher, pool *poolv1.Pool) {
	t.Helper()
	stream := harness.NewChat(harness.ModelID, 300).Begin(t, pool.GetReplicas()[0].GetEndpoint())
	drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: pool.GetPoolId(), Deadline: durationpb.New(2 * time.Minute)})
	if drained.Err != nil {
		t.Fatalf("Drain: %v", drained.Err)
	}
	if _, pieces, err := stream.Wait(); err != nil {
		t.Errorf("the stream was cut after %d pieces: %v", pieces, err)
	}
	result := drained.Result
	if result.GetRequestsCut() != 0 || result.GetForced() || result.GetGaveUp() || result.GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("drain = %v, want nothing forced or cut and the pool STOPPED", result)
	}
	if !sawInFlight(drained, 1) {
		t.Errorf("drain told %v, want one request in flight", drained.Progress)
	}
	watcher.Until(t, "the pool is draining", harness.InState(poolv1.PoolState_POOL_STATE_DRAINING))
	node.AssertNothingRuns(t)
}

func sawInFlight(drained harness.Drained, want uint32) bool {
	for _, progress := range drained.Progress {
		if progress.InFlight != nil && progress.GetInFlight() == want {
			return true
		}
	}
	return false
}

// drainTooLate drains a pool with a stream in flight that goes on beyond the deadline.
func drainTooLate(t *testing.T, node *harness.Node, pool *poolv1.Pool) {
	t.Helper()
	// The grace is the engines' stop protocol; the slack is for a machine that has much to do.
	const deadline, grace, slack = 200 * time.Millisecond, 7 * time.Second, 10 * time.Second
	stream := harness.NewChat(harness.ModelID, 1900).Begin(t, pool.GetReplicas()[0].GetEndpoint())
	drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: pool.GetPoolId(), Deadline: durationpb.New(deadline)})
	if drained.Err != nil {
		t.Fatalf("Drain: %v", drained.Err)
	}
	node.AssertNothingRuns(t)
	result := drained.Result
	if result.GetRequestsCut() != 1 || !result.GetForced() || result.GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("drain = %v, want one request cut and the pool STOPPED", result)
	}
	if took := result.GetDuration().AsDuration(); took < deadline || took > deadline+grace+slack {
		t.Errorf("drain took %v, want between %v and %v", took, deadline, deadline+grace)
	}
	if _, _, err := stream.Wait(); err == nil {
		t.Error("the stream was not cut, although the drain says so")
	}
	exit := result.GetPool().GetReplicas()[0].GetExit()
	if exit.GetRequestsCut() != 1 || len(exit.GetLastLogLines()) == 0 {
		t.Errorf("exit = %v, want one request cut and the last lines of the log", exit)
	}
}

// assertWatched looks at what a watcher was told of two lives of one pool.
func assertWatched(t *testing.T, watcher *harness.Watcher) {
	t.Helper()
	var states []poolv1.PoolState
	var revision uint64
	for _, event := range watcher.Events() {
		if event.Kind != client.KindUpsert {
			continue
		}
		if event.Pool.GetRevision() <= revision {
			t.Errorf("revision %d came after %d", event.Pool.GetRevision(), revision)
		}
		revision = event.Pool.GetRevision()
		if n := len(states); n == 0 || states[n-1] != event.Pool.GetState() {
			states = append(states, event.Pool.GetState())
		}
	}
	life := []poolv1.PoolState{
		poolv1.PoolState_POOL_STATE_LOADING, poolv1.PoolState_POOL_STATE_READY, poolv1.PoolState_POOL_STATE_DRAINING,
		poolv1.PoolState_POOL_STATE_STOPPED,
	}
	// A reader that is late may miss states, but never sees one out of order, nor misses the last.
	rest := states
	for _, state := range append(life, life...) {
		if len(rest) > 0 && rest[0] == state {
			rest = rest[1:]
		}
	}
	if len(rest) > 0 || len(states) < 4 || states[len(states)-1] != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("states that were watched = %v, want %v twice", states, life)
	}
}
