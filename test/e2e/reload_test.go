// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// respec is a spec with other flags for its engine.
func respec(spec *poolv1.PoolSpec, flags ...string) *poolv1.PoolSpec {
	other := proto.CloneOf(spec)
	other.GetPrepare().GetLaunch().ContextTokens = 1024
	other.GetPrepare().GetLaunch().Flags = flags
	return other
}

// freePort is a port of this machine that nobody had a moment ago.
func freePort(t *testing.T) uint32 {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = free.Close()
	return uint32(free.Addr().(*net.TCPAddr).Port) //nolint:errcheck // a TCP listener has a TCP address
}

// countTo is a proof that the scripted engine passes.
func countTo() *poolv1.ReloadProof {
	return &poolv1.ReloadProof{Prompt: "count", MaxTokens: 8, Contains: "0 1 2 3", MinTokensPerSecond: 20}
}

// A reload starts and proves the new engine before anybody hears of it, changes the endpoint in one step, and ends the old engine
// when that has no request any more.
func TestReload(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	release := node.Path("release")
	spec := node.FakePool(t, "swap", "--fake-hold", release)
	old := node.MustPreload(t, spec).GetReplicas()[0]
	stream := harness.NewChat("tiny", 5).Begin(t, old.GetEndpoint())
	watcher := node.Watch(t, "swap")
	ended := make(chan harness.Reloaded, 1)
	go func() {
		ended <- node.Reload(t.Context(), &poolv1.ReloadRequest{
			Spec: respec(spec, "--fake-pause", "3ms"), Proof: countTo(), DrainDeadline: durationpb.New(time.Hour),
		})
	}()
	watcher.Until(t, "the old engine retires and works on", func(p *poolv1.Pool) bool {
		return len(p.GetRetiring()) == 1 && p.GetRetiring()[0].GetPid() == old.GetPid() && p.GetReplicas()[0].GetPid() != old.GetPid()
	})
	writeFile(t, release)
	reloaded := harness.Await(t, "the end of the reload", ended)
	if reloaded.Err != nil {
		t.Fatalf("Reload: %v", reloaded.Err)
	}
	if text, _, err := stream.Wait(); err != nil || text != "0 1 2 3 4 " {
		t.Errorf("stream of the old engine = %q, %v; want all of it", text, err)
	}
	wantPhases := []poolv1.ReloadPhase{
		poolv1.ReloadPhase_RELOAD_PHASE_PREPARING, poolv1.ReloadPhase_RELOAD_PHASE_STARTING, poolv1.ReloadPhase_RELOAD_PHASE_PROVING,
		poolv1.ReloadPhase_RELOAD_PHASE_DRAINING_OLD,
	}
	if diff := cmp.Diff(wantPhases, reloaded.Phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	result := reloaded.Result
	if result.GetAction() != poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK || !slices.Equal(result.GetRestartFields(), []string{"prepare.launch"}) ||
		result.GetOutage().AsDuration() != 0 || result.GetRequestsCut() != 0 || result.GetPool().GetEdition() != 2 {
		t.Errorf("result = %v, want MAKE_BEFORE_BREAK for prepare.launch, no outage, nothing cut", result)
	}
	assertOneChange(t, watcher, old.GetEndpoint(), result.GetPool().GetReplicas()[0].GetEndpoint())
	if text, err := os.ReadFile(filepath.Join(node.Handoff, "swap-0.json")); err != nil || !strings.Contains(string(text), result.GetPool().GetReplicas()[0].GetEndpoint()) {
		t.Errorf("handoff file = %s, %v; want the new endpoint", text, err)
	}
	if starts := node.Starts(t, "swap"); len(starts) != 1 || starts[0].GetPid() != old.GetPid() || starts[0].GetEndedBy() != "reload" {
		t.Errorf("starts = %v, want that of the old engine, ended by the reload", starts)
	}
	if engines := node.Engines(); len(engines) != 1 {
		t.Errorf("engines = %v, want the new one", engines)
	}
}

// assertOneChange looks whether a pool was READY all the time at one endpoint and then at another.
func assertOneChange(t *testing.T, watcher *harness.Watcher, old, fresh string) {
	t.Helper()
	var endpoints []string
	for _, event := range watcher.Events() {
		if event.Kind != client.KindUpsert {
			continue
		}
		if event.Pool.GetState() != poolv1.PoolState_POOL_STATE_READY {
			t.Errorf("a watcher was told of %v, want READY all the time", event.Pool)
		}
		endpoints = append(endpoints, event.Pool.GetReplicas()[0].GetEndpoint())
	}
	if got := slices.Compact(endpoints); !slices.Equal(got, []string{old, fresh}) {
		t.Errorf("endpoints that a watcher was told = %v, want %s and then %s", got, old, fresh)
	}
}

// A reload that fails, wherever it does, leaves the old engine serving what it has, and nothing of the new one.
func TestReloadThatFails(t *testing.T) {
	t.Parallel()
	precondition := func(why reason.Reason) harness.Want { return harness.Want{Code: codes.FailedPrecondition, Reason: why} }
	tests := []struct {
		name   string
		flags  []string
		change func(*poolv1.ReloadRequest)
		want   harness.Want
	}{
		{name: "the new engine exits", flags: []string{"--fake-exit", "7", "--fake-forks", "2"}, want: precondition(reason.WorkerStartFailed)},
		{
			name: "it never gets ready", flags: []string{"--fake-load-until", "/nonexistent/file"}, want: harness.Want{Code: codes.DeadlineExceeded, Reason: reason.WorkerStartTimeout},
			change: func(r *poolv1.ReloadRequest) { r.Spec.StartupTimeout = durationpb.New(500 * time.Millisecond) },
		},
		{name: "it serves another model", flags: []string{"--fake-model-id", "other"}, want: precondition(reason.WorkerStartFailed)},
		{name: "it answers the prompt wrongly", flags: []string{"--fake-behave", "wrong-answer"}, want: precondition(reason.ProofFailed)},
		{name: "it answers the prompt too slowly", flags: []string{"--fake-behave", "slow"}, want: precondition(reason.ProofFailed)},
		{
			name: "it does not answer the prompt", flags: []string{"--fake-behave", "stuck"}, want: precondition(reason.ProofFailed),
			change: func(r *poolv1.ReloadRequest) { r.Proof.Timeout = durationpb.New(300 * time.Millisecond) },
		},
		{
			name: "its model is not there", want: harness.Want{Code: codes.NotFound, Reason: reason.ModelNotFound},
			change: func(r *poolv1.ReloadRequest) { r.Spec.GetPrepare().GetModel().Uri += ".other" },
		},
	}
	node := harness.Start(t, harness.Config{})
	release := node.Path("release")
	spec := node.FakePool(t, "stays", "--fake-hold", release)
	old := node.MustPreload(t, spec)
	stream := harness.NewChat("tiny", 5).Begin(t, old.GetReplicas()[0].GetEndpoint())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { //nolint:paralleltest // what runs on the node is looked at
			request := &poolv1.ReloadRequest{Spec: respec(spec, tt.flags...), Proof: countTo()}
			if tt.change != nil {
				tt.change(request)
			}
			tt.want.Check(t, node.Reload(t.Context(), request).Err)
			assertUntouched(t, node, old)
		})
	}
	writeFile(t, release)
	if text, _, err := stream.Wait(); err != nil || text != "0 1 2 3 4 " {
		t.Errorf("stream = %q, %v; want all of it", text, err)
	}
}

