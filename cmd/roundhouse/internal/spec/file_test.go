// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

func TestDecode(t *testing.T) {
	t.Parallel()
	const want = `spec { engine { kind: "a" external { path: "/x" } } model { uri: "file:/m" id: "1" }
		launch { context_tokens: 16 flags: "--x" flags: "true" } }`
	tests := []struct {
		name string
		text string
	}{
		{"JSON with tabs", "{\n\t\"spec\": {\"engine\": {\"kind\": \"a\", \"external\": {\"path\": \"/x\"}}, \"model\": {\"uri\": \"file:/m\", \"id\": \"1\"}, \"launch\": {\"contextTokens\": 16, \"flags\": [\"--x\", \"true\"]}}}"},
		{"YAML", "spec:\n  engine:\n    kind: a\n    external: {path: /x}\n  model: {uri: \"file:/m\", id: \"1\"}\n  launch:\n    contextTokens: 0x10\n    flags: [--x, 'true']\n"},
		{"names as in the proto", "spec:\n  engine: {kind: a, external: {path: /x}}\n  model: {uri: 'file:/m', id: '1'}\n  launch: {context_tokens: 16, flags: [--x, 'true']}\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got := &provisionerv1.PrepareRequest{}
			if err := decode("x.yaml", []byte(test.text), got); err != nil {
				t.Fatalf("decode(%q) = %v", test.text, err)
			}
			wanted := textProto(t, want, &provisionerv1.PrepareRequest{})
			if diff := cmp.Diff(wanted, got, protocmp.Transform()); diff != "" {
				t.Errorf("decode(%q) (-want +got):\n%s", test.text, diff)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		text string
		says []string
	}{
		{"unknown key", "spec:\n  engine:\n    knd: a\n", []string{"spec.engine.knd: unknown key", "EngineSpec has: kind, sourceBuild"}},
		{"unknown key in JSON", `{"spek": {}}`, []string{"spek: unknown key", "PrepareRequest has: spec, consumer"}},
		{"key given twice", "spec:\n  engine: {}\n  engine: {}\n", []string{`line 3: key "engine" is given twice`}},
		{"two sources", "spec:\n  engine: {kind: a, external: {path: /x}, package: {uri: u}}\n", []string{"does not fit the request"}},
		{"wrong type", "spec:\n  launch: {slots: many}\n", []string{"does not fit the request", "many"}},
		{"a list", "- a\n", []string{"does not fit the request"}},
		{"empty", "", []string{"is empty"}},
		{"two documents", "spec: {}\n---\nspec: {}\n", []string{"more than one document"}},
		{"alias", "spec: &a {}\nconsumer: *a\n", []string{"line 2: aliases are not allowed"}},
		{"number as key", "1: a\n", []string{"line 1: a key must be text"}},
		{"neither", "{spec: [", []string{"is neither JSON nor YAML"}},
		{"deep", strings.Repeat("[", 100) + strings.Repeat("]", 100) + "#", []string{"nested too deep"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := decode("x.yaml", []byte(test.text), &provisionerv1.PrepareRequest{})
			if err == nil {
				t.Fatalf("decode(%q) succeeded, want an error", test.text)
			}
			for _, says := range test.says {
				if !strings.Contains(err.Error(), says) {
					t.Errorf("decode(%q) = %q, want it to say %q", test.text, err, says)
				}
			}
		})
	}
}

func TestDecodeNamesTheOtherCommand(t *testing.T) {
	t.Parallel()
	const (
		pool   = `{"spec": {"poolId": "p", "prepare": {"engine": {"kind": "a"}}}}`
		engine = "spec: {engine: {kind: a}}"
	)
	tests := []struct {
		name    string
		text    string
		message proto.Message
		says    string
	}{
		{"a pool to prepare", pool, &provisionerv1.PrepareRequest{}, "x.json: holds a preload request: use `roundhouse preload -f x.json`"},
		{"an engine to preload", engine, &poolv1.PreloadRequest{}, "x.json: holds a prepare request: use `roundhouse prepare -f x.json`"},
		{"neither to prepare", `{"spec": {"poolId": "p", "port": 1, "prot": 2}}`, &provisionerv1.PrepareRequest{}, "spec.poolId: unknown key"},
		{"neither to preload", `{"spec": {"engine": {"knd": "a"}}}`, &poolv1.PreloadRequest{}, "spec.engine: unknown key"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := decode("x.json", []byte(test.text), test.message)
			if err == nil || !strings.HasPrefix(err.Error(), test.says) {
				t.Errorf("decode(%q) = %v, want %q", test.text, err, test.says)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("spec:\n  engine: {kind: a}\n")
	f.Add(`{"spec": {"launch": {"flags": ["a"]}}}`)
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		got := &provisionerv1.PrepareRequest{}
		if err := decode("x", []byte(text), got); err != nil && err.Error() == "" {
			t.Errorf("decode(%q) failed without saying why", text)
		}
	})
}
