// SPDX-License-Identifier: Apache-2.0

package server

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// reload returns the events of a reload, each once in a few words, and its result.
func (n *node) reload(t *testing.T, request *poolv1.ReloadRequest) ([]string, *poolv1.ReloadResult, error) {
	t.Helper()
	stream, err := n.Reload(t.Context(), request)
	messages, err := all(t, stream, err)
	var told []string
	for i, m := range messages {
		switch e := m.GetEvent().(type) {
		case *poolv1.ReloadResponse_Phase:
			told = append(told, strings.TrimPrefix(e.Phase.String(), "RELOAD_PHASE_"))
		case *poolv1.ReloadResponse_Progress:
			told = append(told, "progress of "+e.Progress.GetStep().GetId())
		case *poolv1.ReloadResponse_Draining:
			told = append(told, "draining")
		case *poolv1.ReloadResponse_Result:
			if i != len(messages)-1 || err != nil {
				t.Errorf("the result comes as message %d of %d, which end with %v", i+1, len(messages), err)
			}
			return slices.Compact(told), e.Result, err
		}
	}
	if err == nil {
		t.Errorf("Reload(%v) ended well without a result", request)
	}
	return slices.Compact(told), nil, err
}

// other is a valid spec of pool a with another model.
func other() *poolv1.PoolSpec {
	spec := validSpec("a")
	spec.GetPrepare().Model.Uri = "file:/other.gguf"
	return spec
}

// poolA returns pool a as it is now.
func (n *node) poolA(t *testing.T) *poolv1.Pool {
	t.Helper()
	got, err := n.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: "a"})
	if err != nil {
		t.Fatal(err)
	}
	return got.GetPool()
}

func TestReload(t *testing.T) {
	t.Parallel()
	fixed := func(spec *poolv1.PoolSpec) *poolv1.PoolSpec {
		spec.Port = 8080
		return spec
	}
	labelled := validSpec("a")
	labelled.Labels, labelled.Priority = map[string]string{"k": "v"}, 5
	preparing := []string{"PREPARING", "progress of build"}
	for _, tt := range []struct {
		name       string
		from       *poolv1.PoolSpec
		inFlight   int
		request    *poolv1.ReloadRequest
		told       []string
		want       *poolv1.ReloadResult
		generation uint64
		outage     bool
	}{
		{
			"none", validSpec("a"), 0, &poolv1.ReloadRequest{Spec: validSpec("a")}, nil,
			&poolv1.ReloadResult{Action: poolv1.ReloadAction_RELOAD_ACTION_NONE}, 1, false,
		},
		{
			"live", validSpec("a"), 1, &poolv1.ReloadRequest{Spec: labelled}, nil,
			&poolv1.ReloadResult{Action: poolv1.ReloadAction_RELOAD_ACTION_LIVE, LiveFields: []string{"priority", "labels"}}, 1, false,
		},
		{
			"make before break", validSpec("a"), 0, &poolv1.ReloadRequest{Spec: other()},
			slices.Concat(preparing, []string{"STARTING", "DRAINING_OLD", "draining"}),
			&poolv1.ReloadResult{Action: poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK, RestartFields: []string{"prepare.model"}}, 2, false,
		},
		{
			"with a proof, cutting requests", validSpec("a"), 2,
			&poolv1.ReloadRequest{Spec: other(), Proof: &poolv1.ReloadProof{Prompt: "2+2=", Contains: "4"}, DrainDeadline: durationpb.New(0)},
			slices.Concat(preparing, []string{"STARTING", "PROVING", "DRAINING_OLD", "draining"}),
			&poolv1.ReloadResult{
				Action: poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK, RestartFields: []string{"prepare.model"}, RequestsCut: 2,
			}, 2, false,
		},
		{
			"with an outage", fixed(validSpec("a")), 0, &poolv1.ReloadRequest{Spec: fixed(other()), AcceptOutage: true},
			slices.Concat(preparing, []string{"STOPPING_OLD", "draining", "STARTING", "DRAINING_OLD"}),
			&poolv1.ReloadResult{Action: poolv1.ReloadAction_RELOAD_ACTION_BREAK_BEFORE_MAKE, RestartFields: []string{"prepare.model"}}, 2, true,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, Config{})
			n.mustPreload(t, tt.from)
			n.be(func() { n.inFlight = tt.inFlight })
			told, result, err := n.reload(t, tt.request)
			if err != nil {
				t.Fatalf("Reload: %v", err)
			}
			if tt.outage && len(told) > 0 && told[len(told)-1] == "draining" {
				told = told[:len(told)-1] // There is nobody left to drain, which may be told.
			}
			if diff := cmp.Diff(tt.told, told); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.want, result, protocmp.Transform(), protocmp.IgnoreFields(result, "pool", "duration", "outage")); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			if (result.GetOutage().AsDuration() > 0) != tt.outage || result.GetDuration() == nil {
				t.Errorf("outage is %v and duration %v", result.GetOutage(), result.GetDuration())
			}
			pool := n.poolA(t)
			if diff := cmp.Diff(withPolicies(tt.request.GetSpec()), pool.GetSpec(), protocmp.Transform()); diff != "" {
				t.Errorf("spec (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(pool, result.GetPool(), protocmp.Transform()); diff != "" {
				t.Errorf("the result's pool (-GetPool +got):\n%s", diff)
			}
			if pool.GetState() != poolv1.PoolState_POOL_STATE_READY || pool.GetReload() != nil || len(pool.GetRetiring()) != 0 ||
				pool.GetReplicas()[0].GetGeneration() != tt.generation || pool.GetEdition() != tt.generation {
				t.Errorf("pool is %v, want it READY and alone in generation and edition %d", pool, tt.generation)
			}
		})
	}
}

