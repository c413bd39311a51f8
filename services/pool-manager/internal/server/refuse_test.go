// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"strings"
	"testing"
	"time"

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
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := validSpec("a")
			tt.change(spec)
			_, err := n.preload(t, spec)
			typed := typedError(t, err, reason.InvalidParams)
			if len(typed.Fields) == 0 || typed.Fields[0].Name != tt.field {
				t.Errorf("fields of %v are %v, want %s", err, typed.Fields, tt.field)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		_, err := n.preload(t, nil)
		wantReason(t, err, reason.InvalidParams)
	})
	if pools := n.registry.List(); len(pools) > 0 || n.prepares() > 0 {
		t.Errorf("something was done: %d pools, %d prepared", len(pools), n.prepares())
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
	other := func(id string) *poolv1.PoolSpec {
		spec := validSpec(id)
		spec.GetPrepare().Model.Uri = "file:/other.gguf"
		return spec
	}
	n.mustPreload(t, validSpec("a"))
	_, err := n.preload(t, other("a"))
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
