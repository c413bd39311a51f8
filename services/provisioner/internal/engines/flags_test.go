// SPDX-License-Identifier: Apache-2.0

package engines_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
)

const help = `----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads
                                        - none: not a flag
--poll <0...100>                        use polling level
-fa,   --flash-attn [on|off|auto]       set Flash Attention use
--swa-full                              use full-size SWA cache
-e,    --escape, --no-escape            whether to process escapes
--control-vector-layer-range START END
                                        layer range
--override-kv KEY=TYPE:VALUE,...        advanced option
-p,    --port PORT                      port
--seed SEED                             RNG seed
`

func flags() []engines.Flag { return engines.ParseHelp(help) }

func owned() []engines.OwnedFlag {
	return []engines.OwnedFlag{{Names: []string{"--port", "--reuse-port"}, Remedy: "leave it out"}}
}

func TestParseHelp(t *testing.T) {
	t.Parallel()
	want := []engines.Flag{
		{Names: []string{"-h", "--help", "--usage"}},
		{Names: []string{"-t", "--threads"}, Values: 1},
		{Names: []string{"--poll"}, Values: 1},
		{Names: []string{"-fa", "--flash-attn"}, Values: 1},
		{Names: []string{"--swa-full"}},
		{Names: []string{"-e", "--escape", "--no-escape"}},
		{Names: []string{"--control-vector-layer-range"}, Values: 2},
		{Names: []string{"--override-kv"}, Values: 1},
		{Names: []string{"-p", "--port"}, Values: 1},
		{Names: []string{"--seed"}, Values: 1},
	}
	if diff := cmp.Diff(want, flags()); diff != "" {
		t.Errorf("ParseHelp (-want +got):\n%s", diff)
	}
}

func TestCheckFlags(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		tokens []string
		want   []string
	}{
		{name: "none"},
		{name: "a value", tokens: []string{"--threads", "2"}, want: []string{"--threads", "2"}},
		{name: "a value after =", tokens: []string{"--threads=2"}, want: []string{"--threads", "2"}},
		{name: "a short name", tokens: []string{"-t", "2", "-fa", "on"}, want: []string{"-t", "2", "-fa", "on"}},
		{name: "a switch", tokens: []string{"--swa-full", "-t", "2"}, want: []string{"--swa-full", "-t", "2"}},
		{name: "underscores", tokens: []string{"--flash_attn", "on"}, want: []string{"--flash-attn", "on"}},
		{name: "a negative value", tokens: []string{"--seed", "-1"}, want: []string{"--seed", "-1"}},
		{name: "a value with =", tokens: []string{"--override-kv", "a=int:1"}, want: []string{"--override-kv", "a=int:1"}},
		{name: "two values", tokens: []string{"--control-vector-layer-range", "1", "2"}, want: []string{"--control-vector-layer-range", "1", "2"}},
		{name: "an empty value", tokens: []string{"--seed="}, want: []string{"--seed", ""}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := engines.CheckFlags(tt.tokens, owned(), flags())
			if err != nil {
				t.Fatalf("CheckFlags(%q): %v", tt.tokens, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("CheckFlags(%q) (-want +got):\n%s", tt.tokens, diff)
			}
		})
	}
}

func TestCheckFlagsRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		tokens []string
		field  string
		text   string
	}{
		{name: "an owned flag", tokens: []string{"--port", "1"}, field: "spec.launch.flags[0]", text: "--port is set by Roundhouse: leave it out"},
		{name: "an owned flag after =", tokens: []string{"--seed", "1", "--port=1"}, field: "spec.launch.flags[2]", text: "--port is set"},
		{name: "an owned flag with underscores", tokens: []string{"--reuse_port"}, field: "spec.launch.flags[0]", text: "--reuse-port is set"},
		{name: "an owned flag by another of its names", tokens: []string{"-p", "1"}, field: "spec.launch.flags[0]", text: "-p is set"},
		{name: "an owned flag in the place of a value", tokens: []string{"--seed", "--port"}, field: "spec.launch.flags[1]", text: "--port is set"},
		{name: "an unknown flag", tokens: []string{"--thread", "2"}, field: "spec.launch.flags[0]", text: "did you mean --threads?"},
		{name: "an unknown flag far from all", tokens: []string{"--xyzzyplugh"}, field: "spec.launch.flags[0]", text: "use a flag that the engine lists"},
		{name: "a value without a flag", tokens: []string{"--swa-full", "2"}, field: "spec.launch.flags[1]", text: `"2" belongs to no flag`},
		{name: "a missing value", tokens: []string{"--threads"}, field: "spec.launch.flags[0]", text: "wants 1 values and has 0"},
		{name: "a missing second value", tokens: []string{"--control-vector-layer-range", "1"}, field: "spec.launch.flags[0]", text: "wants 2 values and has 1"},
		{name: "a switch with a value", tokens: []string{"--swa-full=1"}, field: "spec.launch.flags[0]", text: "takes 0 values"},
		{name: "a bare dash", tokens: []string{"-"}, field: "spec.launch.flags[0]", text: "no flag"},
		{name: "two bare dashes", tokens: []string{"--"}, field: "spec.launch.flags[0]", text: "no flag"},
		{name: "an empty token", tokens: []string{""}, field: "spec.launch.flags[0]", text: "belongs to no flag"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := engines.CheckFlags(tt.tokens, owned(), flags())
			found, ok := reason.As(err)
			if !ok || found.Reason != reason.InvalidParams {
				t.Fatalf("CheckFlags(%q) = %q, %v, want INVALID_PARAMS", tt.tokens, got, err)
			}
			if len(found.Fields) != 1 || found.Fields[0].Name != tt.field || found.Remedy == "" || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("CheckFlags(%q): %v (remedy %q), want field %s and %q", tt.tokens, err, found.Remedy, tt.field, tt.text)
			}
		})
	}
}

func TestRefuseOwnedNeedsNoEngine(t *testing.T) {
	t.Parallel()
	if err := engines.RefuseOwned([]string{"--whatever", "--port=1"}, owned()); reason.Of(err) != reason.InvalidParams {
		t.Errorf("an owned flag: %v, want INVALID_PARAMS", err)
	}
	if err := engines.RefuseOwned([]string{"--whatever", "--ports"}, owned()); err != nil {
		t.Errorf("flags that are not owned: %v", err)
	}
}

func FuzzParseHelp(f *testing.F) {
	f.Add(help)
	f.Add("-a,\n-, -\n--x,  y")
	f.Fuzz(func(t *testing.T, text string) {
		for _, flag := range engines.ParseHelp(text) {
			if len(flag.Names) == 0 || flag.Values < 0 {
				t.Fatalf("ParseHelp(%q) has %v", text, flag)
			}
			for _, name := range flag.Names {
				if !strings.HasPrefix(name, "-") || strings.ContainsAny(name, " ,\n") {
					t.Fatalf("ParseHelp(%q) has the name %q", text, name)
				}
			}
		}
	})
}
