// SPDX-License-Identifier: Apache-2.0

package llamaserver_test

import (
	"encoding/json"
	"strings"
	"testing"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamaserver"
)

// launch is of a server that has every flag, with the spec's own.
func launch(t *testing.T, flags ...string) engines.Launch {
	t.Helper()
	var probe engines.Probe
	for _, names := range []string{"--host", "--port", "--model", "--alias", "--ctx-size", "--parallel", "-b --batch-size", "-ub --ubatch-size"} {
		probe.Flags = append(probe.Flags, engines.Flag{Names: strings.Fields(names), Values: 1})
	}
	probe.Flags = append(probe.Flags, engines.Flag{Names: []string{"--metrics"}}, engines.Flag{Names: []string{"--jinja"}})
	got, err := llamaserver.Launch(engines.Program{}, probe, engines.Serving{
		Model: &enginev1.PreparedModel{Id: "small", Files: []*enginev1.ModelFile{{Path: "/m/small.gguf"}}}, ContextTokens: 1, Slots: 1, Flags: flags,
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// meaning is what lines mean by the contract: the first pattern that any line holds counts.
func meaning(patterns []*enginev1.ExitPattern, lines []string) enginev1.ExitClass {
	for _, pattern := range patterns {
		for _, line := range lines {
			if strings.Contains(line, pattern.GetContains()) {
				return pattern.GetClass()
			}
		}
	}
	return enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED
}

// The lines are what v0.5.0 prints, those of devices by its source; after a failed load come the last two.
func TestWhatLastWordsMean(t *testing.T) {
	t.Parallel()
	unloaded := []string{
		"0.00.160.923 E srv    load_model: failed to create_context with model '/m/x.gguf'",
		"0.00.161.349 E srv  llama_server: exiting due to model loading error",
	}
	aborted := func(message string) []string {
		return []string{
			"0.01.000.000 E CUDA error: " + message,
			"0.01.000.000 E   current device: 0, in function launch_fattn at /src/ggml/src/ggml-cuda/fattn-common.cuh:1042",
			"0.01.000.000 E   cudaGetLastError()",
			"/src/ggml/src/ggml-cuda/ggml-cuda.cu:108: CUDA error",
		}
	}
	const oomDevice, oomHost = enginev1.ExitClass_EXIT_CLASS_OOM_DEVICE, enginev1.ExitClass_EXIT_CLASS_OOM_HOST
	const config, fault = enginev1.ExitClass_EXIT_CLASS_CONFIG, enginev1.ExitClass_EXIT_CLASS_GPU_FAULT
	patterns := launch(t).Contract.GetExitPatterns()
	for _, tt := range []struct {
		name  string
		lines []string
		want  enginev1.ExitClass
	}{
		{"weights do not fit on the device", append([]string{
			"E ggml_backend_cuda_buffer_type_alloc_buffer: allocating 22018.45 MiB on device 0: cudaMalloc failed: out of memory",
			"E alloc_tensor_range: failed to allocate CUDA0 buffer of size 23088020480",
			"E llama_model_load: error loading model: unable to allocate CUDA0 buffer",
			"E llama_model_load_from_file_impl: failed to load model",
		}, unloaded...), oomDevice},
		{"device full while it serves", aborted("out of memory"), oomDevice},
		{"cuBLAS gets no memory", aborted("CUBLAS_STATUS_ALLOC_FAILED"), oomDevice},
		{"Vulkan device full", []string{
			"ggml_vulkan: Device memory allocation of size 1073741824 failed.",
			"ggml_vulkan: vk::Device::allocateMemory: ErrorOutOfDeviceMemory",
		}, oomDevice},
		{"context does not fit in memory", append([]string{
			"0.00.158.896 E ggml_aligned_malloc: insufficient memory (attempted to allocate 8797.50 MB)",
			"0.00.158.913 E alloc_tensor_range: failed to allocate CPU buffer of size 9224847360",
		}, unloaded...), oomHost},
		{"weights do not fit in memory", append([]string{
			"0.00.186.814 E llama_model_load: error loading model: mmap failed: Cannot allocate memory",
			"0.00.186.920 E llama_model_load_from_file_impl: failed to load model",
		}, unloaded...), oomHost},
		{"built for another device", aborted("no kernel image is available for execution on the device"), config},
		{"assert on the device", aborted("device-side assert triggered"), fault},
		{"wild access on the device", aborted("an illegal memory access was encountered"), fault},
		{"launch failed", aborted("unspecified launch failure"), fault},
		{"broken memory of the device", aborted("uncorrectable ECC error encountered"), fault},
		{"ROCm", []string{"E ROCm error: unspecified launch failure"}, fault},
		{"Vulkan device gone", []string{"E ggml_vulkan: device lost on NVIDIA H100 waiting for submission (nodes 1 to 90):"}, fault},
		{"no model file", append([]string{"E llama_model_load: error loading model: tensor 'x' data is not within the file bounds"}, unloaded...), config},
		{"unknown flag", []string{"error: invalid argument: --frob"}, config},
		{"port taken", []string{"E srv  start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 80"}, config},
		{"nothing known", []string{"I srv  update_slots: all slots are idle"}, enginev1.ExitClass_EXIT_CLASS_UNSPECIFIED},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := meaning(patterns, tt.lines); got != tt.want {
				t.Errorf("the last words mean %v, want %v:\n%s", got, tt.want, strings.Join(tt.lines, "\n"))
			}
		})
	}
}

func TestBatchIsSmallUnlessTheSpecSetsOne(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ flags, want string }{
		{"", "--batch-size 512"},
		{"--jinja", "--batch-size 512 --jinja"},
		{"-b 64", "-b 64"},
		{"--batch-size=64", "--batch-size 64"},
		{"--ubatch-size 1024", "--ubatch-size 1024"},
		{"-ub 1024", "-ub 1024"},
	} {
		t.Run(tt.flags, func(t *testing.T) {
			t.Parallel()
			var words []string
			for _, arg := range launch(t, strings.Fields(tt.flags)...).Process.GetArgs() {
				words = append(words, arg.GetLiteral())
			}
			_, got, _ := strings.Cut(strings.Join(words, " "), "--metrics ")
			if got != tt.want {
				t.Errorf("with %q the launch ends with %q, want %q", tt.flags, got, tt.want)
			}
		})
	}
}

func TestFixedFieldsOfACompletionAreAnObject(t *testing.T) {
	t.Parallel()
	completion := launch(t).Contract.GetCompletion()
	var fixed map[string]any
	if err := json.Unmarshal([]byte(completion.GetFixed()), &fixed); err != nil {
		t.Fatalf("fixed fields %s: %v", completion.GetFixed(), err)
	}
	if fixed["temperature"] != 0.0 {
		t.Errorf("temperature %v, want 0: an answer is to be the same each time", fixed["temperature"])
	}
	for _, field := range []string{completion.GetPromptField(), completion.GetMaxTokensField()} {
		if _, twice := fixed[field]; twice || field == "" {
			t.Errorf("field %q is among the fixed ones, or has no name", field)
		}
	}
}
