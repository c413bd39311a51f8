// SPDX-License-Identifier: Apache-2.0

package source

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

func TestParseProgress(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, line string
		want       Progress
		ok         bool
	}{
		{"receiving", "Receiving objects:  42% (420/1000), 1.20 MiB | 3.00 MiB/s", Progress{Receiving, 42, 420, 1000}, true},
		{"unpacking", "Unpacking objects: 100% (3/3), done.", Progress{Receiving, 100, 3, 3}, true},
		{"deltas", "Resolving deltas:   0% (0/7)", Progress{Resolving, 0, 0, 7}, true},
		{"files", "Updating files:  50% (2/4)", Progress{Writing, 50, 2, 4}, true},
		{"of the server", "remote: Counting objects:  10% (1/10)", Progress{PhaseUnspecified, 10, 1, 10}, true},
		{"no percent", "remote: Enumerating objects: 3, done.", Progress{}, false},
		{"an error", "fatal: repository 'x' not found", Progress{}, false},
		{"nonsense", "Receiving objects: 900% (1/1)", Progress{}, false},
		{"negative", "Receiving objects: -9% (-1/1)", Progress{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, ok := parseProgress(tt.line)
			if ok != tt.ok || got != tt.want {
				t.Errorf("%q is %+v, %t; want %+v, %t", tt.line, got, ok, tt.want, tt.ok)
			}
		})
	}
}

func TestMeterNeverGoesBack(t *testing.T) {
	t.Parallel()
	var lines []string
	var progress []Progress
	m := &meter{obs: Observer{
		Progress: func(p Progress) { progress = append(progress, p) },
		Line:     func(_ runner.Stream, line string) { lines = append(lines, line) },
	}}
	for _, line := range []string{
		"From x", "Receiving objects:  50% (1/2)", "Receiving objects:  50% (1/2)", "Receiving objects:  40% (2/5)",
		"Resolving deltas: 100% (1/1)", "Receiving objects: 100% (9/9)", "warning: y",
	} {
		m.line(runner.Stderr, line)
	}
	want := []Progress{{Receiving, 50, 1, 2}, {Resolving, 100, 1, 1}}
	if diff := cmp.Diff(want, progress); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"From x", "warning: y"}, lines); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

func FuzzParseProgress(f *testing.F) {
	f.Add("Receiving objects:  42% (420/1000), 1.20 MiB")
	f.Add("remote: Counting objects: 1% (1/1)")
	f.Fuzz(func(t *testing.T, line string) {
		p, ok := parseProgress(line)
		if p.Percent < 0 || p.Percent > 100 || p.Done < 0 || p.Total < 0 || !ok && p != (Progress{}) {
			t.Errorf("%q is %+v, %t", line, p, ok)
		}
	})
}
