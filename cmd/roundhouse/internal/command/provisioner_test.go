// SPDX-License-Identifier: Apache-2.0

package command

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

func TestPlan(t *testing.T) {
	t.Parallel()
	fake := &fakeServices{plan: func(request *provisionerv1.PlanRequest) (*provisionerv1.PlanResponse, error) {
		return &provisionerv1.PlanResponse{
			Spec: request.GetSpec(),
			Steps: []*provisionerv1.PlannedStep{
				{Id: "a", Name: "fetch it", Kind: provisionerv1.StepKind_STEP_KIND_FETCH, SizeBytes: proto.Int64(5_000_000)},
			},
		}, nil
	}}
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, fake)
			if code := x.run(t, "plan", "-o", format, "--engine=llamacpp", "--external=/opt/x", "--model=file:/m", "--", "--mlock"); code != codeOK {
				t.Fatalf("exit code %d: %s", code, x.stderr)
			}
			testkit.Golden(t, "plan."+format, []byte(x.stdout.String()))
		})
	}
}

// prepares is a preparation of one step that ends with err, or well.
func prepares(err error) *fakeServices {
	return &fakeServices{prepare: func(_ *provisionerv1.PrepareRequest, stream grpc.ServerStreamingServer[provisionerv1.PrepareResponse]) error {
		for _, state := range []enginev1.StepState{enginev1.StepState_STEP_STATE_RUNNING, enginev1.StepState_STEP_STATE_DONE} {
			event := &enginev1.Progress{Event: &enginev1.Progress_Step{Step: &enginev1.Step{Id: "a", Name: "fetch it", State: state}}}
			if err := stream.Send(&provisionerv1.PrepareResponse{Event: &provisionerv1.PrepareResponse_Progress{Progress: event}}); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		return stream.Send(&provisionerv1.PrepareResponse{Event: &provisionerv1.PrepareResponse_Prepared{Prepared: &enginev1.PreparedEngine{
			PreparedId: "sha256:1", Engine: &enginev1.EngineIdentity{Kind: "llamacpp", Version: "b1"}, Model: &enginev1.PreparedModel{Id: "m"},
		}}})
	}}
}

func TestPrepareText(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, prepares(nil))
	if code := x.run(t, "prepare", "--preset=source"); code != codeOK {
		t.Fatalf("exit code %d: %s", code, x.stderr)
	}
	if got, want := x.stderr.String(), "done      fetch it\n"; !strings.HasSuffix(got, want) {
		t.Errorf("progress is %q, want it to end with %q", got, want)
	}
	testkit.Golden(t, "prepare.text", []byte(x.stdout.String()))
}

func TestPrepareJSON(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, prepares(nil))
	if code := x.run(t, "prepare", "--preset=source", "-o", "json"); code != codeOK {
		t.Fatalf("exit code %d: %s", code, x.stderr)
	}
	testkit.Golden(t, "prepare.json", []byte(x.stdout.String()))
	if x.stderr.String() != "" {
		t.Errorf("standard error has %q, want nothing", x.stderr)
	}
}

func TestPrepareFails(t *testing.T) {
	t.Parallel()
	failure := reason.New(reason.DigestMismatch, "the model has another digest", reason.Field("spec.model.sha256"),
		reason.Remedy("correct it"), reason.Meta("got", "abc"))
	x := newTerminal(t, prepares(failure))
	if code := x.run(t, "prepare", "--preset=source"); code != codeUntrusted {
		t.Errorf("exit code %d, want %d", code, codeUntrusted)
	}
	want := "error: DIGEST_MISMATCH: spec.model.sha256: the model has another digest\nremedy: correct it\n"
	if !strings.HasSuffix(x.stderr.String(), want) {
		t.Errorf("standard error is %q, want it to end with %q", x.stderr, want)
	}
}

func TestErrorsInJSON(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, prepares(reason.New(reason.ToolMissing, "no cmake", reason.Remedy("install it"))))
	if code := x.run(t, "prepare", "--preset=source", "-o", "json"); code != codeLacking {
		t.Errorf("exit code %d, want %d", code, codeLacking)
	}
	var got struct {
		Error struct{ Reason, Message, Remedy string }
	}
	if err := json.Unmarshal([]byte(x.stderr.String()), &got); err != nil {
		t.Fatalf("standard error is not JSON: %v: %s", err, x.stderr)
	}
	if got.Error.Reason != "TOOL_MISSING" || got.Error.Message != "no cmake" || got.Error.Remedy != "install it" {
		t.Errorf("the error is %+v, want TOOL_MISSING, no cmake, install it", got.Error)
	}
}

func TestPreparedReadsEveryPage(t *testing.T) {
	t.Parallel()
	pages := map[string]*provisionerv1.ListPreparedResponse{
		"":  {Prepared: []*enginev1.PreparedEngine{{PreparedId: "sha256:1"}}, NextPageToken: "2"},
		"2": {Prepared: []*enginev1.PreparedEngine{{PreparedId: "sha256:2"}}},
	}
	x := newTerminal(t, &fakeServices{prepared: func(request *provisionerv1.ListPreparedRequest) (*provisionerv1.ListPreparedResponse, error) {
		return pages[request.GetPageToken()], nil
	}})
	if code := x.run(t, "prepared"); code != codeOK {
		t.Fatalf("exit code %d: %s", code, x.stderr)
	}
	if got := x.stdout.String(); !strings.Contains(got, "sha256:1 ") || !strings.Contains(got, "sha256:2 ") {
		t.Errorf("the list lacks one of two:\n%s", got)
	}
}

func TestPreflightFails(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, &fakeServices{preflight: func() (*provisionerv1.PreflightResponse, error) {
		return &provisionerv1.PreflightResponse{Store: &provisionerv1.StoreCheck{Path: "/s", Problem: "59 MiB free", FreeBytes: 59 << 20}}, nil
	}})
	if code := x.run(t, "preflight"); code != codeLacking {
		t.Errorf("exit code %d, want %d", code, codeLacking)
	}
	for _, want := range []string{"59 MiB free", "error: DISK_FULL:", "remedy: free space on the file system of /s"} {
		if said := x.stdout.String() + x.stderr.String(); !strings.Contains(said, want) {
			t.Errorf("it says %q, want %q too", said, want)
		}
	}
}
