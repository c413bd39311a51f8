// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

func parse[M proto.Message](t *testing.T, text string, message M) M {
	t.Helper()
	if err := prototext.Unmarshal([]byte(text), message); err != nil {
		t.Fatalf("parse message: %v", err)
	}
	return message
}

const planText = `
	spec {
		engine { kind: "llamacpp" source_build { bundle { uri: "npm:a@1/b.bundle" ref: "v1" } accelerator: ACCELERATOR_CPU } }
		model { uri: "file:/m/x.gguf" id: "x" }
		launch { context_tokens: 2048 slots: 2 flags: "--threads" flags: "2" }
	}
	steps { id: "fetch" name: "fetch the bundle" kind: STEP_KIND_FETCH cached: true size_bytes: 35273016 last_duration { nanos: 4100000 } }
	steps { id: "build" name: "build llama-server" kind: STEP_KIND_BUILD last_duration { seconds: 362 } }`

const poolText = `
	pool_id: "demo" revision: 7 state: POOL_STATE_FAILED
	failure { reason: REASON_ENGINE_EXITED message: "replica 0 ended" }
	spec { pool_id: "demo" replicas: 2 }
	prepared_id: "sha256:abc"
	engine { kind: "xllamacpp" version: "1.2" mode: PROVISIONING_MODE_PACKAGE }
	model { id: "smol" sha256: "def" context_tokens: 2048 }
	replicas { replica_id: "demo-0" generation: 1 state: REPLICA_STATE_FAILED
		exit { class: EXIT_CLASS_SIGNAL signal: "SIGSEGV" uptime { seconds: 61 } last_log_lines: "loading" last_log_lines: "boom" } }
	replicas { replica_id: "demo-1" index: 1 generation: 1 state: REPLICA_STATE_READY endpoint: "http://127.0.0.1:4312" pid: 77 slots_total: 1 }
	created { seconds: 1780000000 } updated { seconds: 1780000100 }`

const recoveringText = `
	pool_id: "chat" state: POOL_STATE_RECOVERING wanted: true edition: 4
	failure { reason: REASON_BREAKER_OPEN message: "5 starts in a row failed" }
	spec { pool_id: "chat" replicas: 3 priority: 7 residency: RESIDENCY_TTL idle_timeout { seconds: 600 }
		labels { key: "team" value: "red" } labels { key: "app" value: "x" } }
	replicas { replica_id: "chat-0" generation: 9 state: REPLICA_STATE_BACKOFF
		exit { class: EXIT_CLASS_OOM_DEVICE code: 1 uptime { nanos: 30000000 } last_log_lines: "cudaMalloc failed: out of memory" }
		supervision { restarts: 8 failed_starts: 5 breaker: BREAKER_STATE_OPEN breaker_cause: "5 starts in a row failed" next_attempt { seconds: 1780000400 } } }
	replicas { replica_id: "chat-1" generation: 2 state: REPLICA_STATE_BACKOFF
		exit { class: EXIT_CLASS_UNKNOWN uptime { seconds: 3 } }
		supervision { restarts: 1 failed_starts: 1 breaker: BREAKER_STATE_CLOSED next_attempt { seconds: 1780000200 } } }
	replicas { replica_id: "chat-2" generation: 1 state: REPLICA_STATE_STARTING pid: 78
		loading { loaded_bytes: 40000000 total_bytes: 100000000 still_since { seconds: 1780000050 } } }
	created { seconds: 1780000000 } updated { seconds: 1780000100 }`

const reloadingText = `
	pool_id: "swap" state: POOL_STATE_DEGRADED wanted: true edition: 2
	spec { pool_id: "swap" replicas: 2 }
	replicas { replica_id: "swap-0" generation: 1 state: REPLICA_STATE_STARTING endpoint: "http://127.0.0.1:1" }
	replicas { replica_id: "swap-1" generation: 1 state: REPLICA_STATE_READY endpoint: "http://127.0.0.1:2" pid: 5 slots_total: 1 adopted: true
		supervision { restarts: 3 breaker: BREAKER_STATE_HALF_OPEN breaker_cause: "it was open" } }
	retiring { replica_id: "swap-3" generation: 1 state: REPLICA_STATE_DRAINING pid: 6 slots_total: 1 }
	reload { phase: RELOAD_PHASE_DRAINING_OLD candidates { replica_id: "swap-4" generation: 2 state: REPLICA_STATE_READY pid: 7 slots_total: 1 } }`