// assertUntouched looks whether a pool of one engine is what it was before a reload, and whether nothing else runs.
func assertUntouched(t *testing.T, node *harness.Node, was *poolv1.Pool) {
	t.Helper()
	is, old := node.GetPool(t, was.GetPoolId()), was.GetReplicas()[0]
	if is.GetState() != poolv1.PoolState_POOL_STATE_READY || is.GetEdition() != was.GetEdition() || is.GetReload() != nil || len(is.GetRetiring()) > 0 ||
		!proto.Equal(is.GetSpec(), was.GetSpec()) || is.GetReplicas()[0].GetPid() != old.GetPid() || is.GetReplicas()[0].GetEndpoint() != old.GetEndpoint() {
		t.Errorf("pool = %v, want what it was: %v", is, was)
	}
	if engines := node.Engines(); len(engines) != 1 || engines[0].PID != int(old.GetPid()) {
		t.Errorf("engines = %v, want the old one alone", engines)
	}
	if records, files := node.Records(), node.HandoffFiles(); len(records) != 1 || len(files) != 1 {
		t.Errorf("records = %v, handoff files = %v, want those of the old engine", records, files)
	}
}

// A reload is stopped by who cancels it, and by a drain; who called for it learns of that.
func TestReloadIsCancelled(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	spec := node.FakePool(t, "kept")
	old := node.MustPreload(t, spec)
	begin := func(t *testing.T) <-chan harness.Reloaded {
		t.Helper()
		watcher := node.Watch(t, "kept")
		ended := make(chan harness.Reloaded, 1)
		go func() {
			ended <- node.Reload(t.Context(), &poolv1.ReloadRequest{Spec: respec(spec, "--fake-load-until", "/nonexistent/file")})
		}()
		watcher.Until(t, "the new engine loads", func(p *poolv1.Pool) bool {
			candidates := p.GetReload().GetCandidates()
			return len(candidates) == 1 && candidates[0].GetPid() != 0
		})
		return ended
	}
	t.Run("by CancelReload", func(t *testing.T) { //nolint:paralleltest // what runs on the node is looked at
		ended := begin(t)
		harness.Want{Code: codes.Aborted, Reason: reason.PoolBusy}.Check(t, node.Reload(t.Context(), &poolv1.ReloadRequest{Spec: respec(spec)}).Err)
		answer, err := node.Pools.CancelReload(t.Context(), &poolv1.CancelReloadRequest{PoolId: "kept"})
		if err != nil || !answer.GetCancelled() {
			t.Errorf("CancelReload = %v, %v; want cancelled", answer, err)
		}
		assertUntouched(t, node, old)
		harness.Want{Code: codes.Canceled, Reason: reason.Cancelled}.Check(t, harness.Await(t, "the end of the reload", ended).Err)
		if again, err := node.Pools.CancelReload(t.Context(), &poolv1.CancelReloadRequest{PoolId: "kept"}); err != nil || again.GetCancelled() {
			t.Errorf("a second CancelReload = %v, %v; want nothing cancelled", again, err)
		}
	})
	t.Run("by a drain", func(t *testing.T) { //nolint:paralleltest // what runs on the node is looked at
		ended := begin(t)
		drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "kept"})
		if drained.Err != nil || drained.Result.GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
			t.Errorf("drain = %v, %v; want STOPPED", drained.Result, drained.Err)
		}
		node.AssertNothingRuns(t)
		if err := harness.Await(t, "the end of the reload", ended).Err; err == nil {
			t.Error("the reload of a pool that was drained has succeeded")
		}
	})
}

