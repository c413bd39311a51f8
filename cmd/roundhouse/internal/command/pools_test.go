// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// patience is far longer than anything here takes.
const patience = 20 * time.Second

func readyPool() *poolv1.Pool {
	return &poolv1.Pool{
		PoolId: "p", State: poolv1.PoolState_POOL_STATE_READY,
		Replicas: []*poolv1.Replica{{ReplicaId: "p-0", State: poolv1.ReplicaState_REPLICA_STATE_READY, Endpoint: "http://127.0.0.1:4312", Pid: 7}},
	}
}

func TestPools(t *testing.T) {
	t.Parallel()
	fake := &fakeServices{
		list: func(request *poolv1.ListPoolsRequest) (*poolv1.ListPoolsResponse, error) {
			if request.GetPageToken() == "" {
				return &poolv1.ListPoolsResponse{Pools: []*poolv1.Pool{{PoolId: "a"}}, NextPageToken: "x"}, nil
			}
			return &poolv1.ListPoolsResponse{Pools: []*poolv1.Pool{readyPool()}}, nil
		},
		get: func(request *poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
			if request.GetPoolId() != "p" {
				return nil, reason.New(reason.PoolNotFound, "there is no such pool")
			}
			return &poolv1.GetPoolResponse{Pool: readyPool()}, nil
		},
		remove: func(*poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
			return &poolv1.DeletePoolResponse{}, nil
		},
		cancel: func(request *poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error) {
			return &poolv1.CancelPreloadResponse{Cancelled: request.GetPoolId() == "p"}, nil
		},
		unreload: func(request *poolv1.CancelReloadRequest) (*poolv1.CancelReloadResponse, error) {
			return &poolv1.CancelReloadResponse{Cancelled: request.GetPoolId() == "p"}, nil
		},
		starts: func(request *poolv1.ListStartsRequest) (*poolv1.ListStartsResponse, error) {
			return &poolv1.ListStartsResponse{Starts: []*poolv1.Start{{ReplicaId: request.GetPoolId() + "-0", Generation: 3, StartedBy: "restart"}}}, nil
		},
		reset: func(request *poolv1.ResetBreakerRequest) (*poolv1.ResetBreakerResponse, error) {
			switch request.GetPoolId() {
			case "p":
				return &poolv1.ResetBreakerResponse{Replicas: 2}, nil
			case "a":
				return &poolv1.ResetBreakerResponse{}, nil
			default:
				return nil, reason.New(reason.PoolUnready, "it was drained")
			}
		},
	}
	tests := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"list", []string{"pools"}, codeOK, "http://127.0.0.1:4312"},
		{"detail", []string{"pools", "p"}, codeOK, "p-0"},
		{"detail in JSON", []string{"pools", "p", "-o", "json"}, codeOK, `"poolId":"p"`},
		{"unknown", []string{"pools", "q"}, codeNotFound, "error: POOL_NOT_FOUND: there is no such pool"},
		{"delete", []string{"delete", "a", "b"}, codeOK, "a is deleted\nb is deleted\n"},
		{"cancel", []string{"cancel", "p"}, codeOK, "the preload of p is cancelled"},
		{"cancel what does not load", []string{"cancel", "a"}, codeOK, "a was not loading"},
		{"cancel a reload", []string{"cancel", "p", "--reload"}, codeOK, "the reload of p is cancelled; the old engines serve on"},
		{"cancel what does not reload", []string{"cancel", "a", "--reload"}, codeOK, "a was not reloading"},
		{"starts", []string{"starts", "p"}, codeOK, "p-0      3      restart"},
		{"starts in JSON", []string{"starts", "p", "-o", "json"}, codeOK, `"startedBy":"restart"`},
		{"reset", []string{"reset", "p"}, codeOK, "2 of the replicas of p are being started"},
		{"reset what does not wait", []string{"reset", "a"}, codeOK, "no replica of a was waiting"},
		{"reset what was drained", []string{"reset", "q"}, codeRefused, "POOL_UNREADY: it was drained"},
		{"node and a name", []string{"drain", "--node", "p"}, codeUsage, "unknown command"},
		{"no argument", []string{"drain"}, codeUsage, "INVALID_PARAMS"},
		{"two arguments", []string{"pools", "p", "q"}, codeUsage, "INVALID_PARAMS"},
		{"unknown flag", []string{"pools", "--all"}, codeUsage, "--all: unknown flag\nremedy: see \"roundhouse pools --help\""},
		{"unknown format", []string{"pools", "-o", "xml"}, codeUsage, `--output: "xml" is not text or json`},
		{"unknown command", []string{"pool"}, codeUsage, `unknown command "pool"`},
		{"address not allowed", []string{"pools", "--pool-manager=10.0.0.1:9200"}, codeUsage, "--pool-manager: host"},
		{"nobody there", []string{"pools", "--pool-manager=unix:///nonexistent/s.sock"}, codeUnavailable, "cannot reach the pool manager at unix:///nonexistent/s.sock"},
		{"version", []string{"version"}, codeOK, "roundhouse 1.2.3"},
		{"version by a flag", []string{"--version"}, codeOK, "roundhouse 1.2.3"},
		{"completion", []string{"__complete", "drain", ""}, codeOK, "p\tREADY"},
		{"completion of a format", []string{"__complete", "pools", "-o", ""}, codeOK, "text\njson\n:4"},
		{"completion of a preset", []string{"__complete", "plan", "--preset", ""}, codeOK, "quick\nsource\n:4"},
		{"completion of an engine", []string{"__complete", "preload", "--engine", ""}, codeOK, "llamacpp\nxllamacpp\n:4"},
		{"completion of the demo's engine", []string{"__complete", "demo", "--engine", ""}, codeOK, "quick\nsource\n:4"},
		{"completion of an accelerator", []string{"__complete", "prepare", "--accelerator", ""}, codeOK, "cpu\n:4"},
		{"completion of processors", []string{"__complete", "preload", "--cpu-target", ""}, codeOK, "native\nportable\n:4"},
		{"completion of a residency", []string{"__complete", "reload", "--residency", ""}, codeOK, "lazy\npinned\nttl\n:4"},
		{"completion of the pool to reload", []string{"__complete", "reload", "--pool", ""}, codeOK, "p\tREADY"},
		{"completion of the pool to reset", []string{"__complete", "reset", ""}, codeOK, "p\tREADY"},
		{"help topic", []string{"help", "exit-codes"}, codeOK, "POOL_NOT_FOUND"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, fake)
			code := x.run(t, test.args...)
			if said := x.stdout.String() + x.stderr.String(); code != test.code || !strings.Contains(said, test.says) {
				t.Errorf("%q ends with %d and says %q, want %d and %q", test.args, code, said, test.code, test.says)
			}
		})
	}
}

