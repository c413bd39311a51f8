// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// Engines that do not get ready: the call fails with what happened, nothing runs, and the pool tells how it ended.
func TestStartsThatFail(t *testing.T) {
	t.Parallel()
	startFailed := func(metadata map[string]string) harness.Want {
		return harness.Want{Code: codes.FailedPrecondition, Reason: reason.WorkerStartFailed, Metadata: metadata}
	}
	timeout := harness.Want{
		Code: codes.DeadlineExceeded, Reason: reason.WorkerStartTimeout, Field: "spec.startup_timeout", Metadata: map[string]string{"last_answer": ""},
	}
	tests := []struct {
		name    string
		flags   []string
		timeout time.Duration
		want    harness.Want
		exit    *poolv1.Exit // class, code and signal
	}{
		{
			name:  "exits at once",
			flags: []string{"--fake-exit", "7", "--fake-last-words", "error: no luck today"},
			want:  startFailed(map[string]string{"exit_class": "ERROR", "exit_code": "7", "last_log_line": "error: no luck today"}),
			exit:  &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_ERROR, Code: 7},
		},
		{
			name:  "cannot load its model",
			flags: []string{"--fake-exit", "1", "--fake-last-words", "error loading model: unknown architecture"},
			want:  startFailed(map[string]string{"exit_class": "CONFIG", "exit_code": "1"}),
			exit:  &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_CONFIG, Code: 1},
		},
		{
			name:  "is killed by a signal",
			flags: []string{"--fake-signal", "11", "--fake-last-words", "about to crash"},
			want:  startFailed(map[string]string{"exit_class": "SIGNAL", "signal": "SIGSEGV", "last_log_line": "about to crash"}),
			exit:  &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Signal: "SIGSEGV"},
		},
		{
			name:  "prints much and exits",
			flags: []string{"--fake-noise", "4000000", "--fake-exit", "3", "--fake-last-words", "the end"},
			want:  startFailed(map[string]string{"exit_class": "ERROR", "last_log_line": "the end"}),
			exit:  &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_ERROR, Code: 3},
		},
		{
			name:    "never has its model loaded",
			flags:   []string{"--fake-load-until", "/nonexistent/file"},
			timeout: 500 * time.Millisecond,
			want:    timeout,
			exit:    &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_STOPPED, Signal: "SIGTERM"},
		},
		{
			name:    "never listens",
			flags:   []string{"--fake-behave", "mute"},
			timeout: 500 * time.Millisecond,
			want:    timeout,
			exit:    &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_STOPPED},
		},
		{
			name:    "never gets ready, ignores TERM and has children in sessions of their own",
			flags:   []string{"--fake-behave", "mute", "--fake-behave", "deaf", "--fake-forks", "3"},
			timeout: 500 * time.Millisecond,
			want:    timeout,
			exit:    &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_KILLED, Signal: "SIGKILL"},
		},
		{
			name:  "leaves children behind when it exits",
			flags: []string{"--fake-forks", "3", "--fake-exit", "2", "--fake-last-words", "on your own now"},
			want:  startFailed(map[string]string{"exit_class": "ERROR", "exit_code": "2"}),
			exit:  &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_ERROR, Code: 2},
		},
		{
			name:  "serves another model",
			flags: []string{"--fake-model-id", "somebody-else"},
			want: harness.Want{
				Code: codes.FailedPrecondition, Reason: reason.WorkerStartFailed, Message: `is "somebody-else", want "tiny"`,
			},
			exit: &poolv1.Exit{Class: enginev1.ExitClass_EXIT_CLASS_STOPPED},
		},
	}
	node := harness.Start(t, harness.Config{})
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { //nolint:paralleltest // what runs on the node is looked at
			spec := node.FakePool(t, "p"+strconv.Itoa(i), tt.flags...)
			if tt.timeout > 0 {
				spec.StartupTimeout = durationpb.New(tt.timeout)
			}
			load := node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec})
			tt.want.Check(t, load.Err)
			node.AssertNothingRuns(t)
			assertFailed(t, node, spec.GetPoolId(), tt.want.Reason, tt.exit)
			deletePool(t, node, spec.GetPoolId())
		})
	}
}

