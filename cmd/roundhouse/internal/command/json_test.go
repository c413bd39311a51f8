// SPDX-License-Identifier: Apache-2.0

package command

import (
	"encoding/json"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// obliging answers every call well, but knows no pool q.
func obliging() *fakeServices {
	fake := drains(&poolv1.DrainResult{Pool: &poolv1.Pool{PoolId: "p", State: poolv1.PoolState_POOL_STATE_STOPPED}})
	fake.prepare = prepares(nil).prepare
	fake.plan = func(request *provisionerv1.PlanRequest) (*provisionerv1.PlanResponse, error) {
		return &provisionerv1.PlanResponse{Spec: request.GetSpec(), Steps: []*provisionerv1.PlannedStep{{Id: "a"}, {Id: "b"}}}, nil
	}
	fake.prepared = func(*provisionerv1.ListPreparedRequest) (*provisionerv1.ListPreparedResponse, error) {
		return &provisionerv1.ListPreparedResponse{Prepared: []*enginev1.PreparedEngine{{PreparedId: "x"}, {PreparedId: "y"}}}, nil
	}
	fake.preflight = func() (*provisionerv1.PreflightResponse, error) {
		return &provisionerv1.PreflightResponse{Engines: []*provisionerv1.EngineCheck{{Kind: "a", Available: true}}}, nil
	}
	fake.preload = func(_ *poolv1.PreloadRequest, stream grpc.ServerStreamingServer[poolv1.PreloadResponse]) error {
		if err := phase(stream, poolv1.LoadPhase_LOAD_PHASE_LOADING); err != nil {
			return err
		}
		return ready(stream)
	}
	fake.cancel = func(*poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error) {
		return &poolv1.CancelPreloadResponse{}, nil
	}
	fake.drainNode = drainsNode(&poolv1.DrainNodeResult{Pools: 2}).drainNode
	fake.reload = reloads(&poolv1.ReloadResult{Action: poolv1.ReloadAction_RELOAD_ACTION_NONE, Pool: readyPool()}).reload
	fake.unreload = func(*poolv1.CancelReloadRequest) (*poolv1.CancelReloadResponse, error) {
		return &poolv1.CancelReloadResponse{}, nil
	}
	fake.starts = func(*poolv1.ListStartsRequest) (*poolv1.ListStartsResponse, error) {
		return &poolv1.ListStartsResponse{Starts: []*poolv1.Start{{ReplicaId: "p-0"}, {ReplicaId: "p-1"}}}, nil
	}
	fake.reset = func(*poolv1.ResetBreakerRequest) (*poolv1.ResetBreakerResponse, error) {
		return &poolv1.ResetBreakerResponse{Replicas: 2}, nil
	}
	fake.list = func(*poolv1.ListPoolsRequest) (*poolv1.ListPoolsResponse, error) {
		return &poolv1.ListPoolsResponse{Pools: []*poolv1.Pool{readyPool(), readyPool()}}, nil
	}
	fake.get = func(*poolv1.GetPoolRequest) (*poolv1.GetPoolResponse, error) {
		return &poolv1.GetPoolResponse{Pool: readyPool()}, nil
	}
	fake.remove = func(request *poolv1.DeletePoolRequest) (*poolv1.DeletePoolResponse, error) {
		if request.GetPoolId() == "q" {
			return nil, reason.New(reason.PoolNotFound, "there is no such pool")
		}
		return &poolv1.DeletePoolResponse{}, nil
	}
	fake.logs = func(_ *poolv1.LogsRequest, stream grpc.ServerStreamingServer[poolv1.LogsResponse]) error {
		return stream.Send(&poolv1.LogsResponse{Data: []byte("one\ntwo\n")})
	}
	return fake
}

// isObject tells whether a line is one JSON object.
func isObject(line string) bool {
	var object map[string]json.RawMessage
	return json.Unmarshal([]byte(line), &object) == nil
}

// lines is text by its lines, each with its newline.
func lines(text string) []string {
	if text == "" {
		return nil
	}
	return strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")
}

func TestEveryAnswerInJSONIsALine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args  string
		lines int
	}{
		{"plan --preset=source", 1},
		{"prepare --preset=source", 3},
		{"prepared", 1},
		{"preflight", 1},
		{"preload --preset=source --pool=p", 2},
		{"preload --preset=source --pool=p --detach", 1},
		{"cancel p", 1},
		{"cancel p --reload", 1},
		{"reload --pool=p --prepared-id=sha256:x", 5},
		{"reload --pool=p --prepared-id=sha256:x --detach", 1},
		{"drain p", 3},
		{"drain --node", 3},
		{"starts p", 1},
		{"reset p", 1},
		{"delete a", 1},
		{"delete a b", 1},
		{"pools", 1},
		{"pools p", 1},
		{"logs p", 1},
		{"version", 1},
		{"--version", 1},
		{"help exit-codes", 1},
		{"drain --help", 1},
		{"exit-codes", 1},
		{"", 1},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, obliging())
			if code := x.run(t, append(strings.Fields(test.args), "-o", "json")...); code != codeOK || x.stderr.String() != "" {
				t.Errorf("%q ends with %d and says %q on standard error, want 0 and nothing", test.args, code, x.stderr)
			}
			got := lines(x.stdout.String())
			if len(got) != test.lines || !strings.HasSuffix(x.stdout.String(), "\n") {
				t.Errorf("%q answers with %d lines, want %d:\n%s", test.args, len(got), test.lines, x.stdout)
			}
			for _, line := range got {
				if !isObject(line) {
					t.Errorf("%q answers with a line that is no object: %s", test.args, line)
				}
			}
		})
	}
}

