// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// documentedCodes reads the contract: the first name of a gRPC code in the comment above each value.
func documentedCodes(t *testing.T) map[string]codes.Code {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(testkit.RepoRoot(t), "proto/roundhouse/engine/v1/reason.proto"))
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]codes.Code{}
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		byName[canonical(code)] = code
	}
	value := regexp.MustCompile(`^\s*(REASON_[A-Z_]+) = \d+;`)
	word := regexp.MustCompile(`[A-Z][A-Z_]{4,}`)
	documented := map[string]codes.Code{}
	comment := ""
	for line := range strings.Lines(string(source)) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "//"); ok {
			comment += text
			continue
		}
		if m := value.FindStringSubmatch(line); m != nil {
			for _, w := range word.FindAllString(comment, -1) {
				if code, ok := byName[w]; ok {
					documented[m[1]] = code
					break
				}
			}
		}
		comment = ""
	}
	return documented
}

// canonical writes a code as the gRPC specification does.
func canonical(code codes.Code) string {
	if code == codes.Canceled {
		return "CANCELLED"
	}
	return strings.ToUpper(regexp.MustCompile(`([a-z])([A-Z])`).ReplaceAllString(code.String(), "${1}_$2"))
}

func TestCodeIsTheDocumentedOne(t *testing.T) {
	t.Parallel()
	documented := documentedCodes(t)
	uncalled := map[reason.Reason]bool{reason.Unspecified: true, reason.EngineExited: true,
		reason.BreakerOpen: true, reason.RecordUnreadable: true}
	for number, name := range enginev1.Reason_name {
		r := reason.Reason(number)
		want, ok := documented[name]
		if uncalled[r] {
			if ok {
				t.Errorf("%s: reason.proto documents %v for a reason that no call fails with", name, want)
			}
			want = codes.Unknown
		} else if !ok {
			t.Errorf("%s: reason.proto documents no code", name)
			continue
		}
		if got := reason.Code(r); got != want {
			t.Errorf("Code(%s) = %v, want %v as in reason.proto", name, got, want)
		}
	}
}

func TestRetriableReasonsAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile(filepath.Join(testkit.RepoRoot(t), "proto/roundhouse/engine/v1/reason.proto"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`((?:\s*//.*\n)+)\s*(REASON_[A-Z_]+) = `)
	for _, m := range block.FindAllStringSubmatch(string(source), -1) {
		want := strings.Contains(m[1], "May be retried")
		got := reason.New(reason.Reason(enginev1.Reason_value[m[2]]), "x").RetryAfter > 0
		if got != want {
			t.Errorf("%s has a retry delay: %v, reason.proto says it may be retried: %v", m[2], got, want)
		}
	}
}
