// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"testing"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"        // for its patterns
	_ "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1" // for its patterns
)

func TestForm(t *testing.T) {
	t.Parallel()
	tests := []struct{ pattern, want string }{
		{"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", "1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit"},
		{"^([A-Za-z0-9][A-Za-z0-9._/:-]{0,127})?$", "nothing, or 1 to 128 letters, digits, dots, dashes, underscores, slashes and colons, beginning with a letter or digit"},
		{"^[a-z0-9][a-z0-9-]*$", "1 or more small letters, digits and dashes, beginning with a small letter or digit"},
		{"^sha256:[0-9a-f]{64}$", `"sha256:" and 64 hexadecimal digits (0-9, a-f)`},
		{"^([0-9a-f]{64})?$", "nothing, or 64 hexadecimal digits (0-9, a-f)"},
		{"^pypi:", `a text that begins with "pypi:"`},
		{"^[^/]+$", ""},
		{"^[a-z%]+$", ""},
		{"^[A-Z][0-9]{2,}$", "1 capital letters and 2 or more digits"},
		{"^a|b$", ""},
		{"a", ""},
		{"^([a-z]+,)*$", ""},
		{"^$", ""},
		{"(", ""},
	}
	for _, test := range tests {
		t.Run(test.pattern, func(t *testing.T) {
			t.Parallel()
			got, ok := form(test.pattern)
			if ok != (test.want != "") || ok && got != test.want {
				t.Errorf("form(%q) = %q, %v, want %q", test.pattern, got, ok, test.want)
			}
		})
	}
}

// Whoever breaks a pattern of the contract is told in words what it accepts.
func TestEveryPatternHasWords(t *testing.T) {
	t.Parallel()
	seen := 0
	for _, name := range []protoreflect.FullName{"roundhouse.engine.v1", "roundhouse.pool.v1", "roundhouse.provisioner.v1"} {
		protoregistry.GlobalFiles.RangeFilesByPackage(name, func(file protoreflect.FileDescriptor) bool {
			seen += checkPatterns(t, file.Messages())
			return true
		})
	}
	if seen < 10 {
		t.Errorf("%d patterns were found, want those of the whole contract", seen)
	}
}

func checkPatterns(t *testing.T, messages protoreflect.MessageDescriptors) (seen int) {
	t.Helper()
	for i := range messages.Len() {
		for j := range messages.Get(i).Fields().Len() {
			field := messages.Get(i).Fields().Get(j)
			rules, err := protovalidate.ResolveFieldRules(field)
			if err != nil {
				t.Fatal(err)
			}
			pattern := rules.GetString().GetPattern() + rules.GetRepeated().GetItems().GetString().GetPattern()
			if pattern == "" {
				continue
			}
			seen++
			if _, ok := form(pattern); !ok {
				t.Errorf("%s: there are no words for %q", field.FullName(), pattern)
			}
		}
	}
	return seen
}