func TestEveryErrorInJSONIsALine(t *testing.T) {
	t.Parallel()
	tests := []struct {
		args    string
		code    int
		message string
	}{
		{"preload --nosuch -o json", codeUsage, "--nosuch: unknown flag"},
		{"-o json frob", codeUsage, `unknown command "frob" for "roundhouse"`},
		{"drain -ojson", codeUsage, "accepts 1 arg(s), received 0"},
		{"logs p --tail -1 --output=json", codeUsage, `--tail: "-1" is not a whole number from 0 to 4294967295`},
		{"pools -o=json --all", codeUsage, "--all: unknown flag"},
		{"drain p --deadline soon --output json", codeUsage, `--deadline: "soon" is not a time such as 30s, 5m or 2h`},
		{"preload -o json -x", codeUsage, "-x: unknown flag"},
		{"preload -o json --pool", codeUsage, "--pool: needs a value"},
		{"pools -o json -o xml", codeUsage, `--output: "xml" is not text or json`},
		{"plan -o json --preset=slow", codeUsage, `--preset: there is no preset "slow"`},
		{"pools -o json --pool-manager=unix:///nonexistent/s", codeUnavailable,
			"cannot reach the pool manager at unix:///nonexistent/s: connect: no such file or directory"},
		{"drain p --parallel 2 -o json", codeUsage, "--parallel has no meaning without --node"},
		{"drain p --node -o json", codeUsage, `unknown command "p" for "roundhouse drain"`},
		{"preload -o json --pool=p --prepared-id=x --residency=often", codeUsage, `--residency: unknown value "often"`},
		{"reload -o json --pool=p --prepared-id=x --prove-contains=x", codeUsage, "--prove-prompt: there is nothing to complete"},
		{"reload -o json --prepared-id=x", codeUsage, "--pool: the pool has no name"},
		{"delete -o json q", codeNotFound, "there is no such pool"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, obliging())
			code := x.run(t, strings.Fields(test.args)...)
			var got struct {
				Error struct{ Reason, Message, Remedy string }
			}
			if err := json.Unmarshal([]byte(x.stderr.String()), &got); err != nil || strings.Count(x.stderr.String(), "\n") != 1 {
				t.Fatalf("%q says %q, want one line of JSON: %v", test.args, x.stderr, err)
			}
			if code != test.code || got.Error.Message != test.message {
				t.Errorf("%q ends with %d and %q, want %d and %q", test.args, code, got.Error.Message, test.code, test.message)
			}
		})
	}
}

func TestErrorsInTextUnlessJSONWasAskedFor(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"plan --nosuch -- -o json", "plan --nosuch -o text", "plan --nosuch -o", "plan --nosuch"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, obliging())
			code := x.run(t, strings.Fields(args)...)
			if want := "error: INVALID_PARAMS: --nosuch: unknown flag\nremedy: see \"roundhouse plan --help\"\n"; code != codeUsage || x.stderr.String() != want {
				t.Errorf("%q ends with %d and says %q, want %d and %q", args, code, x.stderr, codeUsage, want)
			}
		})
	}
}

func TestDeleteTellsWhatIsGone(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, obliging())
	if code := x.run(t, "delete", "a", "q", "b", "-o", "json"); code != codeNotFound {
		t.Errorf("exit code %d, want %d", code, codeNotFound)
	}
	if got, want := x.stdout.String(), `{"deleted":["a"]}`+"\n"; got != want {
		t.Errorf("the answer is %q, want %q", got, want)
	}
}

func TestPrepareInJSONNeedsAResult(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, &fakeServices{
		prepare: func(*provisionerv1.PrepareRequest, grpc.ServerStreamingServer[provisionerv1.PrepareResponse]) error {
			return nil
		},
	})
	if code := x.run(t, "prepare", "--preset=source", "-o", "json"); code != codeFailed {
		t.Errorf("exit code %d, want %d", code, codeFailed)
	}
}
