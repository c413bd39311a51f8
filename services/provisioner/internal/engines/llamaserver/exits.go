// SPDX-License-Identifier: Apache-2.0

package llamaserver

import enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"

// exitPatterns say what a server's last words mean, read in llama.cpp v0.5.0 and in CUDA 12.9's runtime, which has the texts
// behind "CUDA error:". A cause stands before what it brings about: without memory a model fails to load as well, and a
// device that lacks memory, or that the build is not for, gives a CUDA error too.
func exitPatterns() []*enginev1.ExitPattern {
	var patterns []*enginev1.ExitPattern
	for _, cause := range []struct {
		class enginev1.ExitClass
		texts []string
	}{
		{enginev1.ExitClass_EXIT_CLASS_OOM_DEVICE, []string{
			"cudaMalloc failed: out of memory", // CUDA, ROCm and MUSA
			"CUDA error: out of memory", "ROCm error: out of memory", "MUSA error: out of memory",
			"CUBLAS_STATUS_ALLOC_FAILED", "ggml_vulkan: Device memory allocation of size",
		}},
		{enginev1.ExitClass_EXIT_CLASS_OOM_HOST, []string{
			"ggml_aligned_malloc: insufficient memory", "mmap failed: Cannot allocate memory", "std::bad_alloc",
		}},
		{enginev1.ExitClass_EXIT_CLASS_CONFIG, []string{
			"no kernel image is available for execution on the device",
		}},
		{enginev1.ExitClass_EXIT_CLASS_GPU_FAULT, []string{
			"CUDA error", "ROCm error", "MUSA error", "ggml_vulkan: device lost",
			"device-side assert triggered", "unspecified launch failure", "an illegal memory access was encountered",
			"uncorrectable ECC error", "uncorrectable NVLink error",
		}},
		{enginev1.ExitClass_EXIT_CLASS_CONFIG, []string{
			"invalid argument:", "error while handling argument", "expected value for argument",
			"error while handling environment variable", "couldn't bind HTTP server socket", "error loading model",
			"failed to load model", "exiting due to model loading error",
		}},
	} {
		for _, text := range cause.texts {
			patterns = append(patterns, &enginev1.ExitPattern{Contains: text, Class: cause.class})
		}
	}
	return patterns
}