// drains sends two events and the result.
func drains(result *poolv1.DrainResult) *fakeServices {
	return &fakeServices{drain: func(_ *poolv1.DrainRequest, stream grpc.ServerStreamingServer[poolv1.DrainResponse]) error {
		two := uint32(2)
		for _, event := range []*poolv1.DrainResponse{
			{Event: &poolv1.DrainResponse_Progress{Progress: &poolv1.DrainProgress{Phase: poolv1.DrainPhase_DRAIN_PHASE_WAITING, InFlight: &two}}},
			{Event: &poolv1.DrainResponse_Progress{Progress: &poolv1.DrainProgress{Phase: poolv1.DrainPhase_DRAIN_PHASE_STOPPING}}},
			{Event: &poolv1.DrainResponse_Result{Result: result}},
		} {
			if err := stream.Send(event); err != nil {
				return err
			}
		}
		return nil
	}}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	stopped := &poolv1.Pool{PoolId: "p", State: poolv1.PoolState_POOL_STATE_STOPPED}
	tests := []struct {
		name   string
		args   []string
		result *poolv1.DrainResult
		code   int
	}{
		{"drained.text", nil, &poolv1.DrainResult{Duration: durationpb.New(time.Second), Pool: stopped}, codeOK},
		{"drained.json", []string{"-o", "json"}, &poolv1.DrainResult{Duration: durationpb.New(time.Second), Pool: stopped}, codeOK},
		{"gave-up.text", []string{"--give-up", "--deadline=1s"}, &poolv1.DrainResult{GaveUp: true, Pool: readyPool()}, codeTimedOut},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, drains(test.result))
			if code := x.run(t, append([]string{"drain", "p"}, test.args...)...); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			testkit.Golden(t, test.name, []byte("stdout:\n"+x.stdout.String()+"stderr:\n"+x.stderr.String()))
		})
	}
}

