// SPDX-License-Identifier: Apache-2.0

package command

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// reloads sends two phases, two equal events of a drain, and the result.
func reloads(result *poolv1.ReloadResult) *fakeServices {
	one := uint32(1)
	draining := &poolv1.ReloadResponse_Draining{Draining: &poolv1.DrainProgress{Phase: poolv1.DrainPhase_DRAIN_PHASE_WAITING, InFlight: &one}}
	return &fakeServices{reload: func(_ *poolv1.ReloadRequest, stream grpc.ServerStreamingServer[poolv1.ReloadResponse]) error {
		for _, message := range []*poolv1.ReloadResponse{
			{Event: &poolv1.ReloadResponse_Phase{Phase: poolv1.ReloadPhase_RELOAD_PHASE_PROVING}},
			{Event: &poolv1.ReloadResponse_Phase{Phase: poolv1.ReloadPhase_RELOAD_PHASE_DRAINING_OLD}},
			{Event: draining},
			{Event: draining},
			{Event: &poolv1.ReloadResponse_Result{Result: result}},
		} {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		return nil
	}}
}

// reloading is a reload that goes on until it is cancelled or its caller has gone.
func reloading(cancelled chan struct{}) *fakeServices {
	return &fakeServices{
		reload: func(_ *poolv1.ReloadRequest, stream grpc.ServerStreamingServer[poolv1.ReloadResponse]) error {
			phase := &poolv1.ReloadResponse_Phase{Phase: poolv1.ReloadPhase_RELOAD_PHASE_STARTING}
			if err := stream.Send(&poolv1.ReloadResponse{Event: phase}); err != nil {
				return err
			}
			select {
			case <-cancelled:
				return reason.New(reason.Cancelled, "the reload was cancelled")
			case <-stream.Context().Done():
				return stream.Context().Err()
			}
		},
		unreload: func(*poolv1.CancelReloadRequest) (*poolv1.CancelReloadResponse, error) {
			close(cancelled)
			return &poolv1.CancelReloadResponse{Cancelled: true}, nil
		},
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	result := &poolv1.ReloadResult{
		Action: poolv1.ReloadAction_RELOAD_ACTION_MAKE_BEFORE_BREAK, RestartFields: []string{"prepare.model.uri"}, LiveFields: []string{"priority"},
		RequestsCut: 2, Duration: durationpb.New(3 * time.Second), Pool: readyPool(),
	}
	tests := []struct {
		name string
		args []string
	}{
		{"reload.text", nil},
		{"reload.json", []string{"-o", "json"}},
		{"reload-dry.text", []string{"--dry-run"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, reloads(result))
			if code := x.run(t, append([]string{"reload", "--pool=p", "--prepared-id=sha256:x"}, test.args...)...); code != codeOK {
				t.Fatalf("exit code %d: %s", code, x.stderr)
			}
			testkit.Golden(t, test.name, []byte("stdout:\n"+x.stdout.String()+"stderr:\n"+x.stderr.String()))
		})
	}
}

func TestReloadRequest(t *testing.T) {
	t.Parallel()
	present := &poolv1.PoolSpec{PoolId: "p", Workload: &poolv1.PoolSpec_PreparedId{PreparedId: "sha256:old"}, Replicas: 2, Priority: 1}
	tests := []struct {
		name string
		args []string
		want *poolv1.ReloadRequest
	}{
		{"described", []string{"--prepared-id=sha256:new", "--accept-outage", "--drain-deadline=0"}, &poolv1.ReloadRequest{
			Spec:         &poolv1.PoolSpec{PoolId: "p", Workload: &poolv1.PoolSpec_PreparedId{PreparedId: "sha256:new"}},
			AcceptOutage: true, DrainDeadline: durationpb.New(0),
		}},
		{"a change of the present pool", []string{"--priority=5", "--drain-deadline=9s"}, &poolv1.ReloadRequest{
			Spec:          &poolv1.PoolSpec{PoolId: "p", Workload: present.GetWorkload(), Replicas: 2, Priority: 5},
			DrainDeadline: durationpb.New(9 * time.Second),
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := make(chan *poolv1.ReloadRequest, 1)
			x := newTerminal(t, &fakeServices{
				get: func(*poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
					return &poolv1.GetPoolResponse{Pool: &poolv1.Pool{PoolId: "p", Spec: present}}, nil
				},
				reload: func(request *poolv1.ReloadRequest, _ grpc.ServerStreamingServer[poolv1.ReloadResponse]) error {
					got <- request
					return reason.New(reason.OutageNotAccepted, "the port is fixed")
				},
			})
			if code := x.run(t, append([]string{"reload", "--pool=p"}, test.args...)...); code != codeRefused {
				t.Fatalf("exit code %d, want %d: %s", code, codeRefused, x.stderr)
			}
			if diff := cmp.Diff(test.want, <-got, protocmp.Transform()); diff != "" {
				t.Errorf("the request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReloadOfAPoolThatIsNotThere(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, &fakeServices{get: func(*poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
		return nil, reason.New(reason.PoolNotFound, "there is no such pool")
	}})
	if code := x.run(t, "reload", "--pool=q", "--priority=5"); code != codeNotFound {
		t.Errorf("exit code %d, want %d: %s", code, codeNotFound, x.stderr)
	}
}

func TestInterruptCancelsAReload(t *testing.T) {
	t.Parallel()
	cancelled := make(chan struct{})
	x := newTerminal(t, reloading(cancelled))
	x.interrupt()
	if code := x.run(t, "reload", "--pool=p", "--prepared-id=sha256:x"); code != codeCancelled {
		t.Errorf("exit code %d, want %d: %s", code, codeCancelled, x.stderr)
	}
	select {
	case <-cancelled:
	default:
		t.Error("CancelReload was not called")
	}
}

func TestReloadTimeoutLeaves(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, reloading(make(chan struct{})))
	if code := x.run(t, "reload", "--pool=p", "--prepared-id=sha256:x", "--timeout=2s"); code != codeTimedOut {
		t.Errorf("exit code %d, want %d: %s", code, codeTimedOut, x.stderr)
	}
	if said := x.stderr.String(); !strings.Contains(said, "the reload of p goes on; `roundhouse cancel --reload p` ends it") {
		t.Errorf("standard error is %q, want it to say that the reload goes on", said)
	}
}

func TestReloadFailures(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		reason reason.Reason
		code   int
	}{{reason.ProofFailed, codeFailed}, {reason.OutageNotAccepted, codeRefused}, {reason.PoolUnready, codeRefused}} {
		t.Run(test.reason.String(), func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, &fakeServices{reload: func(*poolv1.ReloadRequest, grpc.ServerStreamingServer[poolv1.ReloadResponse]) error {
				return reason.New(test.reason, "no")
			}})
			if code := x.run(t, "reload", "--pool=p", "--prepared-id=sha256:x"); code != test.code {
				t.Errorf("exit code %d, want %d: %s", code, test.code, x.stderr)
			}
		})
	}
}