// assertFailed looks at the pool that a failed start leaves, its logs included.
func assertFailed(t *testing.T, node *harness.Node, id string, want reason.Reason, exit *poolv1.Exit) {
	t.Helper()
	pool := node.GetPool(t, id)
	if pool.GetState() != poolv1.PoolState_POOL_STATE_FAILED || pool.GetFailure().GetReason() != want ||
		pool.GetFailure().GetMessage() == "" {
		t.Errorf("pool = %v, want FAILED of %v", pool, want)
	}
	replica := pool.GetReplicas()[0]
	if replica.GetState() != poolv1.ReplicaState_REPLICA_STATE_FAILED || replica.GetPid() != 0 || replica.GetEndpoint() != "" {
		t.Errorf("replica = %v, want FAILED without pid and endpoint", replica)
	}
	got := replica.GetExit()
	if got.GetClass() != exit.GetClass() || got.GetCode() != exit.GetCode() || got.GetSignal() != exit.GetSignal() {
		t.Errorf("exit = %v, want %v", got, exit)
	}
	size := len(strings.Join(got.GetLastLogLines(), ""))
	if n := len(got.GetLastLogLines()); n == 0 || n > 50 || size > 16<<10 {
		t.Errorf("exit has %d last lines of %d bytes, want 1 to 50 of 16 KiB at most", n, size)
	}
	if log := node.Logs(t, id); !strings.Contains(log, got.GetLastLogLines()[0]) {
		t.Errorf("Logs have %d bytes without the line %q", len(log), got.GetLastLogLines()[0])
	}
}

func deletePool(t *testing.T, node *harness.Node, id string) {
	t.Helper()
	if _, err := node.Pools.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: id}); err != nil {
		t.Errorf("DeletePool: %v", err)
	}
	if ids := node.PoolIDs(t); len(ids) != 0 {
		t.Errorf("pools = %v, want none", ids)
	}
	if entries, err := os.ReadDir(node.State + "/logs"); err != nil || len(entries) != 0 {
		t.Errorf("logs of deleted pools: %v, %v", entries, err)
	}
}

// A port that another process has, which answers 200 to everything, is never taken for the engine.
func TestPortOfAnotherProcess(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	impostor := func(t *testing.T, address string) (port int) {
		t.Helper()
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"data":[{"id":"tiny"}],"total_slots":2}`)
		})}
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(func() { _ = server.Close() })
		return listener.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener has a TCP address
	}
	want := func(port int) harness.Want {
		return harness.Want{Code: codes.FailedPrecondition, Reason: reason.PortInUse, Metadata: map[string]string{
			"port": strconv.Itoa(port), "holder_pid": strconv.Itoa(os.Getpid()),
		}}
	}
	t.Run("before the start", func(t *testing.T) { //nolint:paralleltest // what runs on the node is looked at
		port := impostor(t, "127.0.0.1:0")
		spec := node.FakePool(t, "before")
		spec.Port = uint32(port)
		wanted := want(port)
		wanted.Field = "spec.port"
		wanted.Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}).Err)
		node.AssertNothingRuns(t)
		if ids := node.PoolIDs(t); len(ids) != 0 {
			t.Errorf("pools = %v, want none: no engine was started", ids)
		}
	})
	t.Run("while it loads", func(t *testing.T) { //nolint:paralleltest // what runs on the node is looked at
		spec := node.FakePool(t, "while", "--fake-behave", "mute")
		free, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := free.Addr().(*net.TCPAddr).Port //nolint:errcheck // a TCP listener has a TCP address
		_ = free.Close()
		spec.Port = uint32(port)
		watcher := node.Watch(t, "while")
		ended := make(chan harness.Load)
		go func() { ended <- node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}) }()
		watcher.Until(t, "the engine loads", harness.InPhase(poolv1.LoadPhase_LOAD_PHASE_LOADING))
		impostor(t, "127.0.0.1:"+strconv.Itoa(port))
		want(port).Check(t, harness.Await(t, "the end of the call", ended).Err)
		node.AssertNothingRuns(t)
	})
}