// drainsNode sends a pool that was drained, one that was not, and the result.
func drainsNode(result *poolv1.DrainNodeResult) *fakeServices {
	return &fakeServices{drainNode: func(_ *poolv1.DrainNodeRequest, stream grpc.ServerStreamingServer[poolv1.DrainNodeResponse]) error {
		drained := &poolv1.DrainResult{Duration: durationpb.New(time.Second), Pool: &poolv1.Pool{PoolId: "a", State: poolv1.PoolState_POOL_STATE_STOPPED}}
		failure := &poolv1.Failure{Reason: enginev1.Reason_REASON_STOP_FAILED, Message: "a process is left"}
		for _, pool := range []*poolv1.PoolDrained{{PoolId: "a", Result: drained}, {PoolId: "b", Failure: failure}} {
			if err := stream.Send(&poolv1.DrainNodeResponse{Event: &poolv1.DrainNodeResponse_Pool{Pool: pool}}); err != nil {
				return err
			}
		}
		if result == nil {
			return reason.New(reason.StopFailed, "1 pool could not be drained")
		}
		return stream.Send(&poolv1.DrainNodeResponse{Event: &poolv1.DrainNodeResponse_Result{Result: result}})
	}}
}

func TestDrainNode(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		result *poolv1.DrainNodeResult
		code   int
		says   string
	}{
		{"all", &poolv1.DrainNodeResult{Pools: 2, Duration: durationpb.New(time.Second)}, codeOK, "2 pools drained after 1.0 s\n"},
		{"one gave up", &poolv1.DrainNodeResult{Pools: 2, GaveUp: 1}, codeTimedOut, "error: GAVE_UP"},
		{"one failed", nil, codeFailed, "error: STOP_FAILED: 1 pool could not be drained"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, drainsNode(test.result))
			code := x.run(t, "drain", "--node")
			said := x.stdout.String() + x.stderr.String()
			if code != test.code || !strings.Contains(said, test.says) {
				t.Errorf("it ends with %d and says %q, want %d and %q", code, said, test.code, test.says)
			}
			if want := "a is STOPPED after 1.0 s\nb could not be drained: STOP_FAILED: a process is left\n"; !strings.HasPrefix(said, want) {
				t.Errorf("it says %q, want %q first", said, want)
			}
		})
	}
}

