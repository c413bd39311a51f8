// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func TestUnknownPool(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	for name, call := range map[string]func(context.Context) error{
		"GetPool": func(ctx context.Context) error {
			_, err := n.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: "x"})
			return err
		},
		"CancelPreload": func(ctx context.Context) error {
			_, err := n.CancelPreload(ctx, &poolv1.CancelPreloadRequest{PoolId: "x"})
			return err
		},
		"DeletePool": func(ctx context.Context) error {
			_, err := n.DeletePool(ctx, &poolv1.DeletePoolRequest{PoolId: "x"})
			return err
		},
		"Drain": func(ctx context.Context) error {
			stream, err := n.Drain(ctx, &poolv1.DrainRequest{PoolId: "x"})
			_, err = all(t, stream, err)
			return err
		},
		"Reload": func(ctx context.Context) error {
			stream, err := n.Reload(ctx, &poolv1.ReloadRequest{Spec: validSpec("x")})
			_, err = all(t, stream, err)
			return err
		},
		"CancelReload": func(ctx context.Context) error {
			_, err := n.CancelReload(ctx, &poolv1.CancelReloadRequest{PoolId: "x"})
			return err
		},
		"ListStarts": func(ctx context.Context) error {
			_, err := n.ListStarts(ctx, &poolv1.ListStartsRequest{PoolId: "x"})
			return err
		},
		"ResetBreaker": func(ctx context.Context) error {
			_, err := n.ResetBreaker(ctx, &poolv1.ResetBreakerRequest{PoolId: "x"})
			return err
		},
		"Logs": func(ctx context.Context) error {
			stream, err := n.Logs(ctx, &poolv1.LogsRequest{PoolId: "x", Follow: true})
			_, err = all(t, stream, err)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			typed := typedError(t, call(t.Context()), reason.PoolNotFound)
			if typed.Remedy == "" || typed.Metadata["pool_id"] != "x" || len(typed.Fields) != 1 || typed.Fields[0].Name != "pool_id" {
				t.Errorf("error is %+v, want field, pool id and remedy", typed)
			}
		})
	}
}

func TestSpecThatIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	for _, tt := range []struct {
		name   string
		change func(*poolv1.PoolSpec)
		field  string
	}{
		{"a pool id with a slash", func(s *poolv1.PoolSpec) { s.PoolId = "a/b" }, "spec.pool_id"},
		{"a pool id that climbs", func(s *poolv1.PoolSpec) { s.PoolId = ".." }, "spec.pool_id"},
		{"no pool id", func(s *poolv1.PoolSpec) { s.PoolId = "" }, "spec.pool_id"},
		{"a pool id of 64 characters", func(s *poolv1.PoolSpec) { s.PoolId = strings.Repeat("a", 64) }, "spec.pool_id"},
		{"a pool id of 300 characters", func(s *poolv1.PoolSpec) { s.PoolId = strings.Repeat("a", 300) }, "spec.pool_id"},
		{"a pool id with a newline", func(s *poolv1.PoolSpec) { s.PoolId = "a\n" }, "spec.pool_id"},
		{"65 replicas", func(s *poolv1.PoolSpec) { s.Replicas = 65 }, "spec.replicas"},
		{"port 70000", func(s *poolv1.PoolSpec) { s.Port = 70000 }, "spec.port"},
		{"two replicas at one port", func(s *poolv1.PoolSpec) { s.Replicas, s.Port = 2, 8080 }, "spec.port"},
		{"a startup timeout of nothing", func(s *poolv1.PoolSpec) { s.StartupTimeout = durationpb.New(0) }, "spec.startup_timeout"},
		{"a startup timeout of two days", func(s *poolv1.PoolSpec) { s.StartupTimeout = durationpb.New(48 * time.Hour) }, "spec.startup_timeout"},
		{"nothing to run", func(s *poolv1.PoolSpec) { s.Workload = nil }, "spec.workload"},
		{"a prepared id that is none", func(s *poolv1.PoolSpec) { s.Workload = &poolv1.PoolSpec_PreparedId{PreparedId: "x"} }, "spec.prepared_id"},
		{"no engine", func(s *poolv1.PoolSpec) { s.GetPrepare().Engine = nil }, "spec.prepare.engine"},
		{"no engine kind", func(s *poolv1.PoolSpec) { s.GetPrepare().Engine.Kind = "" }, "spec.prepare.engine.kind"},
		{"an engine from nowhere", func(s *poolv1.PoolSpec) { s.GetPrepare().Engine.Source = nil }, "spec.prepare.engine.source"},
		{"no model", func(s *poolv1.PoolSpec) { s.GetPrepare().Model = nil }, "spec.prepare.model"},
		{"129 flags", func(s *poolv1.PoolSpec) {
			s.GetPrepare().Launch = &enginev1.LaunchSpec{Flags: strings.Split(strings.Repeat("x,", 128)+"x", ",")}
		}, "spec.prepare.launch.flags"},
		{"a TTL without an idle timeout", func(s *poolv1.PoolSpec) { s.Residency = poolv1.Residency_RESIDENCY_TTL }, "spec.idle_timeout"},
		{"an idle timeout of a PINNED pool", func(s *poolv1.PoolSpec) { s.IdleTimeout = durationpb.New(time.Minute) }, "spec.idle_timeout"},
		{"an idle timeout of half a second", func(s *poolv1.PoolSpec) {
			s.Residency, s.IdleTimeout = poolv1.Residency_RESIDENCY_LAZY, durationpb.New(time.Second/2)
		}, "spec.idle_timeout"},
		{"a residency that is not known", func(s *poolv1.PoolSpec) { s.Residency = 9 }, "spec.residency"},
		{"a priority of 1001", func(s *poolv1.PoolSpec) { s.Priority = 1001 }, "spec.priority"},
		{"a label without a key", func(s *poolv1.PoolSpec) { s.Labels = map[string]string{"": "x"} }, `spec.labels[""]`},
		{"a first delay that makes a busy loop", func(s *poolv1.PoolSpec) {
			s.Restart = &poolv1.RestartPolicy{FirstDelay: durationpb.New(time.Millisecond)}
		}, "spec.restart.first_delay"},
		{"a longest delay below the first", func(s *poolv1.PoolSpec) {
			s.Restart = &poolv1.RestartPolicy{FirstDelay: durationpb.New(time.Minute), MaxDelay: durationpb.New(time.Second)}
		}, "spec.restart.max_delay"},
		{"a breaker that is open for less than at most", func(s *poolv1.PoolSpec) {
			s.Restart = &poolv1.RestartPolicy{Breaker: &poolv1.BreakerPolicy{OpenFor: durationpb.New(time.Hour), MaxOpenFor: durationpb.New(time.Minute)}}
		}, "spec.restart.breaker.max_open_for"},
		{"1001 failed starts", func(s *poolv1.PoolSpec) {
			s.Restart = &poolv1.RestartPolicy{Breaker: &poolv1.BreakerPolicy{FailedStarts: 1001}}
		}, "spec.restart.breaker.failed_starts"},
		{"a health check each millisecond", func(s *poolv1.PoolSpec) {
			s.Health = &poolv1.HealthPolicy{Interval: durationpb.New(time.Millisecond)}
		}, "spec.health.interval"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := validSpec("a")
			tt.change(spec)
			_, preloadErr := n.preload(t, spec)
			_, _, reloadErr := n.reload(t, &poolv1.ReloadRequest{Spec: spec})
			for _, err := range []error{preloadErr, reloadErr} {
				typed := typedError(t, err, reason.InvalidParams)
				elsewhere := func(f reason.FieldViolation) bool { return f.Name != tt.field }
				if len(typed.Fields) == 0 || slices.ContainsFunc(typed.Fields, elsewhere) || typed.Remedy == "" {
					t.Errorf("fields of %v are %v, want %s alone and a remedy", err, typed.Fields, tt.field)
				}
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		_, err := n.preload(t, nil)
		wantReason(t, err, reason.InvalidParams)
		_, _, err = n.reload(t, &poolv1.ReloadRequest{})
		wantReason(t, err, reason.InvalidParams)
	})
	if pools := n.registry.List(); len(pools) > 0 || n.prepares() > 0 {
		t.Errorf("something was done: %d pools, %d prepared", len(pools), n.prepares())
	}
}

