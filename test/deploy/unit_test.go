// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// unit is a unit file: the values of each directive, in their order.
type unit map[string][]string

// folder is where the unit files are.
func folder(t *testing.T) string {
	t.Helper()
	return filepath.Join(testkit.RepoRoot(t), "deploy", "systemd")
}

func readUnit(t *testing.T, name string) unit {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder(t), name))
	if err != nil {
		t.Fatal(err)
	}
	u, err := parseUnit(string(text))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return u
}

// parseUnit reads directives as SECTION.NAME. It knows as much of the format as our files use: no continued lines.
func parseUnit(text string) (unit, error) {
	u, section, number := unit{}, "", 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimSpace(line)
		name, value, assigned := strings.Cut(line, "=")
		switch {
		case line == "", strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			section = strings.Trim(line, "[]")
		case strings.HasSuffix(line, `\`), !assigned, section == "":
			return nil, fmt.Errorf("line %d: %q is no section, comment or directive", number, line)
		default:
			u[section+"."+name] = append(u[section+"."+name], value)
		}
	}
	return u, nil
}

func TestParseUnit(t *testing.T) {
	t.Parallel()
	u, err := parseUnit("# c\n\n[Unit]\nDescription=a = b\n[Service]\nEnvironment=A=1\nEnvironment=B=2\nCapabilityBoundingSet=\n")
	got := fmt.Sprintf("%q %v", map[string][]string(u), err)
	want := `map["Service.CapabilityBoundingSet":[""] "Service.Environment":["A=1" "B=2"] "Unit.Description":["a = b"]] <nil>`
	if got != want {
		t.Errorf("parsed %s, want %s", got, want)
	}
	for _, bad := range []string{"A=1\n", "[Unit]\nnonsense\n", "[Unit]\nA=1 \\\n2\n"} {
		if u, err := parseUnit(bad); err == nil {
			t.Errorf("%q was read as %v", bad, u)
		}
	}
}
