// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// overTheWire is what a client makes of err.
func overTheWire(t *testing.T, err error) *reason.Error {
	t.Helper()
	raw, marshalErr := proto.Marshal(reason.Status(err).Proto())
	if marshalErr != nil {
		t.Fatalf("marshal status of %v: %v", err, marshalErr)
	}
	received := reason.Status(nil).Proto()
	if err := proto.Unmarshal(raw, received); err != nil {
		t.Fatal(err)
	}
	return reason.FromStatus(status.ErrorProto(received))
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  *reason.Error
	}{
		{"message only", reason.New(reason.Internal, "broken")},
		{"remedy", reason.New(reason.ToolMissing, "no cmake", reason.Remedy("install cmake"))},
		{"remedy and message alike", reason.New(reason.ToolMissing, "x: x", reason.Remedy("x"))},
		{"field", reason.New(reason.EngineNotFound, "unknown kind", reason.Field("spec.engine.kind"))},
		{"field without message", reason.New(reason.InvalidParams, "", reason.Field("a"))},
		{"fields that share the message", reason.New(reason.InvalidParams, "only one", reason.Field("a"), reason.Field("b"))},
		{
			"fields of both kinds",
			reason.New(reason.InvalidParams, "sum is too large", reason.Field("a"), reason.Violation("b", "is odd"), reason.Field("c"),
				reason.Remedy("less")),
		},
		{
			"fields with their own problems",
			reason.New(reason.InvalidParams, "a: x; b: y", reason.Violation("a", "x"), reason.Violation("b", "y"), reason.Remedy("z")),
		},
		{
			"everything",
			reason.New(reason.DigestMismatch, "wrong bytes", reason.Field("model.sha256"), reason.Remedy("give the right one"),
				reason.Meta("got", "ab"), reason.Meta("want", "cd"), reason.RetryAfter(1500*time.Millisecond)),
		},
		{"no retry where one is usual", reason.New(reason.FetchFailed, "404", reason.RetryAfter(0))},
	}
	for number := range enginev1.Reason_name {
		if r := reason.Reason(number); r != reason.Unspecified {
			tests = append(tests, struct {
				name string
				err  *reason.Error
			}{r.String(), reason.New(r, "m", reason.Field("f"), reason.Remedy("r"), reason.Meta("k", "v"))})
		}
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := overTheWire(t, tt.err)
			if diff := cmp.Diff(tt.err, got, cmpopts.IgnoreUnexported(reason.Error{})); diff != "" {
				t.Errorf("after the wire (-want +got):\n%s", diff)
			}
			if again := overTheWire(t, got); !cmp.Equal(got, again, cmpopts.IgnoreUnexported(reason.Error{})) {
				t.Errorf("passing it on changed %v to %v", got, again)
			}
		})
	}
}

func TestStatusDetails(t *testing.T) {
	t.Parallel()
	s := reason.Status(reason.New(reason.PortInUse, "taken", reason.Field("spec.port"), reason.Remedy("use 0"),
		reason.Meta("pool_id", "p"), reason.RetryAfter(time.Second)))
	if s.Code() != codes.FailedPrecondition || s.Message() != "spec.port: taken: use 0" {
		t.Errorf("status = %v %q", s.Code(), s.Message())
	}
	count := map[string]int{}
	for _, detail := range s.Details() {
		count[fmt.Sprintf("%T", detail)]++
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			want := map[string]string{"pool_id": "p", "remedy": "use 0", "field": "spec.port"}
			if d.GetReason() != "PORT_IN_USE" || d.GetDomain() != "roundhouse" || !cmp.Equal(d.GetMetadata(), want) {
				t.Errorf("ErrorInfo = %v", d)
			}
		case *errdetails.PreconditionFailure:
			v := d.GetViolations()[0]
			if v.GetType() != "PORT_IN_USE" || v.GetSubject() != "p" || v.GetDescription() != "taken" {
				t.Errorf("PreconditionFailure = %v", d)
			}
		}
	}
	want := map[string]int{
		"*errdetails.ErrorInfo": 1, "*errdetails.BadRequest": 1, "*errdetails.RetryInfo": 1, "*errdetails.PreconditionFailure": 1,
	}
	if diff := cmp.Diff(want, count); diff != "" {
		t.Errorf("details (-want +got):\n%s", diff)
	}
}