// With an outage that is accepted the old engine goes first, and comes back when the new one fails.
func TestReloadWithOutage(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	spec := node.FakePool(t, "fixed")
	spec.Port = freePort(t)
	old := node.MustPreload(t, spec)
	harness.Want{Code: codes.FailedPrecondition, Reason: reason.OutageNotAccepted, Field: "accept_outage"}.
		Check(t, node.Reload(t.Context(), &poolv1.ReloadRequest{Spec: respec(spec)}).Err)
	assertUntouched(t, node, old)

	reloaded := node.Reload(t.Context(), &poolv1.ReloadRequest{Spec: respec(spec), AcceptOutage: true})
	if reloaded.Err != nil {
		t.Fatalf("Reload: %v", reloaded.Err)
	}
	second := reloaded.Result.GetPool()
	if reloaded.Result.GetAction() != poolv1.ReloadAction_RELOAD_ACTION_BREAK_BEFORE_MAKE || reloaded.Result.GetOutage().AsDuration() <= 0 ||
		second.GetState() != poolv1.PoolState_POOL_STATE_READY || second.GetReplicas()[0].GetEndpoint() != old.GetReplicas()[0].GetEndpoint() {
		t.Errorf("result = %v, want BREAK_BEFORE_MAKE with its outage and the same endpoint", reloaded.Result)
	}

	broken := respec(spec, "--fake-exit", "7")
	failed := node.Reload(t.Context(), &poolv1.ReloadRequest{Spec: broken, AcceptOutage: true})
	harness.Want{Code: codes.FailedPrecondition, Reason: reason.WorkerStartFailed, Message: "rolled back after an outage of"}.Check(t, failed.Err)
	if !slices.Contains(failed.Phases, poolv1.ReloadPhase_RELOAD_PHASE_ROLLING_BACK) {
		t.Errorf("phases = %v, want one of rolling back", failed.Phases)
	}
	after := node.GetPool(t, "fixed")
	if after.GetState() != poolv1.PoolState_POOL_STATE_READY || after.GetEdition() != second.GetEdition() || !proto.Equal(after.GetSpec(), second.GetSpec()) ||
		after.GetReplicas()[0].GetEndpoint() != second.GetReplicas()[0].GetEndpoint() {
		t.Errorf("pool = %v, want %v again", after, second)
	}
	if _, err := harness.NewChat("tiny", 2).Ask(t.Context(), after.GetReplicas()[0].GetEndpoint()); err != nil {
		t.Errorf("the engine that was started again does not serve: %v", err)
	}
}

