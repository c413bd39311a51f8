// SPDX-License-Identifier: Apache-2.0

// Package llamaserver is what the kinds that run llama.cpp's HTTP server have in common: the arguments that every launch
// has, the flags that a spec must not set, and how the server behaves towards its runner. It is pure data and functions.
package llamaserver

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
)

const (
	// startupTimeout is for weights of some hundred gigabytes from a slow disk.
	startupTimeout = 10 * time.Minute
	// An idle server ends within 0.2 s of its first SIGTERM; one with a large model gives back memory for seconds. With a
	// request in flight it hangs, and the second SIGTERM ends it within 0.2 s.
	firstTermWait  = 5 * time.Second
	secondTermWait = 2 * time.Second
	// batchTokens is how much of a prompt is computed between two steps of the counter that shows progress. The server's own
	// 2048 took 18 s on a slow processor in which nothing moved; a prompt took as long either way.
	batchTokens = 512
)

// required returns the flags of every launch: a server that lacks one is too old.
func required() []string {
	return []string{"--host", "--port", "--model", "--alias", "--ctx-size", "--parallel", "--metrics"}
}

// Env is the whole environment of a server or a probe. Nearly every flag has a variable of its own, so nothing is
// inherited. The user's configuration file, which would set flags as well, is looked for where there is none; that of the
// machine, /etc/llama.cpp/config.ini, is still read by servers that know it, and arguments overrule it.
func Env() map[string]string {
	return map[string]string{"GGML_NO_BACKTRACE": "1", "XDG_CONFIG_HOME": "/nonexistent"}
}

// Launch says how p serves a model. Its arguments are the program's prefix, those of every launch, then always (each used
// only if the server knows its first token), a batch small enough to see prompts progress unless the spec sets one, then
// the spec's own flags. A flag that is owned or unknown is INVALID_PARAMS;
// a server without a flag that every launch needs is ENGINE_NOT_FOUND.
func Launch(p engines.Program, probe engines.Probe, serving engines.Serving, always ...[]string) (engines.Launch, error) {
	for _, name := range required() {
		if !knows(probe, name) {
			return engines.Launch{}, reason.New(reason.EngineNotFound, fmt.Sprintf("the engine has no flag %s", name),
				reason.Field("spec.engine"), reason.Meta("version", probe.Version), reason.Remedy("use a newer version of the engine"))
		}
	}
	flags, err := engines.CheckFlags(serving.Flags, Owned(), probe.Flags)
	if err != nil {
		return engines.Launch{}, err
	}
	total := uint64(serving.ContextTokens) * uint64(serving.Slots)
	args := literals(p.Prefix...)
	args = append(args, literals("--host")[0], placeholder(enginev1.Placeholder_PLACEHOLDER_HOST),
		literals("--port")[0], placeholder(enginev1.Placeholder_PLACEHOLDER_PORT))
	args = append(args, literals("--model", serving.Model.GetFiles()[0].GetPath(), "--alias", serving.Model.GetId(),
		"--ctx-size", strconv.FormatUint(total, 10), "--parallel", strconv.FormatUint(uint64(serving.Slots), 10), "--metrics")...)
	env := Env()
	maps.Copy(env, p.Env)
	if !setsBatch(flags) {
		always = append(slices.Clone(always), []string{"--batch-size", strconv.Itoa(batchTokens)})
	}
	for _, tokens := range always {
		if knows(probe, tokens[0]) {
			args = append(args, literals(tokens...)...)
		}
	}
	return engines.Launch{
		Process: &enginev1.ProcessLaunch{
			Executable:   p.Executable,
			Args:         append(args, literals(flags...)...),
			Env:          env,
			WorkingDir:   p.Dir,
			LibraryPaths: p.LibraryDirs,
			Files:        p.Files,
		},
		Contract: contract(serving.Model.GetId()),
	}, nil
}

// setsBatch tells whether flags say how large a batch is: the server makes the physical one no larger than the logical.
func setsBatch(flags []string) bool {
	return slices.ContainsFunc(flags, func(flag string) bool {
		return slices.Contains([]string{"-b", "--batch-size", "-ub", "--ubatch-size"}, flag)
	})
}

func knows(probe engines.Probe, name string) bool {
	return slices.ContainsFunc(probe.Flags, func(f engines.Flag) bool { return slices.Contains(f.Names, name) })
}

func literals(texts ...string) []*enginev1.Argument {
	args := make([]*enginev1.Argument, 0, len(texts))
	for _, text := range texts {
		args = append(args, &enginev1.Argument{Value: &enginev1.Argument_Literal{Literal: text}})
	}
	return args
}

func placeholder(p enginev1.Placeholder) *enginev1.Argument {
	return &enginev1.Argument{Value: &enginev1.Argument_Placeholder{Placeholder: p}}
}

// contract is how a server that serves modelID behaves.
func contract(modelID string) *enginev1.RunContract {
	return &enginev1.RunContract{
		Ready:        &enginev1.HttpProbe{Path: "/health", Status: 200},
		ReadyLogHint: "listening on",
		Identity: &enginev1.IdentityCheck{
			Field:    &enginev1.JsonField{Path: "/v1/models", Field: "data[0].id"},
			Expected: modelID,
		},
		Slots: &enginev1.JsonField{Path: "/props", Field: "total_slots"},
		Activity: &enginev1.ActivitySource{
			Path:   "/metrics",
			Gauges: []string{"llamacpp:requests_processing", "llamacpp:requests_deferred"},
			// n_decode_total grows by one with each token that is generated and with each batch of a prompt; the other two only when
			// a prompt or an answer is complete. All are printed with six digits: from a million on they grow in steps of ten.
			Counters: []string{"llamacpp:n_decode_total", "llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"},
		},
		Stop: []*enginev1.StopStep{
			{Signal: "SIGTERM", Wait: durationpb.New(firstTermWait)},
			{Signal: "SIGTERM", Wait: durationpb.New(secondTermWait)},
		},
		ExitPatterns:   exitPatterns(),
		StartupTimeout: durationpb.New(startupTimeout),
		Completion:     completion(),
	}
}

// completion needs no chat template. Without the cache an answer does not depend on what was asked before.
func completion() *enginev1.Completion {
	return &enginev1.Completion{
		Path:           "/v1/completions",
		Fixed:          `{"temperature":0,"cache_prompt":false}`,
		PromptField:    "prompt",
		MaxTokensField: "max_tokens",
		TextField:      "choices[0].text",
		TokensField:    "usage.completion_tokens",
	}
}