func TestStatusOfOtherErrors(t *testing.T) {
	t.Parallel()
	typed := reason.New(reason.FetchFailed, "cut off", reason.Field("model.uri"), reason.Remedy("again"))
	tests := []struct {
		name    string
		err     error
		code    codes.Code
		reason  reason.Reason
		message string
	}{
		{"wrapped", fmt.Errorf("stage model: %w", typed), codes.Unavailable, reason.FetchFailed, "model.uri: stage model: cut off: again"},
		{"cancelled", fmt.Errorf("wait: %w", context.Canceled), codes.Canceled, reason.Cancelled, "the call was cancelled"},
		{
			"out of time", context.DeadlineExceeded, codes.Canceled, reason.Cancelled,
			"the call's deadline has passed: give the call more time",
		},
		{"status", status.Error(codes.Unimplemented, "no"), codes.Unimplemented, reason.Unspecified, "no"},
		{"any", errors.New("boom"), codes.Internal, reason.Internal, "boom"},
		{
			"typed over the end of a context",
			reason.New(reason.WorkerStartTimeout, "slow", reason.Cause(context.DeadlineExceeded)),
			codes.DeadlineExceeded, reason.WorkerStartTimeout, "slow: context deadline exceeded",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := reason.Status(tt.err)
			if got := reason.FromStatus(s.Err()).Reason; s.Code() != tt.code || got != tt.reason || s.Message() != tt.message {
				t.Errorf("Status(%v) = %v %v %q, want %v %v %q", tt.err, s.Code(), got, s.Message(), tt.code, tt.reason, tt.message)
			}
		})
	}
	if s := reason.Status(nil); s.Code() != codes.OK {
		t.Errorf("Status(nil) = %v", s)
	}
}

func TestStatusHidesCredentialsInAddresses(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, text, want string }{
		{"user info", `Get "https://joe:p@ss@host/x": refused`, `Get "https://host/x": refused`},
		{"query with an apostrophe", `https://host/x?token=s3'cret is gone`, `https://host/x is gone`},
		{"query", `Get "https://host/x?token=s3cret&a=b": refused`, `Get "https://host/x": refused`},
		{"both, twice", "https://a:b@h/x?y then ftp://c@h/z", "https://h/x then ftp://h/z"},
		{"a path with an at sign stays", "https://host/npm/@scope/name", "https://host/npm/@scope/name"},
		{"no address", "what? nothing@all", "what? nothing@all"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for _, err := range []error{errors.New(tt.text), reason.New(reason.FetchFailed, "", reason.Cause(errors.New(tt.text)))} {
				if got := reason.Status(err).Message(); got != tt.want {
					t.Errorf("message of %q = %q, want %q", tt.text, got, tt.want)
				}
			}
			e := reason.New(reason.FetchFailed, "x", reason.Meta("url", tt.text))
			if got := overTheWire(t, e).Metadata["url"]; got != tt.want {
				t.Errorf("metadata of %q = %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}

func TestStatusIsAlwaysFitForTheWire(t *testing.T) {
	t.Parallel()
	opts := []reason.Option{reason.Remedy(strings.Repeat("é", 5000)), reason.Meta("a", "\xff\xfe")}
	for i := range 100 {
		opts = append(opts, reason.Violation(fmt.Sprintf("f%d", i), strings.Repeat("x", 5000)),
			reason.Meta(fmt.Sprintf("k%d", i), strings.Repeat("v", 5000)))
	}
	s := reason.Status(reason.New(reason.InvalidParams, "\xff"+strings.Repeat("é", 5000), opts...))
	raw, err := proto.Marshal(s.Proto())
	if err != nil {
		t.Fatalf("marshal: %v", err)
	}
	if len(s.Details()) < 2 {
		t.Errorf("details are lost: %v", s.Details())
	}
	const limit = 16 << 10
	if len(raw) > limit {
		t.Errorf("status has %d bytes, want at most %d", len(raw), limit)
	}
	if !utf8.ValidString(s.Message()) {
		t.Errorf("message is not UTF-8: %q", s.Message())
	}
}