// A caller learns of all that is wrong at once, whoever checks it.
func TestEveryFieldAtFaultIsNamed(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	spec := validSpec("a")
	spec.Replicas, spec.Port, spec.IdleTimeout = 2, 8080, durationpb.New(time.Minute)
	spec.Restart = &poolv1.RestartPolicy{
		FirstDelay: durationpb.New(time.Minute), MaxDelay: durationpb.New(time.Second),
		Breaker: &poolv1.BreakerPolicy{OpenFor: durationpb.New(time.Hour), MaxOpenFor: durationpb.New(time.Minute)},
	}
	_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: spec, Proof: &poolv1.ReloadProof{Contains: "4"}})
	typed := typedError(t, err, reason.InvalidParams)
	var names []string
	for _, field := range typed.Fields {
		names = append(names, field.Name)
		if field.Problem == "" || strings.Contains(field.Problem, "spec.") {
			t.Errorf("the problem of %s is %q", field.Name, field.Problem)
		}
		if strings.Count(typed.Message, field.Name+": "+field.Problem) != 1 || !strings.Contains(typed.Remedy, field.Name+": ") {
			t.Errorf("message %q or remedy %q does not tell of %s once", typed.Message, typed.Remedy, field.Name)
		}
	}
	want := []string{"spec.port", "spec.idle_timeout", "spec.restart.max_delay", "spec.restart.breaker.max_open_for", "proof.prompt"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("fields of %v (-want +got):\n%s", err, diff)
	}
}

func TestTogether(t *testing.T) {
	t.Parallel()
	one := reason.New(reason.InvalidParams, "is odd", reason.Field("a"), reason.Remedy("make it even"))
	other := reason.New(reason.InvalidParams, "is red", reason.Field("b"), reason.Remedy("make it blue"))
	defect := errors.New("a defect")
	for _, tt := range []struct {
		name string
		errs []error
		want string
	}{
		{"one", []error{nil, one, nil}, "a: is odd: make it even"},
		{"two", []error{one, other}, "a: is odd; b: is red: a: make it even; b: make it blue"},
		{"one that is no refusal", []error{one, defect}, "a defect"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if err := together(tt.errs...); err == nil || err.Error() != tt.want {
				t.Errorf("together(%v) = %v, want %s", tt.errs, err, tt.want)
			}
		})
	}
	if err := together(nil, nil); err != nil {
		t.Errorf("nothing together is %v", err)
	}
}

// What is at the limits is accepted.
func TestSpecAtTheLimits(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	widest, one := validSpec(strings.Repeat("A", 60)+".-_"), validSpec("0")
	widest.Replicas, widest.StartupTimeout = 64, durationpb.New(24*time.Hour)
	one.Port, one.Replicas = 65535, 1
	if pool := n.mustPreload(t, widest); len(pool.GetReplicas()) != 64 || pool.GetSpec().GetStartupTimeout().AsDuration() != 24*time.Hour {
		t.Errorf("pool has %d replicas and spec %v", len(pool.GetReplicas()), pool.GetSpec())
	}
	if pool := n.mustPreload(t, one); pool.GetSpec().GetPort() != 65535 {
		t.Errorf("spec is %v", pool.GetSpec())
	}
}