const loadingText = `
	pool_id: "big" state: POOL_STATE_LOADING phase: LOAD_PHASE_LOADING spec { pool_id: "big" replicas: 2 }
	replicas { replica_id: "big-0" state: REPLICA_STATE_STARTING loading { loaded_bytes: 50 total_bytes: 100 remaining { seconds: 3 } } }
	replicas { replica_id: "big-1" state: REPLICA_STATE_STARTING loading { loaded_bytes: 0 total_bytes: 100 remaining { seconds: 9 } } }`

const startsText = `
	starts { replica_id: "chat-0" generation: 3 started { seconds: 1780000100 } started_by: "restart" error: "it did not get ready: nothing moved for 2m0s"
		ended_by: "stalled" exit { class: EXIT_CLASS_STALLED signal: "SIGKILL" uptime { seconds: 130 } last_log_lines: "loading" } }
	starts { replica_id: "chat-0" generation: 2 started { seconds: 1780000050 } ready { seconds: 1780000051 nanos: 500000000 } started_by: "restart"
		exit { class: EXIT_CLASS_GPU_FAULT signal: "SIGABRT" uptime { seconds: 40 } last_log_lines: "so far so good" last_log_lines: "CUDA error" } }
	starts { replica_id: "chat-0" generation: 1 started { seconds: 1780000000 } ready { seconds: 1780000001 } started_by: "preload"
		ended_by: "reload" exit { class: EXIT_CLASS_STOPPED uptime { seconds: 49 } requests_cut: 2 last_log_lines: "cleaning up" } }`

const preparedText = `
	prepared_id: "sha256:0011" prepared_at { seconds: 1780000000 }
	engine { kind: "llamacpp" version: "b1" commit: "de3f" mode: PROVISIONING_MODE_SOURCE }
	process { executable: "/store/engines/k/llama-server" }
	model { id: "smol" architecture: "llama" quantization: "Q4_1" files { path: "/store/models/m/x.gguf" size_bytes: 98362432 } }
	spec { launch { slots: 2 } }`

const preflightText = `
	tools { name: "git" path: "/usr/bin/git" version: "2.39" needed_for: "building from source" }
	tools { name: "ninja" needed_for: "building from source" remedy: "apt install ninja-build" }
	tools { name: "ccache" needed_for: "faster rebuilds" optional: true remedy: "apt install ccache" }
	engines { kind: "llamacpp" mode: PROVISIONING_MODE_SOURCE missing_tools: "ninja" }
	engines { kind: "xllamacpp" mode: PROVISIONING_MODE_PACKAGE available: true }
	store { path: "/store" free_bytes: 12345678901 allowed_roots: "/models" }`

func TestGolden(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		write func(out *bytes.Buffer) error
	}{
		{"plan.txt", func(out *bytes.Buffer) error {
			return Plan(out, parse(t, planText, &provisionerv1.PlanResponse{}))
		}},
		{"plan.json", func(out *bytes.Buffer) error {
			return Line(out, parse(t, planText, &provisionerv1.PlanResponse{}))
		}},
		{"prepared.txt", func(out *bytes.Buffer) error {
			return Prepared(out, parse(t, preparedText, &enginev1.PreparedEngine{}))
		}},
		{"prepared-list.txt", func(out *bytes.Buffer) error {
			return PreparedList(out, []*enginev1.PreparedEngine{parse(t, preparedText, &enginev1.PreparedEngine{})})
		}},
		{"preflight.txt", func(out *bytes.Buffer) error {
			return Preflight(out, parse(t, preflightText, &provisionerv1.PreflightResponse{}))
		}},
		{"pool.txt", func(out *bytes.Buffer) error { return Pool(out, parse(t, poolText, &poolv1.Pool{})) }},
		{"pools.txt", func(out *bytes.Buffer) error {
			loading := &poolv1.Pool{
				PoolId: "new", State: poolv1.PoolState_POOL_STATE_LOADING, Phase: poolv1.LoadPhase_LOAD_PHASE_PREPARING,
			}
			return Pools(out, []*poolv1.Pool{parse(t, poolText, &poolv1.Pool{}), loading})
		}},
		{"pool-recovering.txt", func(out *bytes.Buffer) error { return Pool(out, parse(t, recoveringText, &poolv1.Pool{})) }},
		{"pool-reloading.txt", func(out *bytes.Buffer) error { return Pool(out, parse(t, reloadingText, &poolv1.Pool{})) }},
		{"pools-in-trouble.txt", func(out *bytes.Buffer) error {
			return Pools(out, []*poolv1.Pool{
				parse(t, recoveringText, &poolv1.Pool{}), parse(t, reloadingText, &poolv1.Pool{}), parse(t, loadingText, &poolv1.Pool{}),
			})
		}},
		{"starts.txt", func(out *bytes.Buffer) error {
			return Starts(out, parse(t, startsText, &poolv1.ListStartsResponse{}).GetStarts())
		}},
		{"watch.txt", func(out *bytes.Buffer) error { return writeChanges(t, out, Text) }},
		{"watch.json", func(out *bytes.Buffer) error { return writeChanges(t, out, JSON) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			if err := test.write(&out); err != nil {
				t.Fatalf("write: %v", err)
			}
			testkit.Golden(t, test.name, out.Bytes())
		})
	}
}

