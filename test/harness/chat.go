// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// Completion is the answer to a chat request, as far as tests look at it.
type Completion struct {
	Model   string `json:"model"`
	Choices []struct {
		Message struct {
			Role    string `json:"role"`
			Content string `json:"content"`
		} `json:"message"`
		FinishReason string `json:"finish_reason"`
	} `json:"choices"`
	Usage struct {
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
	} `json:"usage"`
}

// Chat is a request for a completion at temperature 0 that does not end before its last token.
type Chat struct {
	Model     string    `json:"model"`
	Messages  []Message `json:"messages"`
	MaxTokens int       `json:"max_tokens"`
	Stream    bool      `json:"stream"`
	IgnoreEOS bool      `json:"ignore_eos"`
	// Temperature and CachePrompt make equal requests have equal answers.
	Temperature float64 `json:"temperature"`
	CachePrompt bool    `json:"cache_prompt"`
}

// Message is one message of a chat.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// NewChat asks a model for so many tokens.
func NewChat(model string, tokens int) Chat {
	return Chat{
		Model: model, MaxTokens: tokens, IgnoreEOS: true,
		Messages: []Message{{Role: "user", Content: "Write about a steam locomotive that wakes up in a roundhouse."}},
	}
}

// Ask sends the request to the engine at an endpoint and returns its whole answer.
func (c Chat) Ask(ctx context.Context, endpoint string) (Completion, error) {
	var answer Completion
	response, err := c.post(ctx, endpoint)
	if err != nil {
		return answer, err
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return answer, fmt.Errorf("read the answer of %s: %w", endpoint, err)
	}
	return answer, nil
}

func (c Chat) post(ctx context.Context, endpoint string) (*http.Response, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+"/v1/chat/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
		return nil, fmt.Errorf("ask %s: %s: %s", endpoint, response.Status, text)
	}
	return response, nil
}

// Stream is an answer that comes piece by piece.
type Stream struct {
	first chan struct{} // closed when the first token has come
	ended chan struct{} // closed when pieces and err are set
	text  strings.Builder
	count int
	err   error
}

// errNoEnd says that a stream was cut.
var errNoEnd = errors.New("the stream ended without its end mark")

// Begin sends the request and returns when the first token has come. The stream is read on in the background.
func (c Chat) Begin(tb testing.TB, endpoint string) *Stream {
	tb.Helper()
	c.Stream = true
	s := &Stream{first: make(chan struct{}), ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	tb.Cleanup(func() {
		cancel()
		<-s.ended
	})
	go func() {
		defer close(s.ended)
		response, err := c.post(ctx, endpoint)
		if err != nil {
			s.err = err
			return
		}
		defer response.Body.Close()
		s.err = s.read(response.Body)
	}()
	select {
	case <-s.first:
	case <-s.ended:
		tb.Fatalf("the stream of %s has ended before its first token: %v", endpoint, s.err)
	}
	return s
}

func (s *Stream) read(body io.Reader) error {
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			return nil
		}
		var chunk struct {
			Choices []struct {
				Delta struct {
					Content string `json:"content"`
				} `json:"delta"`
			} `json:"choices"`
		}
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return fmt.Errorf("understand %q: %w", data, err)
		}
		for _, choice := range chunk.Choices {
			if choice.Delta.Content == "" {
				continue
			}
			if s.count++; s.count == 1 {
				close(s.first)
			}
			s.text.WriteString(choice.Delta.Content)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("%w: %w", errNoEnd, err)
	}
	return errNoEnd
}

// Wait waits for the end of the stream and returns its text and how many pieces it had. The error is nil if the stream
// ended with its end mark, and tells otherwise how it was cut.
func (s *Stream) Wait() (text string, pieces int, err error) {
	<-s.ended
	return s.text.String(), s.count, s.err
}
