// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

func TestErrorText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  *reason.Error
		want string
	}{
		{"message", reason.New(reason.Internal, "broken"), "broken"},
		{
			"field and remedy",
			reason.New(reason.EngineNotFound, `unknown engine kind "foo"`, reason.Field("engine.kind"), reason.Remedy("use llamacpp")),
			`engine.kind: unknown engine kind "foo": use llamacpp`,
		},
		{
			"two fields",
			reason.New(reason.InvalidParams, "only one may be given", reason.Field("a"), reason.Field("b")),
			"a, b: only one may be given",
		},
		{
			"fields with problems of their own",
			reason.New(reason.InvalidParams, "a: too long; b: missing", reason.Violation("a", "too long"), reason.Violation("b", "missing")),
			"a: too long; b: missing",
		},
		{
			"cause",
			reason.New(reason.StorageFailed, "read record", reason.Cause(fs.ErrPermission), reason.Remedy("allow it")),
			"read record: permission denied: allow it",
		},
		{
			"address with credentials",
			reason.New(reason.FetchFailed, "https://u:pw@h/x?token=s3cret cannot be read", reason.Cause(errors.New(`Get "https://h/x?token=s3cret": refused`))),
			`https://h/x cannot be read: Get "https://h/x": refused`,
		},
		{"cause alone", reason.New(reason.StorageFailed, "", reason.Cause(fs.ErrPermission)), "permission denied"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.err.Error(); got != tt.want {
				t.Errorf("Error() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestCauseIsInTheChain(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("open store: %w", reason.New(reason.StorageFailed, "read", reason.Cause(fs.ErrPermission)))
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("errors.Is(%v, fs.ErrPermission) = false", err)
	}
	if e, ok := reason.As(err); !ok || e.Reason != reason.StorageFailed {
		t.Errorf("As(%v) = %v, %v", err, e, ok)
	}
}

func TestMetaWritesScalarsAndKeepsReservedKeysOut(t *testing.T) {
	t.Parallel()
	e := reason.New(reason.PortInUse, "x", reason.Meta("port", uint16(80)), reason.Meta("ok", true), reason.Meta("field", "f"),
		reason.Meta("remedy", "r"))
	if len(e.Metadata) != 2 || e.Metadata["port"] != "80" || e.Metadata["ok"] != "true" {
		t.Errorf("metadata = %v, want port 80 and ok true only", e.Metadata)
	}
}

func TestOf(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want reason.Reason
	}{
		{"nil", nil, reason.Unspecified},
		{"typed", reason.New(reason.PoolBusy, "x"), reason.PoolBusy},
		{"wrapped", fmt.Errorf("a: %w", reason.New(reason.PoolBusy, "x")), reason.PoolBusy},
		{"outermost wins", reason.New(reason.PoolBusy, "x", reason.Cause(reason.New(reason.DiskFull, "y"))), reason.PoolBusy},
		{"no reason becomes internal", reason.New(reason.Unspecified, "x"), reason.Internal},
		{"status", reason.Status(reason.New(reason.DiskFull, "x")).Err(), reason.DiskFull},
		{"bare status", status.Error(codes.Unavailable, "x"), reason.Unspecified},
		{"context", fmt.Errorf("a: %w", context.Canceled), reason.Cancelled},
		{"deadline", context.DeadlineExceeded, reason.Cancelled},
		{"any other", errors.New("x"), reason.Internal},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := reason.Of(tt.err); got != tt.want {
				t.Errorf("Of(%v) = %v, want %v", tt.err, got, tt.want)
			}
		})
	}
}
