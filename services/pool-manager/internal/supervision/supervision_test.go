// SPDX-License-Identifier: Apache-2.0

package supervision

import (
	"testing"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	patterns := []*enginev1.ExitPattern{
		{Contains: "", Class: enginev1.ExitClass_EXIT_CLASS_STOPPED},
		{Contains: "failed to load model", Class: enginev1.ExitClass_EXIT_CLASS_CONFIG},
		{Contains: "failed", Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL},
	}
	badModel := []string{"loading", "error: failed to load model 'x'", "bye"}
	tests := []struct {
		name   string
		ending Ending
		want   enginev1.ExitClass
	}{
		{"asked, clean", Ending{Asked: true}, enginev1.ExitClass_EXIT_CLASS_STOPPED},
		{"asked, killed", Ending{Asked: true, Signal: "SIGKILL", LastLines: badModel}, enginev1.ExitClass_EXIT_CLASS_STOPPED},
		{"code 0 that nobody asked for", Ending{}, enginev1.ExitClass_EXIT_CLASS_UNASKED},
		{"code 0 in spite of its last words", Ending{LastLines: badModel}, enginev1.ExitClass_EXIT_CLASS_UNASKED},
		{"code 1", Ending{Code: 1, LastLines: []string{"bye"}}, enginev1.ExitClass_EXIT_CLASS_ERROR},
		{"code 1 without output", Ending{Code: 1}, enginev1.ExitClass_EXIT_CLASS_ERROR},
		{"signal", Ending{Signal: "SIGILL"}, enginev1.ExitClass_EXIT_CLASS_SIGNAL},
		{"the first pattern that matches", Ending{Code: 1, LastLines: badModel}, enginev1.ExitClass_EXIT_CLASS_CONFIG},
		{"a pattern explains a signal", Ending{Signal: "SIGABRT", LastLines: badModel}, enginev1.ExitClass_EXIT_CLASS_CONFIG},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := Classify(tt.ending, patterns); got != tt.want {
				t.Errorf("Classify(%+v) = %s, want %s", tt.ending, got, tt.want)
			}
		})
	}
}