func TestRequestThatIsRefused(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	for _, tt := range []struct {
		name  string
		call  func(context.Context) error
		field string
	}{
		{"a request id of 129 characters", func(ctx context.Context) error {
			stream, err := n.Preload(ctx, &poolv1.PreloadRequest{Spec: validSpec("a"), RequestId: strings.Repeat("x", 129)})
			_, err = all(t, stream, err)
			return err
		}, "request_id"},
		{"a negative deadline", func(ctx context.Context) error {
			stream, err := n.Drain(ctx, &poolv1.DrainRequest{PoolId: "a", Deadline: durationpb.New(-1)})
			_, err = all(t, stream, err)
			return err
		}, "deadline"},
		{"a deadline of two days", func(ctx context.Context) error {
			stream, err := n.Drain(ctx, &poolv1.DrainRequest{PoolId: "a", Deadline: durationpb.New(48 * time.Hour)})
			_, err = all(t, stream, err)
			return err
		}, "deadline"},
		{"an action that is not known", func(ctx context.Context) error {
			stream, err := n.Drain(ctx, &poolv1.DrainRequest{PoolId: "a", OnDeadline: 9})
			_, err = all(t, stream, err)
			return err
		}, "on_deadline"},
		{"a negative deadline of a node", func(ctx context.Context) error {
			stream, err := n.DrainNode(ctx, &poolv1.DrainNodeRequest{Deadline: durationpb.New(-1)})
			_, err = all(t, stream, err)
			return err
		}, "deadline"},
		{"65 drains at once", func(ctx context.Context) error {
			stream, err := n.DrainNode(ctx, &poolv1.DrainNodeRequest{Parallel: 65})
			_, err = all(t, stream, err)
			return err
		}, "parallel"},
		{"a negative drain deadline", func(context.Context) error {
			_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: validSpec("a"), DrainDeadline: durationpb.New(-1)})
			return err
		}, "drain_deadline"},
		{"a proof of 4097 tokens", func(context.Context) error {
			_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: validSpec("a"), Proof: &poolv1.ReloadProof{Prompt: "?", MaxTokens: 4097}})
			return err
		}, "proof.max_tokens"},
		{"a proof that may take no time", func(context.Context) error {
			_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: validSpec("a"), Proof: &poolv1.ReloadProof{Prompt: "?", Timeout: durationpb.New(0)}})
			return err
		}, "proof.timeout"},
		{"an answer without a question", func(context.Context) error {
			_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: validSpec("a"), Proof: &poolv1.ReloadProof{Contains: "4"}})
			return err
		}, "proof.prompt"},
		{"a speed without a question", func(context.Context) error {
			_, _, err := n.reload(t, &poolv1.ReloadRequest{Spec: validSpec("a"), Proof: &poolv1.ReloadProof{MinTokensPerSecond: 4}})
			return err
		}, "proof.prompt"},
		{"a pool watched twice", func(ctx context.Context) error {
			stream, err := n.Watch(ctx, &poolv1.WatchRequest{PoolIds: []string{"a", "a"}})
			_, err = all(t, stream, err)
			return err
		}, "pool_ids"},
		{"a long token", func(ctx context.Context) error {
			stream, err := n.Watch(ctx, &poolv1.WatchRequest{ResumeToken: strings.Repeat("x", 257)})
			_, err = all(t, stream, err)
			return err
		}, "resume_token"},
		{"replica 64", func(ctx context.Context) error {
			stream, err := n.Logs(ctx, &poolv1.LogsRequest{PoolId: "a", Replica: 64})
			_, err = all(t, stream, err)
			return err
		}, "replica"},
		{"a negative offset", func(ctx context.Context) error {
			stream, err := n.Logs(ctx, &poolv1.LogsRequest{PoolId: "a", Start: &poolv1.LogsRequest_Offset{Offset: -1}})
			_, err = all(t, stream, err)
			return err
		}, "offset"},
		{"a page of 1001", func(ctx context.Context) error {
			_, err := n.ListPools(ctx, &poolv1.ListPoolsRequest{PageSize: 1001})
			return err
		}, "page_size"},
		{"pools in no state", func(ctx context.Context) error {
			_, err := n.ListPools(ctx, &poolv1.ListPoolsRequest{States: []poolv1.PoolState{0}})
			return err
		}, "states[0]"},
		{"a pool to get with a slash", func(ctx context.Context) error {
			_, err := n.GetPool(ctx, &poolv1.GetPoolRequest{PoolId: "../a"})
			return err
		}, "pool_id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			typed := typedError(t, tt.call(t.Context()), reason.InvalidParams)
			if len(typed.Fields) == 0 || typed.Fields[0].Name != tt.field {
				t.Errorf("fields of %+v, want %s", typed, tt.field)
			}
		})
	}
}

func TestStateThatForbids(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.mustPreload(t, validSpec("a"))
	_, err := n.preload(t, other())
	if typed := typedError(t, err, reason.PoolExists); typed.Remedy == "" {
		t.Errorf("error %+v has no remedy", typed)
	}

	n.be(func() { n.inFlight = 1 }) // The drain waits.
	drain, err := n.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := drain.Recv(); err != nil {
		t.Fatal(err)
	}
	_, err = n.preload(t, validSpec("a"))
	if typed := typedError(t, err, reason.PoolDraining); typed.RetryAfter == 0 {
		t.Errorf("error %+v does not say when to come again", typed)
	}
	n.be(func() { n.inFlight = 0 })
	if _, err := all(t, drain, nil); err != nil {
		t.Errorf("Drain: %v", err)
	}
}
