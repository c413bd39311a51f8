// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// currentSpec is what a pool is before a reload.
const currentSpec = `pool_id: "p" replicas: 2 priority: 3 idle_timeout { seconds: 60 } residency: RESIDENCY_TTL labels { key: "a" value: "1" }
	restart { first_delay { seconds: 1 } max_delay { seconds: 60 } } health { stall_limit { seconds: 60 } }
	prepare { engine { kind: "a" external { path: "/x" } } model { uri: "file:/m/x.gguf" id: "x" } launch { slots: 1 flags: "--mlock" } }`

func reloadFrom(t *testing.T, stdin string, args ...string) (*poolv1.ReloadRequest, error) {
	t.Helper()
	var flags ReloadFlags
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags.Register(set)
	if err := set.Parse(args); err != nil {
		t.Fatalf("parse %q: %v", args, err)
	}
	var current, before *poolv1.PoolSpec
	if flags.NeedsCurrent() {
		current = textProto(t, currentSpec, &poolv1.PoolSpec{})
		before = proto.CloneOf(current)
	}
	request, err := flags.Reload(strings.NewReader(stdin), set.Args(), current)
	if diff := cmp.Diff(before, current, protocmp.Transform()); diff != "" {
		t.Errorf("Reload changed the present spec (-before +after):\n%s", diff)
	}
	return request, err
}

func TestPolicyFlags(t *testing.T) {
	t.Parallel()
	const workload = ` prepared_id: "sha256:x" `
	tests := []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{"all of them", "", []string{
			"--residency=ttl", "--idle-timeout=10m", "--priority=-5", "--label=team=red", "--label=tier=1", "--restart-delay=2s",
			"--restart-max-delay=5m", "--stall-limit=20s", "--load-stall-limit=90s", "--no-canary",
		}, `residency: RESIDENCY_TTL idle_timeout { seconds: 600 } priority: -5
			labels { key: "team" value: "red" } labels { key: "tier" value: "1" }
			restart { first_delay { seconds: 2 } max_delay { seconds: 300 } }
			health { stall_limit { seconds: 20 } load_stall_limit { seconds: 90 } no_canary: true }`},
		{"over a file", `{"spec": {"labels": {"a": "1"}, "restart": {"firstDelay": "3s"}, "health": {"noCanary": true}, "priority": 2}}`,
			[]string{"-f", "-", "--label=b=2", "--restart-max-delay=5s", "--stall-limit=1s"},
			`labels { key: "a" value: "1" } labels { key: "b" value: "2" } restart { first_delay { seconds: 3 } max_delay { seconds: 5 } }
			health { no_canary: true stall_limit { seconds: 1 } } priority: 2`},
		{"defaults over a file", `{"spec": {"restart": {"firstDelay": "3s"}, "health": {"noCanary": true, "stallLimit": "5s"}, "port": 9, "startupTimeout": "9s"}}`,
			[]string{"-f", "-", "--restart-delay=0", "--stall-limit=0", "--no-canary=false", "--port=0", "--startup-timeout=0"},
			`restart {} health {}`},
		{"a breaker in a file", "spec: {restart: {breaker: {failedStarts: 2, openFor: 30s}}}", []string{"-f", "-"},
			`restart { breaker { failed_starts: 2 open_for { seconds: 30 } } }`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := preloadFrom(t, test.stdin, append([]string{"--pool=p", "--prepared-id=sha256:x"}, test.args...)...)
			if err != nil {
				t.Fatalf("Preload(%q) = %v", test.args, err)
			}
			want := textProto(t, `pool_id: "p" `+workload+test.want, &poolv1.PoolSpec{})
			if diff := cmp.Diff(want, got.GetSpec(), protocmp.Transform()); diff != "" {
				t.Errorf("Preload(%q) (-want +got):\n%s", test.args, diff)
			}
		})
	}
}

func TestReload(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{"a policy of the present pool", "", []string{"--pool=p", "--priority=9"},
			`spec { ` + strings.Replace(currentSpec, "priority: 3", "priority: 9", 1) + ` }`},
		{"a policy of the present pool back to its default", "", []string{"--pool=p", "--priority=0", "--replicas=0", "--idle-timeout=0"},
			`spec { ` + strings.NewReplacer("priority: 3", "", "replicas: 2", "", "idle_timeout { seconds: 60 }", "").Replace(currentSpec) + ` }`},
		{"pinned has no idle timeout", "", []string{"--pool=p", "--residency=pinned"},
			`spec { ` + strings.NewReplacer("idle_timeout { seconds: 60 }", "", "RESIDENCY_TTL", "RESIDENCY_PINNED").Replace(currentSpec) + ` }`},
		{"a model of the present pool", "", []string{"--pool=p", "--model=file:/m/y.gguf", "--", "--numa"},
			`spec { ` + strings.NewReplacer(`x.gguf" id: "x"`, `y.gguf"`, `"--mlock"`, `"--mlock" flags: "--numa"`).Replace(currentSpec) + ` }`},
		{"described anew", "", []string{"--pool=p", "--prepared-id=sha256:x", "--accept-outage", "--dry-run"},
			`spec { pool_id: "p" prepared_id: "sha256:x" } accept_outage: true dry_run: true`},
		{"proof", "", []string{
			"--pool=p", "--prepared-id=sha256:x", "--prove-prompt=1 2 3", "--prove-tokens=4", "--prove-contains=4", "--prove-rate=2.5", "--prove-timeout=9s",
		}, `spec { pool_id: "p" prepared_id: "sha256:x" }
			proof { prompt: "1 2 3" max_tokens: 4 contains: "4" min_tokens_per_second: 2.5 timeout { seconds: 9 } }`},
		{"file completed by flags", `{"spec": {"preparedId": "x"}, "proof": {"prompt": "a", "contains": "b"}, "dryRun": true}`,
			[]string{"-f", "-", "--pool=p", "--prove-contains=c"},
			`spec { pool_id: "p" prepared_id: "x" } proof { prompt: "a" contains: "c" } dry_run: true`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := reloadFrom(t, test.stdin, test.args...)
			if err != nil {
				t.Fatalf("Reload(%q) = %v", test.args, err)
			}
			want := textProto(t, test.want, &poolv1.ReloadRequest{})
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("Reload(%q) (-want +got):\n%s", test.args, diff)
			}
		})
	}
}

func TestPoolFlagsRefuse(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, stdin string
		args        []string
		field       string
	}{
		{"no name", "", []string{"--prepared-id=sha256:x"}, "--pool"},
		{"nothing at all", "", nil, "--engine"},
		{"unknown residency", "", []string{"--pool=p", "--residency=often"}, "--residency"},
		{"proof of nothing", "", []string{"--pool=p", "--prove-contains=x"}, "--prove-prompt"},
		{"engine without source", "", []string{"--pool=p", "--engine=a"}, "--engine"},
		{"key of a preload", `{"spec": {"preparedId": "x"}, "requestId": "r"}`, []string{"-f", "-", "--pool=p"}, "requestId"},
		{"prepare request", `{"spec": {"engine": {"kind": "a"}}}`, []string{"-f", "-", "--pool=p"}, "standard input"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := reloadFrom(t, test.stdin, test.args...)
			e, ok := reason.As(err)
			if !ok || e.Reason != reason.InvalidParams || len(e.Fields) != 1 || e.Fields[0].Name != test.field {
				t.Errorf("Reload(%q) = %v, %v, want INVALID_PARAMS that names %s", test.args, got, err, test.field)
			}
			if got != nil {
				t.Errorf("Reload(%q) gives a request beside its error: %v", test.args, got)
			}
		})
	}
}