// withPolicies is withDefaults, with a copy of what else the spec has.
func withPolicies(spec *poolv1.PoolSpec) *poolv1.PoolSpec { return withDefaults(proto.CloneOf(spec)) }

func TestReloadThatIsDry(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	before := n.mustPreload(t, validSpec("a"))
	spec := other()
	spec.Replicas, spec.Labels = 2, map[string]string{"k": "v"}
	told, result, err := n.reload(t, &poolv1.ReloadRequest{Spec: spec, DryRun: true})
	want := &poolv1.ReloadResult{
		Action:        poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK,
		RestartFields: []string{"prepare.model", "replicas"}, LiveFields: []string{"labels"}, Duration: durationpb.New(0), Pool: before,
	}
	if diff := cmp.Diff(want, result, protocmp.Transform()); diff != "" || err != nil {
		t.Errorf("result: %v (-want +got):\n%s", err, diff)
	}
	if diff := cmp.Diff(before, n.poolA(t), protocmp.Transform()); diff != "" || len(told) > 0 || n.prepares() != 1 {
		t.Errorf("a dry run told %q, prepared %d times and changed (-before +after):\n%s", told, n.prepares()-1, diff)
	}
}

// A reload that is refused or fails leaves the pool as it was.
func TestReloadThatFails(t *testing.T) {
	t.Parallel()
	fixed := other()
	fixed.Port = 8080
	for _, tt := range []struct {
		name    string
		refuse  error
		request *poolv1.ReloadRequest
		want    reason.Reason
		check   func(*reason.Error) bool
	}{
		{
			"the proof fails", nil, &poolv1.ReloadRequest{Spec: other(), Proof: &poolv1.ReloadProof{Prompt: "2+2=", Contains: "nonsense"}},
			reason.ProofFailed, func(e *reason.Error) bool { return e.Metadata["check"] == "contains" },
		},
		{
			"the new engine does not start", reason.New(reason.WorkerStartTimeout, "not ready", reason.Remedy("wait longer")),
			&poolv1.ReloadRequest{Spec: other()}, reason.WorkerStartTimeout, func(e *reason.Error) bool { return e.Remedy == "wait longer" },
		},
		{
			"the port stays, and no outage is accepted", nil, &poolv1.ReloadRequest{Spec: fixed}, reason.OutageNotAccepted,
			func(e *reason.Error) bool {
				return e.Metadata["port"] == "8080" && len(e.Fields) == 1 && e.Fields[0].Name == "accept_outage"
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t, Config{})
			from := validSpec("a")
			from.Port = tt.request.GetSpec().GetPort()
			before := n.mustPreload(t, from)
			n.be(func() { n.refuse = tt.refuse })
			_, _, err := n.reload(t, tt.request)
			if typed := typedError(t, err, tt.want); !tt.check(typed) || typed.Remedy == "" {
				t.Errorf("error %+v has lost something", typed)
			}
			ignored := protocmp.IgnoreFields(before, "revision", "updated")
			if diff := cmp.Diff(before, n.poolA(t), protocmp.Transform(), ignored); diff != "" {
				t.Errorf("pool (-before +after):\n%s", diff)
			}
		})
	}
}

