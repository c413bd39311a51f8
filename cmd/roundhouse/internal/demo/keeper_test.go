// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"strconv"
	"strings"
	"testing"
)

func TestKeepRefusesOthers(t *testing.T) {
	t.Parallel()
	child := sleeper(t.Context(), programs(t))
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait() // killed
	})
	tests := []struct{ name, in, says string }{
		{"no process", "x", `read pid "x"`},
		{"a process of another parent", strconv.Itoa(child.Process.Pid), "is no child of process"},
		{"none at all", "4194304", "open process 4194304"},
		{"an empty line", "\n", `read pid ""`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if err := Keep(strings.NewReader(test.in)); err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("Keep(%q) = %v, want %q", test.in, err, test.says)
			}
		})
	}
	if err := Keep(strings.NewReader("")); err != nil {
		t.Errorf("Keep of nothing = %v", err)
	}
}