// What is no change, what needs no other engine, and what is only asked about leaves every engine as it is; more and fewer
// replicas leave those that stay.
func TestReloadThatKeepsEngines(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	spec := node.FakePool(t, "same")
	old := node.MustPreload(t, spec)
	reload := func(request *poolv1.ReloadRequest, action poolv1.ReloadAction, fresh, live []string) *poolv1.Pool {
		t.Helper()
		reloaded := node.Reload(t.Context(), request)
		if reloaded.Err != nil {
			t.Fatalf("Reload: %v", reloaded.Err)
		}
		if r := reloaded.Result; r.GetAction() != action || !slices.Equal(r.GetRestartFields(), fresh) || !slices.Equal(r.GetLiveFields(), live) {
			t.Errorf("result = %v, want %v for %v and %v", r, action, fresh, live)
		}
		pool := node.GetPool(t, "same")
		if pool.GetReplicas()[0].GetPid() != old.GetReplicas()[0].GetPid() || pool.GetState() != poolv1.PoolState_POOL_STATE_READY {
			t.Errorf("pool = %v, want READY with the engine that was there", pool)
		}
		return pool
	}
	reload(&poolv1.ReloadRequest{Spec: spec}, poolv1.ReloadAction_RELOAD_ACTION_NONE, nil, nil)
	reload(&poolv1.ReloadRequest{Spec: respec(spec), DryRun: true}, poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK, []string{"prepare.launch"}, nil)
	assertUntouched(t, node, old)

	live := proto.CloneOf(spec)
	live.Labels, live.Health, live.Priority = map[string]string{"team": "a"}, quickHealth(), 7
	if got := reload(&poolv1.ReloadRequest{Spec: live}, poolv1.ReloadAction_RELOAD_ACTION_LIVE, nil, []string{"health", "priority", "labels"}); got.GetSpec().GetLabels()["team"] != "a" {
		t.Errorf("spec = %v, want the label", got.GetSpec())
	}
	wide := proto.CloneOf(live)
	wide.Replicas = 3
	if got := reload(&poolv1.ReloadRequest{Spec: wide}, poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK, []string{"replicas"}, nil); len(got.GetReplicas()) != 3 || len(node.Engines()) != 3 {
		t.Errorf("replicas = %v, engines = %v, want 3", got.GetReplicas(), node.Engines())
	}
	if got := reload(&poolv1.ReloadRequest{Spec: live}, poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK, []string{"replicas"}, nil); len(got.GetReplicas()) != 1 || len(node.Engines()) != 1 {
		t.Errorf("replicas = %v, engines = %v, want 1", got.GetReplicas(), node.Engines())
	}

	// A change without other engines is one that lasts.
	node.PoolManager.Kill()
	node.StartPoolManager(t)
	if got := node.GetPool(t, "same"); got.GetSpec().GetLabels()["team"] != "a" || got.GetReplicas()[0].GetPid() != old.GetReplicas()[0].GetPid() {
		t.Errorf("pool after a crash of the manager = %v, want the label and the engine that was there", got)
	}
}

// Clients that ask all the time, follow Watch and try nothing twice see no request fail while their pool is reloaded again and
// again.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	const reloads, between, clients = 4, 30, 4
	node := harness.Start(t, harness.Config{})
	spec := node.FakePool(t, "traffic", "--fake-pause", "2ms")
	spec.Replicas = 2
	node.MustPreload(t, spec)
	traffic := node.Traffic(t, "traffic", harness.NewChat("tiny", 10), clients)
	for i := range reloads {
		traffic.Await(t, between)
		next := spec
		if i%2 == 0 {
			next = respec(spec, "--fake-pause", "3ms")
		}
		if reloaded := node.Reload(t.Context(), &poolv1.ReloadRequest{Spec: next, Proof: countTo()}); reloaded.Err != nil || reloaded.Result.GetRequestsCut() != 0 {
			t.Errorf("Reload %d = %v, %v; want nothing cut", i, reloaded.Result, reloaded.Err)
		}
	}
	traffic.Await(t, between)
	asked, failures := traffic.Stop()
	if len(failures) > 0 {
		t.Errorf("%d of %d requests have failed: %v", len(failures), asked, failures)
	}
	t.Logf("%d requests over %d reloads", asked, reloads)
}
