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
		{Contains: "loading", Class: enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED},
		{Contains: "failed", Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL},
		{Contains: "CUDA error", Class: enginev1.ExitClass_EXIT_CLASS_GPU_FAULT},
		{Contains: "out of memory", Class: enginev1.ExitClass_EXIT_CLASS_OOM_DEVICE},
	}
	badModel := []string{"loading", "error: failed to load model 'x'", "bye"}
	fault := []string{"CUDA error: an illegal memory access was encountered"}
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
		{"a pattern without a class", Ending{Code: 1, LastLines: []string{"loading"}}, enginev1.ExitClass_EXIT_CLASS_ERROR},
		{"asked, had to be killed", Ending{Asked: true, Killed: true, Signal: "SIGKILL", LastLines: fault}, enginev1.ExitClass_EXIT_CLASS_KILLED},
		{"killed is nothing without being asked", Ending{Killed: true, Signal: "SIGKILL"}, enginev1.ExitClass_EXIT_CLASS_SIGNAL},
		{"stalled", Ending{Asked: true, Killed: true, Stalled: true, Signal: "SIGKILL", LastLines: fault}, enginev1.ExitClass_EXIT_CLASS_STALLED},
		{"hung", Ending{Asked: true, Killed: true, Hung: true, LastLines: fault}, enginev1.ExitClass_EXIT_CLASS_HUNG},
		{"hung after it had stalled", Ending{Asked: true, Stalled: true, Hung: true}, enginev1.ExitClass_EXIT_CLASS_HUNG},
		{"killed by the kernel", Ending{OOMKilled: true, Signal: "SIGKILL", LastLines: badModel}, enginev1.ExitClass_EXIT_CLASS_OOM_HOST},
		{"killed by the kernel, adopted", Ending{OOMKilled: true, Adopted: true}, enginev1.ExitClass_EXIT_CLASS_OOM_HOST},
		{"asked while the kernel killed it", Ending{OOMKilled: true, Asked: true, Signal: "SIGKILL"}, enginev1.ExitClass_EXIT_CLASS_STOPPED},
		{"killed by nobody known", Ending{Signal: "SIGKILL"}, enginev1.ExitClass_EXIT_CLASS_SIGNAL},
		{"device memory", Ending{Signal: "SIGABRT", LastLines: []string{"ggml: out of memory"}}, enginev1.ExitClass_EXIT_CLASS_OOM_DEVICE},
		{"device fault", Ending{Signal: "SIGABRT", LastLines: fault}, enginev1.ExitClass_EXIT_CLASS_GPU_FAULT},
		{
			"order of the patterns, not of the lines",
			Ending{Code: 1, LastLines: []string{"out of memory", "CUDA error"}}, enginev1.ExitClass_EXIT_CLASS_GPU_FAULT,
		},
		{"adopted", Ending{Adopted: true}, enginev1.ExitClass_EXIT_CLASS_UNKNOWN},
		{"adopted, code is not known", Ending{Adopted: true, Code: -1}, enginev1.ExitClass_EXIT_CLASS_UNKNOWN},
		{"adopted, with last words", Ending{Adopted: true, Code: -1, LastLines: fault}, enginev1.ExitClass_EXIT_CLASS_GPU_FAULT},
		{"adopted and asked", Ending{Adopted: true, Asked: true, Code: -1}, enginev1.ExitClass_EXIT_CLASS_STOPPED},
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

func TestOnlyConfigIsPermanent(t *testing.T) {
	t.Parallel()
	for number, name := range enginev1.ExitClass_name {
		class := enginev1.ExitClass(number)
		if got, want := Permanent(class), class == enginev1.ExitClass_EXIT_CLASS_CONFIG; got != want {
			t.Errorf("Permanent(%s) = %v, want %v", name, got, want)
		}
	}
}
