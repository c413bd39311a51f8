// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
)

const (
	// canaryPrompt is one token or two to every engine.
	canaryPrompt = "Hi"
	// defaultProofTokens and defaultProofTimeout are for proofs that name none.
	defaultProofTokens  = 16
	defaultProofTimeout = time.Minute
	// shownAnswer is the most of an answer that an error shows, in bytes.
	shownAnswer = 200
)

// Activity is what an engine has to do.
type Activity struct {
	// InFlight is the number of requests that it has, running or waiting.
	InFlight int
	// Counters is the sum of its counters of progress, if HasCounters.
	Counters    float64
	HasCounters bool
}

// Activity asks the engine what it has to do. An error means that it does not say.
func (e *Engine) Activity(ctx context.Context) (Activity, error) {
	source := e.request.Prepared.GetContract().GetActivity()
	if source == nil {
		return Activity{}, fmt.Errorf("replica %s: its engine has no count of requests", e.request.Replica)
	}
	load, err := e.launcher.config.Prober.Activity(ctx, e.endpoint, probe.Activity{
		Path: source.GetPath(), Gauges: source.GetGauges(), Counters: source.GetCounters(),
	})
	if err != nil {
		return Activity{}, err
	}
	return Activity{InFlight: load.InFlight, Counters: load.Counters, HasCounters: load.HasCounters}, nil
}

// CPU is the processor time that the engine's processes have used; 0 if it cannot be read, and more if it can: an engine that has
// used less than a tick of the kernel's clock must not look like one that cannot be judged.
func (e *Engine) CPU() time.Duration {
	vitals, err := e.process.Vitals()
	if err != nil {
		return 0
	}
	return max(vitals.CPU, time.Nanosecond)
}

// HasCanary is whether the engine's contract says how it is asked to compute.
func (e *Engine) HasCanary() bool { return e.request.Prepared.GetContract().GetCompletion() != nil }

// Canary returns nil when the engine has computed a token. ctx limits how long that may take.
func (e *Engine) Canary(ctx context.Context) error {
	_, err := e.complete(ctx, canaryPrompt, 1)
	return err
}

func (e *Engine) complete(ctx context.Context, prompt string, maxTokens int) (probe.Answer, error) {
	how := e.request.Prepared.GetContract().GetCompletion()
	if how == nil {
		return probe.Answer{}, fmt.Errorf("replica %s: its contract does not say how its engine completes a text", e.request.Replica)
	}
	return e.launcher.config.Prober.Complete(ctx, e.endpoint, probe.Completion{
		Path: how.GetPath(), Fixed: json.RawMessage(how.GetFixed()), PromptField: how.GetPromptField(), MaxTokensField: how.GetMaxTokensField(),
		TextField: how.GetTextField(), TokensField: how.GetTokensField(),
	}, prompt, maxTokens)
}

// Proof is a text that an engine has to complete.
type Proof struct {
	// Prompt; empty asks for nothing, which every engine passes.
	Prompt string
	// MaxTokens to answer with; 0 means 16.
	MaxTokens int
	// Contains is what the answer has to hold; empty means any answer that has text.
	Contains string
	// MinTokensPerSecond that the answer has to come with, the reading of the prompt included; 0 means any.
	MinTokensPerSecond float64
	// Timeout; 0 means 60 s.
	Timeout time.Duration
}

// Prove returns nil when the engine has passed the proof. If it has not, the reason is ProofFailed, with what was checked
// (answer, contains, tokens_per_second or timeout), what was wanted and what came. If ctx ends it returns the cause.
func (e *Engine) Prove(ctx context.Context, proof Proof) error {
	if proof.Prompt == "" {
		return nil
	}
	if proof.MaxTokens == 0 {
		proof.MaxTokens = defaultProofTokens
	}
	if proof.Timeout == 0 {
		proof.Timeout = defaultProofTimeout
	}
	late := errors.New("the proof took too long")
	asking, cancel := context.WithTimeoutCause(ctx, proof.Timeout, late)
	defer cancel()
	answer, err := e.complete(asking, proof.Prompt, proof.MaxTokens)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("prove replica %s: %w", e.request.Replica, context.Cause(ctx))
	case err != nil && asking.Err() != nil:
		return e.unproven("timeout", "an answer within "+proof.Timeout.String(), "none", late)
	case err != nil:
		return e.unproven("answer", "a completion", "none", err)
	}
	return e.judge(proof, answer)
}

// judge compares an answer with what it has to be.
func (e *Engine) judge(proof Proof, answer probe.Answer) error {
	if strings.TrimSpace(answer.Text) == "" {
		return e.unproven("answer", "an answer that has text", fmt.Sprintf("%q", answer.Text), nil)
	}
	if !strings.Contains(answer.Text, proof.Contains) {
		return e.unproven("contains", fmt.Sprintf("an answer that holds %q", proof.Contains), fmt.Sprintf("%q", shorten(answer.Text)), nil)
	}
	if proof.MinTokensPerSecond <= 0 {
		return nil
	}
	if rate := float64(answer.Tokens) / max(answer.Took, time.Nanosecond).Seconds(); rate < proof.MinTokensPerSecond {
		return e.unproven("tokens_per_second", fmt.Sprintf("at least %.4g", proof.MinTokensPerSecond),
			fmt.Sprintf("%.4g (%d tokens in %s)", rate, answer.Tokens, answer.Took.Round(time.Millisecond)), nil)
	}
	return nil
}

func (e *Engine) unproven(check, want, got string, cause error) error {
	return reason.New(reason.ProofFailed, fmt.Sprintf("replica %s did not pass its proof: %s: want %s, got %s", e.request.Replica, check, want, got),
		reason.Meta("check", check), reason.Meta("want", want), reason.Meta("got", got), reason.Cause(cause),
		reason.Remedy("ask the engine the same by hand; change the model or its flags, or what the proof asks for"))
}

// shorten cuts a text to what an error shows.
func shorten(text string) string {
	if len(text) <= shownAnswer {
		return text
	}
	return strings.ToValidUTF8(text[:shownAnswer], "") + "..."
}
