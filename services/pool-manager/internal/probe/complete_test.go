// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestComplete(t *testing.T) {
	t.Parallel()
	const delay = 20 * time.Millisecond
	long := strings.Repeat("x", 2*maxQuoted)
	openAI := Completion{
		Path: "/v1/completions", Fixed: json.RawMessage(`{"temperature": 0, "seed": 1}`), PromptField: "prompt", MaxTokensField: "max_tokens",
		TextField: "choices[0].text", TokensField: "usage.completion_tokens",
	}
	with := func(change func(*Completion)) Completion {
		c := openAI
		change(&c)
		return c
	}
	const good = `{"choices": [{"text": "blue \"sky\""}], "usage": {"completion_tokens": 3}}`
	for _, tt := range []struct {
		name       string
		completion Completion
		status     int
		body       string
		asked      string
		want       Answer
		err        string
	}{
		{"as asked", openAI, 200, good, `{"max_tokens":8,"prompt":"the \u003c\"sky\"","seed":1,"temperature":0}`, Answer{Text: `blue "sky"`, Tokens: 3}, ""},
		{
			"nothing else than the prompt", Completion{Path: "/c", PromptField: "p", TextField: "content"}, 200, `{"content": "x"}`,
			`{"p":"the \u003c\"sky\""}`, Answer{Text: "x"}, "",
		},
		{
			"what is fixed does not overrule the prompt", with(func(c *Completion) { c.Fixed = json.RawMessage(`{"prompt": "other"}`) }),
			200, good, `{"max_tokens":8,"prompt":"the \u003c\"sky\""}`, Answer{Text: `blue "sky"`, Tokens: 3}, "",
		},
		{"refused", openAI, 400, `{"error": "no"}`, "", Answer{}, `answered 400: "{\"error\": \"no\"}"`},
		{"refused at length", openAI, 500, long, "", Answer{}, `answered 500: "` + long[:maxQuoted] + `"`},
		{"no text", openAI, 200, `{"choices": []}`, "", Answer{}, "at choices[0].text: at [0]: there are 0"},
		{"no count", openAI, 200, `{"choices": [{"text": "x"}]}`, "", Answer{}, `at usage.completion_tokens: there is no "usage"`},
		{"an odd count", openAI, 200, `{"choices": [{"text": "x"}], "usage": {"completion_tokens": -1}}`, "", Answer{}, `"-1" is no count`},
		{"no JSON", openAI, 200, `<html>`, "", Answer{}, "invalid character"},
		{"an answer without end", openAI, 200, strings.Repeat("x", maxAnswer+1), "", Answer{}, "more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			at := serve(t, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil || r.Method != http.MethodPost || r.URL.Path != tt.completion.Path || !r.Close || r.Header.Get("Content-Type") != "application/json" {
					t.Errorf("asked %s %s, close %t, %v", r.Method, r.URL, r.Close, r.Header)
				}
				if tt.asked != "" && string(body) != tt.asked {
					t.Errorf("asked %s, want %s", body, tt.asked)
				}
				<-time.After(delay)
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			// The limit of other questions does not count.
			got, err := newProber(t, Config{Limit: delay / 10}).Complete(t.Context(), at, tt.completion, `the <"sky"`, 8)
			if err == nil && got.Took < delay {
				t.Errorf("took %v, want at least %v", got.Took, delay)
			}
			got.Took = 0
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Complete: got %+v, %v, want %+v, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestCompleteRefusesHalfACompletion(t *testing.T) {
	t.Parallel()
	at := serve(t, func(http.ResponseWriter, *http.Request) { t.Error("something was asked") })
	for _, c := range []Completion{
		{PromptField: "p"},
		{TextField: "t"},
		{PromptField: "p", TextField: "t", Fixed: json.RawMessage(`[]`)},
		{PromptField: "p", TextField: "t", Fixed: json.RawMessage(`null`)},
		{PromptField: "p", TextField: "t", Fixed: json.RawMessage(`{`)},
	} {
		if got, err := newProber(t, Config{}).Complete(t.Context(), at, c, "x", 1); err == nil {
			t.Errorf("Complete(%+v): got %+v, want an error", c, got)
		}
	}
}

func TestCompleteEndsWithItsContext(t *testing.T) {
	t.Parallel()
	asked, gone := make(chan struct{}), make(chan struct{})
	at := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(asked)
		<-r.Context().Done()
		close(gone)
	})
	stalled := errors.New("the engine makes no tokens")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-asked
		cancel(stalled)
	}()
	c := Completion{Path: "/", PromptField: "p", TextField: "t"}
	if _, err := newProber(t, Config{}).Complete(ctx, at, c, "x", 1); !errors.Is(err, stalled) {
		t.Errorf("Complete: got %v, want the cause", err)
	}
	<-gone // The engine is told, by the end of the connection.
}