func writeChanges(t *testing.T, out *bytes.Buffer, format Format) error {
	t.Helper()
	at := time.Date(2026, 11, 24, 10, 20, 30, 0, time.UTC)
	var errs []error
	for _, message := range []*poolv1.WatchResponse{
		{Event: &poolv1.WatchResponse_Reset_{Reset_: &poolv1.Reset{}}},
		{Event: &poolv1.WatchResponse_Upsert{Upsert: parse(t, poolText, &poolv1.Pool{})}},
		{ResumeToken: "1", Event: &poolv1.WatchResponse_Synced{Synced: &poolv1.Synced{}}},
		{ResumeToken: "2", Event: &poolv1.WatchResponse_Heartbeat{Heartbeat: &poolv1.Heartbeat{}}},
		{ResumeToken: "3", Event: &poolv1.WatchResponse_Deleted{Deleted: &poolv1.Deleted{PoolId: "demo"}}},
	} {
		errs = append(errs, Change(out, format, at, message))
		at = at.Add(time.Minute)
	}
	return errors.Join(errs...)
}

func TestLineIsOneLineOfJSON(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	if err := Line(&out, parse(t, poolText, &poolv1.Pool{})); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "\n"); n != 1 || !json.Valid(out.Bytes()) {
		t.Errorf("Line wrote %d newlines, valid JSON: %v; want one line of JSON:\n%s", n, json.Valid(out.Bytes()), &out)
	}
}

func TestDrainWords(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		got  string
		want string
	}{
		{"waiting", DrainProgress(parse(t, `phase: DRAIN_PHASE_WAITING in_flight: 3 remaining { seconds: 12 }`, &poolv1.DrainProgress{})),
			"waiting for 3 requests in flight, at most 12.0 s"},
		{"waiting blindly", DrainProgress(parse(t, `phase: DRAIN_PHASE_WAITING`, &poolv1.DrainProgress{})),
			"waiting for an unknown number of requests in flight"},
		{"stopping", DrainProgress(parse(t, `phase: DRAIN_PHASE_STOPPING`, &poolv1.DrainProgress{})), "stopping the engines"},
		{"stopped", DrainResult(parse(t, `duration { nanos: 30000000 } pool { pool_id: "p" state: POOL_STATE_STOPPED }`, &poolv1.DrainResult{})),
			"p is STOPPED after 30 ms"},
		{"forced", DrainResult(parse(t, `forced: true killed: true requests_cut: 2 duration { seconds: 90 } pool { pool_id: "p" state: POOL_STATE_STOPPED }`, &poolv1.DrainResult{})),
			"p is STOPPED after 1 min 30 s, 2 requests cut, killed: it did not end when told to"},
		{"gave up", DrainResult(parse(t, `gave_up: true duration { seconds: 1 } pool { pool_id: "p" state: POOL_STATE_READY }`, &poolv1.DrainResult{})),
			"p still serves: requests were left at the deadline, after 1.0 s"},
		{"a pool of a node", PoolDrained(parse(t, `pool_id: "p" result { duration { seconds: 1 } pool { pool_id: "p" state: POOL_STATE_STOPPED } }`, &poolv1.PoolDrained{})),
			"p is STOPPED after 1.0 s"},
		{"a pool that could not be drained", PoolDrained(parse(t, `pool_id: "p" failure { reason: REASON_STOP_FAILED message: "still there" }`, &poolv1.PoolDrained{})),
			"p could not be drained: STOP_FAILED: still there"},
		{"a node", DrainNodeResult(parse(t, `pools: 1 duration { seconds: 2 }`, &poolv1.DrainNodeResult{})), "1 pool drained after 2.0 s"},
		{"a busy node", DrainNodeResult(parse(t, `pools: 3 requests_cut: 2 gave_up: 1 duration { seconds: 2 }`, &poolv1.DrainNodeResult{})),
			"3 pools drained after 2.0 s, 2 requests cut, 1 of them gave up at the deadline and serve on"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if test.got != test.want {
				t.Errorf("got %q, want %q", test.got, test.want)
			}
		})
	}
}

