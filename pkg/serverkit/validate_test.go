// SPDX-License-Identifier: Apache-2.0

package serverkit_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// poolID is what a pool's id is made of.
const poolID = "1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit"

func TestInvalidRequestsNeverReachTheirHandler(t *testing.T) {
	t.Parallel()
	r := serve(t, serverkit.Config{}, &pools{
		get: func(context.Context, *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
			t.Error("a handler got an invalid request")
			return &poolv1.GetPoolResponse{}, nil
		},
		watch: func(*poolv1.WatchRequest, grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
			t.Error("a handler got an invalid request")
			return nil
		},
	})
	client := r.client(t)
	get := func(id string) error {
		_, err := client.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: id})
		return err
	}
	tests := []struct {
		name   string
		err    error
		fields []string
		own    bool // each field has a problem of its own
		remedy string
	}{
		{"pool id with slashes", get("a/b"), []string{"pool_id"}, false, "give " + poolID},
		{"pool id of 300 characters", get(strings.Repeat("a", 300)), []string{"pool_id"}, false, "give " + poolID},
		{"no pool id", get(""), []string{"pool_id"}, false, "give " + poolID},
		{
			"pool id in a stream's list", firstError(t, client, &poolv1.WatchRequest{PoolIds: []string{"a", "b/c"}}),
			[]string{"pool_ids[1]"}, false, "give " + poolID,
		},
		{
			"two fields",
			firstError(t, client, &poolv1.WatchRequest{ResumeToken: strings.Repeat("x", 300), PoolIds: []string{"/"}}),
			[]string{"resume_token", "pool_ids[0]"}, true, "give for resume_token: at most 256 characters; for pool_ids[0]: " + poolID,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e := reason.FromStatus(tt.err)
			if e.Reason != reason.InvalidParams || status.Code(tt.err) != codes.InvalidArgument || e.Remedy != tt.remedy {
				t.Fatalf("got %v, want INVALID_PARAMS with the remedy %q", tt.err, tt.remedy)
			}
			var names []string
			for _, field := range e.Fields {
				names = append(names, field.Name)
				if (field.Problem != "") != tt.own {
					t.Errorf("field %s: problem = %q", field.Name, field.Problem)
				}
				if !strings.Contains(e.Error(), field.Name) {
					t.Errorf("%q does not name %s", e.Error(), field.Name)
				}
			}
			if diff := cmp.Diff(tt.fields, names); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLargeRequestsAreRefusedWithAReason(t *testing.T) {
	t.Parallel()
	r := serve(t, serverkit.Config{}, &pools{
		get:   answer,
		watch: func(*poolv1.WatchRequest, grpc.ServerStreamingServer[poolv1.WatchResponse]) error { return nil },
	})
	client := r.client(t)
	for _, tt := range []struct {
		name  string
		bytes int
		typed bool
	}{
		{"just too large", wire.MaxRequestBytes + 1, true},
		{"5 MiB", 5 << 20, true},
		{"beyond what is read", 17 << 20, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := strings.Repeat("x", tt.bytes)
			_, unary := client.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: id})
			stream := firstError(t, client, &poolv1.WatchRequest{ResumeToken: id})
			for kind, err := range map[string]error{"unary": unary, "stream": stream} {
				e := reason.FromStatus(err)
				if status.Code(err) != codes.ResourceExhausted || e.Reason != reason.LimitExceeded {
					t.Errorf("%s: got %v, want RESOURCE_EXHAUSTED, LIMIT_EXCEEDED", kind, err)
				}
				if got := e.Metadata["limit_bytes"] == "4194304"; got != tt.typed {
					t.Errorf("%s: carries the limit: %v, want %v", kind, got, tt.typed)
				}
			}
		})
	}
}
