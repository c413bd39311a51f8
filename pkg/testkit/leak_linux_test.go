// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"os"
	"strings"
	"testing"
	"time"
)

//nolint:paralleltest // it looks at the whole process
func TestLeakCheck(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	var file *os.File
	tests := []struct {
		name string
		body func()
		want string
	}{
		{"nothing left", func() { go func() {}() }, ""},
		{"a goroutine", func() { go func() { <-release }() }, "TestLeakCheck"},
		{"a file", func() { file, _ = os.Open("/dev/null") }, "open file"},
	}
	for _, tt := range tests {
		r := new(recorder)
		failures := r.run(func() {
			leakCheck(r, 100*time.Millisecond)
			tt.body()
		})
		if tt.want == "" && failures != nil || tt.want != "" && (len(failures) != 1 || !strings.Contains(failures[0], tt.want)) {
			t.Errorf("%s: failures %q", tt.name, failures)
		}
	}
	_ = file.Close()
}
