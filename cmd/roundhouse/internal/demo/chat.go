// SPDX-License-Identifier: Apache-2.0

package demo

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
	"time"
)

const (
	// answerTokens is how much the engine is asked to say.
	answerTokens = 64
	// maxEventBytes bounds one line of the answer's stream.
	maxEventBytes = 1 << 20
	// chatTimeout is far beyond what the slowest machine needs for answerTokens.
	chatTimeout = 5 * time.Minute
)

// answer is what the engine said, and how fast.
type answer struct {
	text            string
	tokens          int
	firstToken      time.Duration
	tokensPerSecond float64
}

// chatRequest is the part of an OpenAI chat completion request that the demo uses.
type chatRequest struct {
	Model         string        `json:"model"`
	Messages      []chatMessage `json:"messages"`
	MaxTokens     int           `json:"max_tokens"`
	Temperature   float64       `json:"temperature"`
	Stream        bool          `json:"stream"`
	StreamOptions streamOptions `json:"stream_options"`
}

type chatMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

// chatChunk is one event of the answer's stream.
type chatChunk struct {
	Choices []struct {
		Delta struct {
			Content string `json:"content"`
		} `json:"delta"`
	} `json:"choices"`
	Usage struct {
		CompletionTokens int `json:"completion_tokens"`
	} `json:"usage"`
}

// ask sends one prompt to an engine at endpoint and hands each piece of the answer to token as it comes. It fails if
// the answer is empty or its stream ends without the end mark.
func ask(ctx context.Context, endpoint, model, prompt string, token func(string)) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, chatTimeout)
	defer cancel()
	body, err := json.Marshal(chatRequest{
		Model:         model,
		Messages:      []chatMessage{{Role: "user", Content: prompt}},
		MaxTokens:     answerTokens,
		Stream:        true,
		StreamOptions: streamOptions{IncludeUsage: true},
	})
	if err != nil {
		return answer{}, fmt.Errorf("write chat request: %w", err)
	}
	url := endpoint + "/v1/chat/completions"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return answer{}, fmt.Errorf("make chat request to %s: %w", url, err)
	}
	request.Header.Set("Content-Type", "application/json")
	transport := &http.Transport{DisableKeepAlives: true} // no proxy: the engine is on loopback
	began := time.Now()
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return answer{}, fmt.Errorf("ask the engine at %s: %w", endpoint, err)
	}
	defer func() { _ = response.Body.Close() }() // read to its end, or given up
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
		return answer{}, fmt.Errorf("ask the engine at %s: %s: %s", endpoint, response.Status, bytes.TrimSpace(text))
	}
	got, err := readAnswer(response.Body, began, token)
	if err != nil {
		return got, fmt.Errorf("read the answer of %s: %w", endpoint, err)
	}
	return got, nil
}

// readAnswer reads a stream of server-sent events until its end mark.
func readAnswer(body io.Reader, began time.Time, token func(string)) (answer, error) {
	var got answer
	var text strings.Builder
	var first, last time.Time
	pieces := 0
	lines := bufio.NewScanner(body)
	lines.Buffer(nil, maxEventBytes)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data:")
		if !ok {
			continue
		}
		if data = strings.TrimSpace(data); data == "[DONE]" {
			return finish(got, text.String(), pieces, last.Sub(first))
		}
		var chunk chatChunk
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			return got, fmt.Errorf("understand %.80q: %w", data, err)
		}
		got.tokens = max(got.tokens, chunk.Usage.CompletionTokens)
		for _, choice := range chunk.Choices {
			if choice.Delta.Content == "" {
				continue
			}
			last = time.Now()
			if pieces == 0 {
				first = last
				got.firstToken = first.Sub(began)
			}
			pieces++
			text.WriteString(choice.Delta.Content)
			token(choice.Delta.Content)
		}
	}
	if err := lines.Err(); err != nil {
		return got, err
	}
	return got, errors.New("the stream ended without its end mark")
}

// finish fills in what is known at the end. Without a count by the engine each piece is taken for a token.
func finish(got answer, text string, pieces int, took time.Duration) (answer, error) {
	if pieces == 0 {
		return got, errors.New("the answer is empty")
	}
	got.text = text
	if got.tokens == 0 {
		got.tokens = pieces
	}
	if took > 0 {
		got.tokensPerSecond = float64(got.tokens-1) / took.Seconds()
	}
	return got, nil
}