func TestDrainNodeRequest(t *testing.T) {
	t.Parallel()
	const giveUp = poolv1.DrainDeadlineAction_DRAIN_DEADLINE_ACTION_GIVE_UP
	tests := []struct {
		name string
		args []string
		want *poolv1.DrainNodeRequest
	}{
		{"defaults are the manager's", nil, &poolv1.DrainNodeRequest{}},
		{"none at all", []string{"--deadline=0"}, &poolv1.DrainNodeRequest{Deadline: durationpb.New(0)}},
		{"all", []string{"--deadline=9s", "--give-up", "--parallel=3"},
			&poolv1.DrainNodeRequest{Deadline: durationpb.New(9 * time.Second), OnDeadline: giveUp, Parallel: 3}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := make(chan *poolv1.DrainNodeRequest, 1)
			x := newTerminal(t, &fakeServices{drainNode: func(request *poolv1.DrainNodeRequest, _ grpc.ServerStreamingServer[poolv1.DrainNodeResponse]) error {
				got <- request
				return nil
			}})
			if code := x.run(t, append([]string{"drain", "--node"}, test.args...)...); code != codeFailed {
				t.Errorf("exit code %d, want %d: there was no result", code, codeFailed)
			}
			if diff := cmp.Diff(test.want, <-got, protocmp.Transform()); diff != "" {
				t.Errorf("the request (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDrainRequest(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		args []string
		want *durationpb.Duration
	}{
		{"default is the manager's", nil, nil},
		{"none at all", []string{"--deadline=0"}, durationpb.New(0)},
		{"given", []string{"--deadline=90s"}, durationpb.New(90 * time.Second)},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := make(chan *durationpb.Duration, 1)
			x := newTerminal(t, &fakeServices{drain: func(request *poolv1.DrainRequest, _ grpc.ServerStreamingServer[poolv1.DrainResponse]) error {
				got <- request.GetDeadline()
				return reason.New(reason.PoolNotFound, "gone")
			}})
			if code := x.run(t, append([]string{"drain", "p"}, test.args...)...); code != codeNotFound {
				t.Errorf("exit code %d, want %d", code, codeNotFound)
			}
			if deadline := <-got; (deadline == nil) != (test.want == nil) || deadline.AsDuration() != test.want.AsDuration() {
				t.Errorf("the deadline is %v, want %v", deadline, test.want)
			}
		})
	}
}

// untilGone blocks a call until its caller has gone.
func untilGone(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestInterruptOnlyLeaves(t *testing.T) {
	t.Parallel()
	fake := &fakeServices{
		drain: func(_ *poolv1.DrainRequest, stream grpc.ServerStreamingServer[poolv1.DrainResponse]) error {
			return untilGone(stream.Context())
		},
		drainNode: func(_ *poolv1.DrainNodeRequest, stream grpc.ServerStreamingServer[poolv1.DrainNodeResponse]) error {
			return untilGone(stream.Context())
		},
		logs: func(_ *poolv1.LogsRequest, stream grpc.ServerStreamingServer[poolv1.LogsResponse]) error {
			return untilGone(stream.Context())
		},
		watch: func(_ *poolv1.WatchRequest, stream grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
			return untilGone(stream.Context())
		},
		list: func(*poolv1.ListPoolsRequest) (*poolv1.ListPoolsResponse, error) {
			return &poolv1.ListPoolsResponse{}, nil
		},
	}
	tests := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"drain", []string{"drain", "p"}, codeCancelled, "the drain of p goes on"},
		{"drain of a node", []string{"drain", "--node"}, codeCancelled, "the drain of the node goes on"},
		{"logs", []string{"logs", "p", "-f"}, codeOK, ""},
		{"watch", []string{"watch"}, codeOK, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, fake)
			x.interrupt()
			if code := x.run(t, test.args...); code != test.code || !strings.Contains(x.stderr.String(), test.says) {
				t.Errorf("%q ends with %d and says %q, want %d and %q", test.args, code, x.stderr, test.code, test.says)
			}
		})
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, &fakeServices{drain: func(_ *poolv1.DrainRequest, stream grpc.ServerStreamingServer[poolv1.DrainResponse]) error {
		return untilGone(stream.Context())
	}})
	if code := x.run(t, "drain", "p", "--timeout=2s"); code != codeTimedOut {
		t.Errorf("exit code %d, want %d", code, codeTimedOut)
	}
	if said := x.stderr.String(); !strings.Contains(said, "not done within --timeout 2s") || !strings.Contains(said, "goes on") {
		t.Errorf("standard error is %q, want the timeout and that the drain goes on", said)
	}
}

func TestLogs(t *testing.T) {
	t.Parallel()
	requests := make(chan *poolv1.LogsRequest, 1)
	x := newTerminal(t, &fakeServices{logs: func(request *poolv1.LogsRequest, stream grpc.ServerStreamingServer[poolv1.LogsResponse]) error {
		requests <- request
		if err := stream.Send(&poolv1.LogsResponse{Data: []byte("one\n")}); err != nil {
			return err
		}
		return stream.Send(&poolv1.LogsResponse{Data: []byte("two\n"), Gap: true})
	}})
	if code := x.run(t, "logs", "p", "--tail=0", "--replica=2"); code != codeOK {
		t.Fatalf("exit code %d: %s", code, x.stderr)
	}
	if got, want := x.stdout.String(), "one\ntwo\n"; got != want {
		t.Errorf("the output is %q, want %q", got, want)
	}
	if !strings.Contains(x.stderr.String(), "something may be missing") {
		t.Errorf("the gap is not told: %q", x.stderr)
	}
	request := <-requests
	if _, set := request.GetStart().(*poolv1.LogsRequest_TailLines); !set || request.GetReplica() != 2 {
		t.Errorf("the request is %v, want replica 2 and a tail of 0 lines", request)
	}
}
