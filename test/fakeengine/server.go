// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"time"
)

// lookEvery is how often a file that is waited for is looked for.
const lookEvery = 2 * time.Millisecond

type server struct {
	options
	listener net.Listener
	ready    atomic.Bool
	requests atomic.Int64 // in flight
}

func newServer(o options) (*server, error) {
	s := &server{options: o}
	if o.modelID == "" {
		s.modelID = o.alias
	}
	if slices.Contains(o.behave, mute) {
		return s, nil
	}
	var err error
	s.listener, err = net.Listen("tcp", net.JoinHostPort(o.host, strconv.Itoa(o.port)))
	return s, err
}

// serve loads, serves and ends as the signals say. It returns the exit code.
func (s *server) serve(log io.Writer, terms <-chan os.Signal) int {
	if s.listener != nil {
		go func() { _ = http.Serve(s.listener, s.routes()) }()
	}
	if s.loadUntil != "" {
		for !exists(s.loadUntil) {
			select {
			case <-time.After(lookEvery):
			case <-terms: // the real one is not listening to signals yet
				die(15)
			}
		}
	}
	s.ready.Store(true)
	if s.listener != nil {
		fmt.Fprintf(log, "server is listening on http://%s\n", s.listener.Addr())
	}
	<-terms
	if s.listener != nil {
		_ = s.listener.Close() // the real one takes no new requests either
	}
	if s.requests.Load() == 0 {
		fmt.Fprintln(log, "cleaning up before exit")
		return 0
	}
	<-terms
	fmt.Fprintln(log, "received second interrupt, terminating immediately")
	return 1
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	loaded := func(path string, handle http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if !s.ready.Load() {
				http.Error(w, `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`, http.StatusServiceUnavailable)
				return
			}
			handle(w, r)
		})
	}
	loaded("/health", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]string{"status": "ok"}) })
	loaded("/v1/models", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string][]map[string]string{"data": {{"id": s.modelID, "owned_by": "fake"}}})
	})
	loaded("/props", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]int{"total_slots": s.slots})
	})
	loaded("/metrics", s.metrics)
	loaded("/v1/chat/completions", s.chat)
	return mux
}

func answer[T any](w http.ResponseWriter, value T) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the caller may be gone
}

func (s *server) metrics(w http.ResponseWriter, r *http.Request) {
	if slices.Contains(s.behave, secretive) {
		<-r.Context().Done()
		return
	}
	fmt.Fprintf(w, "llamacpp:requests_processing %d\nllamacpp:requests_deferred 0\n", s.requests.Load())
}

// chat answers with as many numbers as were asked for.
func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	s.requests.Add(1)
	defer s.requests.Add(-1)
	var request struct {
		MaxTokens int  `json:"max_tokens"`
		Stream    bool `json:"stream"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	text := ""
	for n := range request.MaxTokens {
		text += strconv.Itoa(n) + " "
		if request.Stream {
			fmt.Fprintf(w, "data: {\"choices\":[{\"delta\":{\"content\":\"%d \"}}]}\n\n", n)
			_ = http.NewResponseController(w).Flush() // the caller may be gone
		}
		for first := true; first || s.hold != "" && !exists(s.hold); first = false {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(max(s.pause, lookEvery)):
			}
		}
	}
	if request.Stream {
		fmt.Fprint(w, "data: [DONE]\n\n")
		return
	}
	message := map[string]string{"role": "assistant", "content": text}
	answer(w, map[string][]map[string]map[string]string{"choices": {{"message": message}}})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
