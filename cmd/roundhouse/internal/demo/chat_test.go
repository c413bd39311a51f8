// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAsk(t *testing.T) {
	t.Parallel()
	requests := make(chan chatRequest, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var request chatRequest
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil || r.URL.Path != "/v1/chat/completions" {
			http.Error(w, "not a chat request", http.StatusBadRequest)
			return
		}
		requests <- request
		_, _ = w.Write([]byte(answerStream + "data: [DONE]\n\n")) // the caller tells what it misses
	}))
	t.Cleanup(server.Close)
	var tokens []string
	got, err := ask(t.Context(), server.URL, "m", "Hello?", func(token string) { tokens = append(tokens, token) })
	if err != nil {
		t.Fatalf("ask = %v", err)
	}
	if got.text != "Once upon" || got.tokens != 2 || got.firstToken <= 0 {
		t.Errorf("ask = %+v, want %q of 2 tokens and a first token's time", got, "Once upon")
	}
	if diff := cmp.Diff([]string{"Once", " upon"}, tokens); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
	request := <-requests
	if request.Model != "m" || !request.Stream || request.Messages[0].Content != "Hello?" {
		t.Errorf("the request is %+v, want a stream of m for Hello?", request)
	}
}

func TestAskRefused(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Loading model", http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	_, err := ask(t.Context(), server.URL, "m", "x", func(string) {})
	if err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "Loading model") {
		t.Errorf("ask = %v, want the status and the engine's words", err)
	}
}

func TestReadAnswerFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		body string
		says string
	}{
		{"cut", answerStream, "without its end mark"},
		{"empty", "data: [DONE]\n\n", "the answer is empty"},
		{"not JSON", "data: {\n\n", "understand"},
		{"endless line", "data: " + strings.Repeat("x", 2*maxEventBytes), "too long"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := readAnswer(strings.NewReader(test.body), time.Now(), func(string) {})
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("readAnswer = %v, want it to say %q", err, test.says)
			}
		})
	}
}