func TestReloadWords(t *testing.T) {
	t.Parallel()
	const differs = `restart_fields: "prepare.model.uri" live_fields: "priority" pool { pool_id: "p" } `
	tests := []struct {
		name   string
		write  func(io.Writer, *poolv1.ReloadResult) error
		result string
		want   string
	}{
		{"no difference", ReloadResult, `action: RELOAD_ACTION_NONE pool { pool_id: "p" }`, "p is that already; nothing is changed\ntook  0.0 ms\n"},
		{"policies", ReloadResult, `action: RELOAD_ACTION_LIVE live_fields: "labels" duration { nanos: 5000000 } pool { pool_id: "p" }`,
			"p is changed; its engines stay\ndiffers  labels\ntook     5.0 ms\n"},
		{"new engines", ReloadResult, `action: RELOAD_ACTION_MAKE_BEFORE_BREAK duration { seconds: 9 } ` + differs,
			"p has new engines, which took over before the old ones ended\n" +
				"differs  prepare.model.uri, which needs new engines\ndiffers  priority\ntook     9.0 s\n"},
		{"outage", ReloadResult, `action: RELOAD_ACTION_BREAK_BEFORE_MAKE duration { seconds: 9 } outage { seconds: 3 } requests_cut: 1 pool { pool_id: "p" }`,
			"p has new engines, which were started after the old ones had ended\ntook    9.0 s\noutage  3.0 s\ncut     1 request\n"},
		{"an action of a later version", ReloadResult, `action: 99 pool { pool_id: "p" }`, "p 99\ntook  0.0 ms\n"},
		{"plan of nothing", ReloadPlan, `action: RELOAD_ACTION_NONE pool { pool_id: "p" }`, "p is that already; nothing would change\n"},
		{"plan", ReloadPlan, `action: RELOAD_ACTION_MAKE_BEFORE_BREAK ` + differs, "p would get new engines first, and then lose the old ones\n" +
			"differs  prepare.model.uri, which needs new engines\ndiffers  priority\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			if err := test.write(&out, parse(t, test.result, &poolv1.ReloadResult{})); err != nil || out.String() != test.want {
				t.Errorf("got %q, %v, want %q", &out, err, test.want)
			}
		})
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	err := reason.New(reason.InvalidParams, "two fields are wrong", reason.Violation("spec.a", "must not be empty"),
		reason.Violation("spec.b", "must be a number"), reason.Remedy("correct them"), reason.Meta("got", 3))
	for _, format := range []Format{Text, JSON} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			if err := Failure(&out, format, "INVALID_PARAMS", err); err != nil {
				t.Fatal(err)
			}
			testkit.Golden(t, "failure."+string(format), out.Bytes())
		})
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 98362432: "98.4 MB", 2e12: "2.0 TB", 9e18: "9000.0 PB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	t.Parallel()
	tests := map[time.Duration]string{
		4100 * time.Microsecond: "4.1 ms", 164 * time.Millisecond: "164 ms", 12340 * time.Millisecond: "12.3 s",
		362 * time.Second: "6 min 02 s",
	}
	for d, want := range tests {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestFormatRefusesOthers(t *testing.T) {
	t.Parallel()
	format := Text
	if err := format.Set("xml"); err == nil || format != Text {
		t.Errorf("Set(xml) = %v and made it %q, want an error and text", err, format)
	}
	if err := format.Set("json"); err != nil || format != JSON {
		t.Errorf("Set(json) = %v and made it %q, want json", err, format)
	}
}
