// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// maxQuoted is how much of an answer that was no success is quoted in the error in bytes.
const maxQuoted = 200

// Completion is how to ask an engine to complete a text. The fields of the question are names in its JSON object, those of
// the answer are as Field.Name has them.
type Completion struct {
	Path           string
	Fixed          json.RawMessage // a JSON object with whatever else the question has; empty is none.
	PromptField    string          // required.
	MaxTokensField string          // empty: the engine is not told.
	TextField      string          // required.
	TokensField    string          // how many tokens were made; empty: the engine does not say.
}

// Answer is a completion.
type Answer struct {
	Text   string
	Tokens int           // 0 if the engine does not say.
	Took   time.Duration // from the question to the last byte of the answer.
}

// Complete has the engine complete the prompt with at most maxTokens tokens, and blocks until it has. Only ctx bounds how
// long that takes; ending it closes the connection, at which engines give up the work. An error tells the status and the
// first words of an answer that is no success, and which field one lacks.
func (p *Prober) Complete(ctx context.Context, at netip.AddrPort, c Completion, prompt string, maxTokens int) (Answer, error) {
	question, err := c.question(prompt, maxTokens)
	if err != nil {
		return Answer{}, fmt.Errorf("ask %s%s for a completion: %w", at, c.Path, err)
	}
	begun := time.Now()
	got, err := p.send(ctx, at, c.Path, question)
	if err != nil {
		return Answer{}, err
	}
	took := time.Since(begun)
	if got.status != http.StatusOK {
		return Answer{}, fmt.Errorf("ask %s%s: answered %d: %q", at, c.Path, got.status, got.body[:min(len(got.body), maxQuoted)])
	}
	answer, err := c.read(got.body)
	if err != nil {
		return Answer{}, fmt.Errorf("read completion of %s%s: %w", at, c.Path, err)
	}
	answer.Took = took
	return answer, nil
}

// question returns the JSON object to send.
func (c Completion) question(prompt string, maxTokens int) ([]byte, error) {
	fields := map[string]json.RawMessage{}
	if len(c.Fixed) > 0 {
		if err := json.Unmarshal(c.Fixed, &fields); err != nil {
			return nil, fmt.Errorf("read fixed fields: %w", err)
		}
	}
	if fields == nil || c.PromptField == "" || c.TextField == "" {
		return nil, fmt.Errorf("it needs a field for the prompt (%q), one for the text (%q) and an object of fixed ones",
			c.PromptField, c.TextField)
	}
	text, err := json.Marshal(prompt)
	if err != nil {
		return nil, fmt.Errorf("write prompt: %w", err)
	}
	fields[c.PromptField] = text
	if c.MaxTokensField != "" {
		fields[c.MaxTokensField] = strconv.AppendInt(nil, int64(maxTokens), 10)
	}
	return json.Marshal(fields)
}

// read finds what was asked for in an answer.
func (c Completion) read(body []byte) (Answer, error) {
	text, err := lookup(body, c.TextField)
	if err != nil {
		return Answer{}, fmt.Errorf("at %s: %w", c.TextField, err)
	}
	if c.TokensField == "" {
		return Answer{Text: text}, nil
	}
	count, err := lookup(body, c.TokensField)
	if err != nil {
		return Answer{}, fmt.Errorf("at %s: %w", c.TokensField, err)
	}
	tokens, err := strconv.Atoi(count)
	if err != nil || tokens < 0 {
		return Answer{}, fmt.Errorf("at %s: %q is no count", c.TokensField, count)
	}
	return Answer{Text: text, Tokens: tokens}, nil
}
