// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// batchWords is how much of a prompt is computed at once, a word being a token.
	batchWords = 512
	// defaultTokens is how long an answer is when the request does not say.
	defaultTokens = 16
	// slowness is how many pauses stand for one when it is slow.
	slowness = 100
)

// completion is a request of either form.
type completion struct {
	Prompt    string          `json:"prompt"`
	Messages  json.RawMessage `json:"messages"`
	MaxTokens *int            `json:"max_tokens"`
	Stream    bool            `json:"stream"`
}

// words is the length of what is to be completed.
func (c completion) words() int {
	return len(strings.Fields(c.Prompt)) + len(strings.Fields(string(c.Messages)))
}

// form is how an answer, or a piece of one, is put.
type form interface {
	whole(text string) any
	piece(text string) any
}

// plainText is the form of /v1/completions.
type plainText struct{}

func (plainText) whole(text string) any {
	return map[string]any{"index": 0, "text": text, "finish_reason": "length"}
}
func (plainText) piece(text string) any { return map[string]any{"index": 0, "text": text} }

// chat is the form of /v1/chat/completions.
type chat struct{}

func (chat) whole(text string) any {
	return map[string]any{"index": 0, "message": map[string]string{"role": "assistant", "content": text}, "finish_reason": "length"}
}
func (chat) piece(text string) any {
	return map[string]any{"delta": map[string]string{"content": text}}
}

// complete answers with as many numbers as were asked for.
func (s *server) complete(w http.ResponseWriter, r *http.Request, as form) {
	var request completion
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !s.acquire(r.Context()) {
		return
	}
	defer s.release()
	tokens := defaultTokens
	if request.MaxTokens != nil {
		tokens = *request.MaxTokens
	}
	var text strings.Builder
	if !s.compute(r.Context(), request.words(), tokens, func(token string) {
		text.WriteString(token)
		if request.Stream {
			piece, _ := json.Marshal(map[string]any{"choices": []any{as.piece(token)}}) // plain texts
			fmt.Fprintf(w, "data: %s\n\n", piece)
			_ = http.NewResponseController(w).Flush() // the caller may be gone
		}
	}) {
		return
	}
	if request.Stream {
		fmt.Fprint(w, "data: [DONE]\n\n")
		return
	}
	answer(w, map[string]any{
		"object": "text_completion", "model": s.modelID, "choices": []any{as.whole(text.String())},
		"usage": map[string]int{"prompt_tokens": request.words(), "completion_tokens": tokens, "total_tokens": request.words() + tokens},
	})
}

// acquire waits for a slot; false means that the caller has gone.
func (s *server) acquire(ctx context.Context) bool {
	s.count(1, 0)
	select {
	case s.free <- struct{}{}:
		s.count(-1, 1)
		return true
	case <-ctx.Done():
		s.count(-1, 0)
		return false
	}
}

func (s *server) release() {
	s.count(0, -1)
	<-s.free
}

func (s *server) count(deferred, processing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deferred += deferred
	s.processing += processing
}

// inFlight is how many requests wait for a slot, and how many have one, at one moment.
func (s *server) inFlight() (deferred, processing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deferred, s.processing
}

// compute works on a prompt and makes tokens, and counts both as it goes; false means that the caller has gone.
func (s *server) compute(ctx context.Context, prompt, tokens int, emit func(token string)) bool {
	for done := batchWords; done < prompt; done += batchWords { // the last batch gives the first token
		if !s.step(ctx) {
			return false
		}
	}
	for n := range tokens {
		if n == 0 {
			s.promptTokens.Add(int64(prompt))
		}
		if s.now(wrong) {
			emit("wrong ")
		} else {
			emit(strconv.Itoa(n) + " ")
		}
		for s.hold != "" && !exists(s.hold) {
			if !s.wait(ctx) {
				return false
			}
		}
		if !s.step(ctx) {
			return false
		}
	}
	s.answeredTotal.Add(int64(tokens))
	return true
}

// step is the work of one batch, which is a token's or more; false means that the caller has gone.
func (s *server) step(ctx context.Context) bool {
	if !s.wait(ctx) {
		return false
	}
	s.decodes.Add(1)
	return true
}

// wait is a pause; false means that the caller has gone.
func (s *server) wait(ctx context.Context) bool {
	if s.now(stuck) {
		select {}
	}
	pause := max(s.pause, lookEvery)
	if s.now(slow) {
		pause *= slowness
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(pause):
		return true
	}
}
