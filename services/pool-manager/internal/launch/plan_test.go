// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

func literal(text string) *enginev1.Argument {
	return &enginev1.Argument{Value: &enginev1.Argument_Literal{Literal: text}}
}

func placeholder(p enginev1.Placeholder) *enginev1.Argument {
	return &enginev1.Argument{Value: &enginev1.Argument_Placeholder{Placeholder: p}}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		args []*enginev1.Argument
		want []string // nil: it is refused.
	}{
		{
			"everything", []*enginev1.Argument{
				literal("--host"), placeholder(enginev1.Placeholder_PLACEHOLDER_HOST),
				literal("--port"), placeholder(enginev1.Placeholder_PLACEHOLDER_PORT), literal(""), literal("$(id)"),
			}, []string{"--host", "127.0.0.1", "--port", "8080", "", "$(id)"},
		},
		{"none", nil, []string{}},
		{"no placeholder", []*enginev1.Argument{placeholder(enginev1.Placeholder_PLACEHOLDER_UNSPECIFIED)}, nil},
		{"a later placeholder", []*enginev1.Argument{placeholder(99)}, nil},
		{"an empty argument", []*enginev1.Argument{{}}, nil},
		{"a NUL byte", []*enginev1.Argument{literal("a\x00b")}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := arguments(tt.args, 8080)
			if tt.want == nil {
				wantReason(t, err, reason.WorkerStartFailed)
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("arguments: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// Every placeholder of the contract is filled in here.
func TestEveryPlaceholderIsKnown(t *testing.T) {
	t.Parallel()
	for value, name := range enginev1.Placeholder_name {
		if _, err := arguments([]*enginev1.Argument{placeholder(enginev1.Placeholder(value))}, 1); (err == nil) != (value != 0) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Parallel()
	base := []string{"PATH=/bin", "LANG=C", "LD_LIBRARY_PATH=/base"}
	for _, tt := range []struct {
		name   string
		launch *enginev1.ProcessLaunch
		want   []string // nil: it is refused.
	}{
		{"nothing of its own", &enginev1.ProcessLaunch{}, []string{"LANG=C", "LD_LIBRARY_PATH=/base", "PATH=/bin"}},
		{
			"its own overrule", &enginev1.ProcessLaunch{Env: map[string]string{"PATH": "/engine", "A": "b=c"}},
			[]string{"A=b=c", "LANG=C", "LD_LIBRARY_PATH=/base", "PATH=/engine"},
		},
		{
			"its libraries come first", &enginev1.ProcessLaunch{LibraryPaths: []string{"/1", "/2"}},
			[]string{"LANG=C", "LD_LIBRARY_PATH=/1:/2:/base", "PATH=/bin"},
		},
		{
			"before its own variable", &enginev1.ProcessLaunch{LibraryPaths: []string{"/1"}, Env: map[string]string{"LD_LIBRARY_PATH": "/3"}},
			[]string{"LANG=C", "LD_LIBRARY_PATH=/1:/3", "PATH=/bin"},
		},
		{"no name", &enginev1.ProcessLaunch{Env: map[string]string{"": "x"}}, nil},
		{"a name with =", &enginev1.ProcessLaunch{Env: map[string]string{"A=": "x"}}, nil},
		{"a NUL byte", &enginev1.ProcessLaunch{Env: map[string]string{"A": "x\x00"}}, nil},
		{"our mark", &enginev1.ProcessLaunch{Env: map[string]string{process.NonceVar: "x"}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := environment(base, tt.launch)
			if tt.want == nil {
				wantReason(t, err, reason.WorkerStartFailed)
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("environment: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestStopPolicy(t *testing.T) {
	t.Parallel()
	step := func(signal string, wait time.Duration) *enginev1.StopStep {
		return &enginev1.StopStep{Signal: signal, Wait: durationpb.New(wait)}
	}
	got, err := stopPolicy([]*enginev1.StopStep{step("SIGINT", time.Second), step("SIGTERM", time.Minute)})
	want := process.Policy{Steps: []process.Step{{Signal: syscall.SIGINT, Wait: time.Second}, {Signal: syscall.SIGTERM, Wait: time.Minute}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("stopPolicy: %v (-want +got):\n%s", err, diff)
	}
	if got := patience(want); got != 61*time.Second {
		t.Errorf("patience is %v, want 61s", got)
	}
	if got, err := stopPolicy(nil); err != nil || len(got.Steps) > 0 {
		t.Errorf("no steps: %+v, %v, want KILL at once", got, err)
	}
	for name, bad := range map[string]*enginev1.StopStep{
		"no signal": step("", 0), "no prefix": step("TERM", 0), "a number": step("15", 0), "negative wait": step("SIGTERM", -1),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := stopPolicy([]*enginev1.StopStep{bad})
			wantReason(t, err, reason.WorkerStartFailed)
		})
	}
}
