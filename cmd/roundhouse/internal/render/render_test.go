// SPDX-License-Identifier: Apache-2.0

package render

import (
	"bytes"
	"encoding/json"
	"errors"
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