func TestReloadOfWhatDoesNotServe(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.drain(t, &poolv1.DrainRequest{})
	_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: other()})
	if typed := typedError(t, err, reason.PoolUnready); typed.Remedy == "" {
		t.Errorf("error %+v has no remedy", typed)
	}
}

// startReload begins a reload whose new engine waits until the returned channel is closed.
func (n *node) startReload(t *testing.T) (poolv1.PoolManagerService_ReloadClient, chan struct{}) {
	t.Helper()
	hold := make(chan struct{})
	n.be(func() { n.hold = hold })
	stream, err := n.Reload(t.Context(), &poolv1.ReloadRequest{Spec: other()})
	if err != nil {
		t.Fatal(err)
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if message.GetPhase() == poolv1.ReloadPhase_RELOAD_PHASE_STARTING {
			return stream, hold
		}
	}
}

func TestCancelReload(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	before := n.mustPreload(t, validSpec("a"))
	stream, hold := n.startReload(t)
	defer close(hold)
	if pool := n.poolA(t); pool.GetState() != poolv1.PoolState_POOL_STATE_READY || pool.GetReload() == nil {
		t.Errorf("meanwhile the pool is %v, want it READY with a reload", pool)
	}
	cancelled, err := n.CancelReload(t.Context(), &poolv1.CancelReloadRequest{PoolId: "a"})
	if err != nil || !cancelled.GetCancelled() {
		t.Errorf("CancelReload = %v, %v, want true", cancelled, err)
	}
	_, err = all(t, stream, nil)
	wantReason(t, err, reason.Cancelled)
	ignored := protocmp.IgnoreFields(before, "revision", "updated")
	if diff := cmp.Diff(before, n.poolA(t), protocmp.Transform(), ignored); diff != "" {
		t.Errorf("pool (-before +after):\n%s", diff)
	}
	cancelled, err = n.CancelReload(t.Context(), &poolv1.CancelReloadRequest{PoolId: "a"})
	if err != nil || cancelled.GetCancelled() {
		t.Errorf("CancelReload of nothing = %v, %v, want false", cancelled, err)
	}
}

func TestWhileReloading(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.mustPreload(t, validSpec("a"))
	stream, hold := n.startReload(t)
	_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: validSpec("a")})
	if typed := typedError(t, err, reason.PoolBusy); typed.RetryAfter == 0 {
		t.Errorf("error %+v does not say when to come again", typed)
	}
	close(hold)
	messages, err := all(t, stream, nil)
	if err != nil || messages[len(messages)-1].GetResult() == nil {
		t.Errorf("Reload ended with %v, %v, want its result", messages, err)
	}
}

