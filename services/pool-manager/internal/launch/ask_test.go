// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
)

func completion() *enginev1.Completion {
	return &enginev1.Completion{
		Path: "/complete", Fixed: `{"temperature":0}`, PromptField: "prompt", MaxTokensField: "n", TextField: "text", TokensField: "tokens",
	}
}

func TestAnEngineThatServesIsAsked(t *testing.T) {
	t.Parallel()
	s := ready()
	s.Answers["/complete"] = `{"text":" the answer","tokens":5}`
	s.Answers["/metrics"] = "running 2\nwaiting 1\ndecoded 40\nread 2\n"
	w, r := newWorld(t), request(t, s)
	r.Prepared.Contract.Completion = completion()
	r.Prepared.Contract.Activity.Counters = []string{"decoded", "read", "missing"}
	e := w.mustLaunch(t, r)
	if got, err := e.Activity(t.Context()); err != nil || got != (Activity{InFlight: 3, Counters: 42, HasCounters: true}) {
		t.Errorf("Activity = %+v, %v", got, err)
	}
	if !e.HasCanary() {
		t.Error("it has no canary")
	}
	if err := e.Canary(t.Context()); err != nil {
		t.Errorf("Canary: %v", err)
	}
	if err := e.Prove(t.Context(), Proof{Prompt: "what?", Contains: "answer", MinTokensPerSecond: 0.001}); err != nil {
		t.Errorf("Prove: %v", err)
	}
	if err := e.Prove(t.Context(), Proof{}); err != nil {
		t.Errorf("Prove nothing: %v", err)
	}
	if e.CPU() <= 0 {
		t.Error("it has used no processor time")
	}
}

func TestAnEngineThatCannotBeAsked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.mustLaunch(t, request(t, ready()))
	if e.HasCanary() || e.Canary(t.Context()) == nil {
		t.Error("it has a canary")
	}
	err := e.Prove(t.Context(), Proof{Prompt: "what?"})
	wantReason(t, err, reason.ProofFailed)
}

// completer is a Prober that has this answer to every prompt.
type completer struct {
	Prober
	answer probe.Answer
	err    error
	lasts  time.Duration
	prompt string
	tokens int
}

func (c *completer) Complete(ctx context.Context, _ netip.AddrPort, _ probe.Completion, prompt string, maxTokens int) (probe.Answer, error) {
	c.prompt, c.tokens = prompt, maxTokens
	select {
	case <-time.After(c.lasts):
		return c.answer, c.err
	case <-ctx.Done():
		return probe.Answer{}, context.Cause(ctx)
	}
}

func TestProof(t *testing.T) {
	t.Parallel()
	good := probe.Answer{Text: "Paris is it", Tokens: 20, Took: 2 * time.Second}
	for _, tt := range []struct {
		name   string
		proof  Proof
		engine completer
		check  string // that fails; empty if none does.
		want   string
		got    string
	}{
		{name: "any answer", engine: completer{answer: good}},
		{name: "no text", engine: completer{answer: probe.Answer{Text: " \n", Tokens: 1}}, check: "answer", want: "an answer that has text", got: `" \n"`},
		{name: "no answer", engine: completer{err: errors.New("answered 500")}, check: "answer", want: "a completion", got: "none"},
		{name: "the right text", proof: Proof{Contains: "Paris"}, engine: completer{answer: good}},
		{name: "the wrong text", proof: Proof{Contains: "Rome"}, engine: completer{answer: good}, check: "contains", want: `an answer that holds "Rome"`, got: `"Paris is it"`},
		{name: "fast enough", proof: Proof{MinTokensPerSecond: 10}, engine: completer{answer: good}},
		{name: "too slow", proof: Proof{MinTokensPerSecond: 10.5}, engine: completer{answer: good}, check: "tokens_per_second", want: "at least 10.5", got: "10 (20 tokens in 2s)"},
		{name: "in time", engine: completer{answer: good, lasts: time.Minute - 1}},
		{name: "too late", engine: completer{answer: good, lasts: time.Minute + 1}, check: "timeout", want: "an answer within 1m0s", got: "none"},
		{name: "later than its own limit", proof: Proof{Timeout: time.Second}, engine: completer{answer: good, lasts: 2 * time.Second}, check: "timeout", want: "an answer within 1s", got: "none"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				e := &Engine{
					launcher: &Launcher{config: Config{Prober: &tt.engine}},
					request:  Request{Replica: "p-0", Prepared: &enginev1.PreparedEngine{Contract: &enginev1.RunContract{Completion: completion()}}},
				}
				tt.proof.Prompt = "What is the capital of France?"
				err := e.Prove(t.Context(), tt.proof)
				if tt.engine.prompt != tt.proof.Prompt || tt.engine.tokens != defaultProofTokens {
					t.Errorf("asked for %d tokens after %q", tt.engine.tokens, tt.engine.prompt)
				}
				if tt.check == "" {
					if err != nil {
						t.Errorf("Prove: %v", err)
					}
					return
				}
				failed, ok := reason.As(err)
				if !ok || failed.Reason != reason.ProofFailed || failed.Remedy == "" {
					t.Fatalf("Prove = %v", err)
				}
				want := map[string]string{"check": tt.check, "want": tt.want, "got": tt.got}
				if diff := cmp.Diff(want, failed.Metadata); diff != "" {
					t.Errorf("metadata (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestProofThatIsCalledOffHasNotFailed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		enough := errors.New("enough")
		e := &Engine{
			launcher: &Launcher{config: Config{Prober: &completer{lasts: time.Hour}}},
			request:  Request{Prepared: &enginev1.PreparedEngine{Contract: &enginev1.RunContract{Completion: completion()}}},
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(enough) })
		err := e.Prove(ctx, Proof{Prompt: "what?"})
		if !errors.Is(err, enough) || reason.Of(err) == reason.ProofFailed {
			t.Errorf("Prove = %v, want the cause", err)
		}
	})
}
