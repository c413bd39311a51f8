// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"strings"
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// Each refusal says what is wrong and what the field takes, in words.
func TestRefusalsSayWhatIsTaken(t *testing.T) {
	t.Parallel()
	validator, err := protovalidate.New()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		message proto.Message
		text    string
		want    string
	}{
		{
			"no message", &poolv1.PreloadRequest{}, ``,
			"spec: is missing: give one, which has pool_id, prepare, prepared_id, replicas, port, startup_timeout, " +
				"restart, health, residency, idle_timeout, priority, labels",
		},
		{
			"none of several", &poolv1.PreloadRequest{}, `spec { pool_id: "a" }`,
			"spec.workload: is missing: give one of prepare, prepared_id",
		},
		{
			"none of several, deep down", &provisionerv1.PlanRequest{}, `spec { engine { kind: "a" } model { uri: "u" } }`,
			"spec.engine.source: is missing: give one of source_build, package, external",
		},
		{
			"a pattern", &poolv1.PreloadRequest{}, `spec { pool_id: "a" prepared_id: "x" }`,
			`spec.prepared_id: does not have the form that it must have: give "sha256:" and 64 hexadecimal digits (0-9, a-f)`,
		},
		{
			"a number too large", &poolv1.PreloadRequest{}, `spec { pool_id: "a" prepared_id: "ID" replicas: 99 }`,
			"spec.replicas: must be less than or equal to 64: give a value from 0 to 64",
		},
		{
			"a number below a limit", &poolv1.LogsRequest{}, `pool_id: "a" replica: 64`,
			"replica: must be less than 64: give a value below 64",
		},
		{
			"a negative number", &poolv1.LogsRequest{}, `pool_id: "a" offset: -1`,
			"offset: must be greater than or equal to 0: give a value at least 0",
		},
		{
			"a time out of range", &poolv1.PreloadRequest{}, `spec { pool_id: "a" prepared_id: "ID" startup_timeout {} }`,
			"spec.startup_timeout: must be greater than 0s and less than or equal to 86400s: give a value above 0s and at most 86400s",
		},
		{
			"a time out of another range", &poolv1.DrainRequest{}, `pool_id: "a" deadline { seconds: -5 }`,
			"deadline: must be greater than or equal to 0s and less than or equal to 86400s: give a value from 0s to 86400s",
		},
		{
			"a text too long", &poolv1.WatchRequest{}, `resume_token: "` + strings.Repeat("x", 257) + `"`,
			"resume_token: must be at most 256 characters: give at most 256 characters",
		},
		{
			"a text too short", &provisionerv1.PlanRequest{}, `spec { engine { kind: "a" external { path: "/x" } } model {} }`,
			"spec.model.uri: must be at least 1 characters: give 1 to 2048 characters",
		},
		{
			"a text in a list", &provisionerv1.PlanRequest{},
			`spec { engine { kind: "a" external { path: "/x" } } model { uri: "u" } launch { flags: "" } }`,
			"spec.launch.flags[0]: must be at least 1 characters: give 1 to 4096 characters",
		},
		{
			"another beginning", &provisionerv1.PlanRequest{}, `spec { engine { kind: "a" external { path: "xy" } } model { uri: "u" } }`,
			"spec.engine.external.path: does not have prefix `/`: give a text that begins with \"/\"",
		},
		{
			"a value of no meaning", &provisionerv1.PlanRequest{},
			`spec { engine { kind: "a" source_build { git { url: "u" ref: "r" } } } model { uri: "u" } }`,
			"spec.engine.source_build.accelerator: is not one of its values: give one of ACCELERATOR_CPU",
		},
		{
			"an unknown value", &poolv1.DrainRequest{}, `pool_id: "a" on_deadline: 9`,
			"on_deadline: is not one of its values: " +
				"give one of DRAIN_DEADLINE_ACTION_UNSPECIFIED, DRAIN_DEADLINE_ACTION_FORCE, DRAIN_DEADLINE_ACTION_GIVE_UP",
		},
		{
			"an item twice", &poolv1.WatchRequest{}, `pool_ids: "a" pool_ids: "a"`,
			"pool_ids: has an item twice: give each of them once",
		},
		{
			"too many items", &poolv1.ListPoolsRequest{}, strings.Repeat("states: 1 ", 17),
			"states: must contain no more than 16 item(s): give at most 16 of them",
		},
		{
			"two at once", &poolv1.LogsRequest{}, `pool_id: "/" replica: 99`,
			"pool_id: does not have the form that it must have; replica: must be less than 64: give for pool_id: 1 to 63 letters, digits, " +
				"dots, dashes and underscores, beginning with a letter or digit; for replica: a value below 64",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := strings.ReplaceAll(test.text, "ID", "sha256:"+strings.Repeat("0", 64))
			if err := prototext.Unmarshal([]byte(text), test.message); err != nil {
				t.Fatal(err)
			}
			err := (&checks{validator: validator}).check(test.message)
			if got := err.Error(); got != test.want || reason.Of(err) != reason.InvalidParams {
				t.Errorf("check = %s\n want %s", got, test.want)
			}
		})
	}
}