// An absent drain deadline means 30 s.
func TestReloadThatWaitsForTheOld(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.mustPreload(t, validSpec("a"))
	n.be(func() { n.inFlight = 3 })
	stream, err := n.Reload(t.Context(), &poolv1.ReloadRequest{Spec: other()})
	if err != nil {
		t.Fatal(err)
	}
	var draining *poolv1.DrainProgress
	for draining.GetInFlight() != 3 {
		message, err := stream.Recv()
		if err != nil || message.GetResult() != nil {
			t.Fatalf("Reload: %v, %v, want it to wait", message, err)
		}
		draining = message.GetDraining()
	}
	if left := draining.GetRemaining().AsDuration(); left <= 20*time.Second || left > 30*time.Second {
		t.Errorf("event %v, want something below 30 s", draining)
	}
	if pool := n.poolA(t); pool.GetState() != poolv1.PoolState_POOL_STATE_READY || len(pool.GetRetiring()) != 1 {
		t.Errorf("meanwhile: %v, want it READY with one that retires", pool)
	}
	n.be(func() { n.inFlight = 0 })
	messages, err := all(t, stream, nil)
	if err != nil || messages[len(messages)-1].GetResult() == nil || messages[len(messages)-1].GetResult().GetRequestsCut() != 0 {
		t.Errorf("Reload: %v, %v, want a good end", messages, err)
	}
}

func TestReloadMessages(t *testing.T) {
	t.Parallel()
	result := reloadResultOf(lifecycle.ReloadResult{
		Action: lifecycle.BreakBeforeMake, RestartFields: []string{"port"}, LiveFields: []string{"labels"}, Outage: time.Second, RequestsCut: 5,
		Duration: time.Minute, Pool: full(),
	})
	want := &poolv1.ReloadResult{
		Action: poolv1.ReloadAction_RELOAD_ACTION_BREAK_BEFORE_MAKE, RestartFields: []string{"port"}, LiveFields: []string{"labels"},
		Outage: durationpb.New(time.Second), RequestsCut: 5, Duration: durationpb.New(time.Minute), Pool: poolOf(full()),
	}
	if diff := cmp.Diff(want, result, protocmp.Transform()); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
	wantFull(t, result)
	if forgotten := reloadResultOf(lifecycle.ReloadResult{}); forgotten.GetPool() != nil || forgotten.GetDuration() == nil {
		t.Errorf("result of a pool that is forgotten is %v", forgotten)
	}
	step := &enginev1.Progress{}
	for _, tt := range []struct {
		name string
		in   lifecycle.ReloadEvent
		want *poolv1.ReloadResponse
	}{
		{
			"phase", lifecycle.ReloadEvent{Phase: registry.ReloadRollingBack},
			&poolv1.ReloadResponse{Event: &poolv1.ReloadResponse_Phase{Phase: poolv1.ReloadPhase_RELOAD_PHASE_ROLLING_BACK}},
		},
		{
			"progress", lifecycle.ReloadEvent{Progress: step},
			&poolv1.ReloadResponse{Event: &poolv1.ReloadResponse_Progress{Progress: step}},
		},
		{
			"draining", lifecycle.ReloadEvent{Draining: &lifecycle.DrainProgress{Remaining: time.Second}},
			&poolv1.ReloadResponse{Event: &poolv1.ReloadResponse_Draining{Draining: drainProgressOf(lifecycle.DrainProgress{Remaining: time.Second})}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, reloadEventOf(tt.in), protocmp.Transform()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProof(t *testing.T) {
	t.Parallel()
	got := proofOf(&poolv1.ReloadProof{Prompt: "p", MaxTokens: 7, Contains: "c", MinTokensPerSecond: 1.5, Timeout: durationpb.New(time.Hour)})
	want := launch.Proof{Prompt: "p", MaxTokens: 7, Contains: "c", MinTokensPerSecond: 1.5, Timeout: time.Hour}
	if got != want {
		t.Errorf("proof is %+v, want %+v", got, want)
	}
	if none := proofOf(nil); none != (launch.Proof{}) {
		t.Errorf("no proof is %+v", none)
	}
}
