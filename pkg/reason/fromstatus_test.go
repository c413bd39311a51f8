// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

func TestFromStatusWithoutAReason(t *testing.T) {
	t.Parallel()
	foreign, err := status.New(codes.Internal, "x").WithDetails(&errdetails.ErrorInfo{Reason: "DISK_FULL", Domain: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	newer, err := status.New(codes.NotFound, "x").WithDetails(&errdetails.ErrorInfo{Reason: "GPU_GONE", Domain: reason.Domain})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		err    error
		code   codes.Code
		reason reason.Reason
	}{
		{"unavailable", status.Error(codes.Unavailable, "x"), codes.Unavailable, reason.Unspecified},
		{"deadline", status.Error(codes.DeadlineExceeded, "x"), codes.DeadlineExceeded, reason.Cancelled},
		{"cancelled", status.Error(codes.Canceled, "x"), codes.Canceled, reason.Cancelled},
		{"too large", status.Error(codes.ResourceExhausted, "x"), codes.ResourceExhausted, reason.LimitExceeded},
		{"another domain", foreign.Err(), codes.Internal, reason.Unspecified},
		{"a reason of a newer version", newer.Err(), codes.NotFound, reason.Unspecified},
		{"no status", errors.New("x"), codes.Internal, reason.Internal},
		{"context", fmt.Errorf("x: %w", context.Canceled), codes.Canceled, reason.Cancelled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := reason.FromStatus(tt.err)
			if got.Reason != tt.reason || status.Code(got) != tt.code {
				t.Errorf("FromStatus(%v) = %v, code %v; want %v, code %v", tt.err, got.Reason, status.Code(got), tt.reason, tt.code)
			}
		})
	}
	if got := reason.FromStatus(newer.Err()).Metadata["unknown_reason"]; got != "GPU_GONE" {
		t.Errorf("name of a newer reason = %q, want GPU_GONE", got)
	}
}

func TestFromStatusKeepsTypedErrors(t *testing.T) {
	t.Parallel()
	if got := reason.FromStatus(nil); got != nil {
		t.Errorf("FromStatus(nil) = %v", got)
	}
	want := reason.New(reason.PoolBusy, "x")
	if got := reason.FromStatus(fmt.Errorf("y: %w", want)); got != want {
		t.Errorf("FromStatus of a wrapped *Error = %v, want the *Error itself", got)
	}
}
