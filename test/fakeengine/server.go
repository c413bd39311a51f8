// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// lookEvery is how often a file that is waited for is looked for.
const lookEvery = 2 * time.Millisecond

type server struct {
	options
	listener net.Listener
	ready    atomic.Bool
	free     chan struct{} // has room for one request a slot

	decodes, promptTokens, answeredTotal atomic.Int64

	mu                   sync.Mutex // guards what follows
	deferred, processing int        // requests that wait for a slot, and that have one
}

func newServer(o options) (*server, error) {
	s := &server{options: o, free: make(chan struct{}, max(o.slots, 1))}
	if o.modelID == "" {
		s.modelID = o.alias
	}
	if s.is(mute) {
		return s, nil
	}
	var err error
	s.listener, err = net.Listen("tcp", net.JoinHostPort(o.host, strconv.Itoa(o.port)))
	return s, err
}

// serve loads, serves and ends as the signals and the flags say. It returns the exit code.
func (s *server) serve(log io.Writer, terms <-chan os.Signal) int {
	if s.listener != nil {
		go func() { _ = http.Serve(s.listener, s.routes()) }()
	}
	if s.crashesNow() {
		return s.crash(log)
	}
	crash := s.watch()
	select {
	case <-s.load():
	case <-terms: // the real one is not listening to signals yet
		die(syscall.SIGTERM)
	case <-crash:
		return s.crash(log)
	}
	s.ready.Store(true)
	go s.grow()
	if s.listener != nil {
		fmt.Fprintf(log, "server is listening on http://%s\n", s.listener.Addr())
	}
	select {
	case <-terms:
	case <-crash:
		return s.crash(log)
	case <-s.tooOld():
		return s.crash(log)
	}
	if s.listener != nil {
		_ = s.listener.Close() // the real one takes no new requests either
	}
	if deferred, processing := s.inFlight(); deferred+processing == 0 {
		fmt.Fprintln(log, "cleaning up before exit")
		return 0
	}
	<-terms
	fmt.Fprintln(log, "received second interrupt, terminating immediately")
	return 1
}

// load closes the channel that it returns when the model is loaded. Nothing moves while it stalls.
func (s *server) load() <-chan struct{} {
	loaded := make(chan struct{})
	switch {
	case s.stall:
	case s.loadUntil == "":
		close(loaded)
	default:
		go func() {
			for !exists(s.loadUntil) {
				<-time.After(lookEvery)
			}
			close(loaded)
		}()
	}
	return loaded
}

// watch closes the channel that it returns when a file says that it is time to crash.
func (s *server) watch() <-chan struct{} {
	if s.crashWhen == "" && s.crashOnce == "" {
		return nil
	}
	crash := make(chan struct{})
	go func() {
		for !s.crashesNow() {
			<-time.After(lookEvery)
		}
		close(crash)
	}()
	return crash
}

// crashesNow tells whether a file says so. One that is for one engine only is gone then.
func (s *server) crashesNow() bool {
	if s.crashWhen != "" && exists(s.crashWhen) {
		return true
	}
	if s.crashOnce == "" {
		return false
	}
	found, err := filepath.Glob(s.crashOnce)
	if err != nil {
		return false
	}
	for _, path := range found {
		if os.Remove(path) == nil { // else another engine was first
			return true
		}
	}
	return false
}

// grow takes memory, and keeps it, when a file says so.
func (s *server) grow() {
	if s.growOnce == "" {
		return
	}
	for os.Remove(s.growOnce) != nil {
		<-time.After(lookEvery)
	}
	const page, step, whole = 4 << 10, 16 << 20, 1 << 30
	var taken [][]byte
	for range whole / step {
		more := make([]byte, step)
		for i := 0; i < step; i += page {
			more[i] = 1 // memory that nobody has written to is not taken
		}
		taken = append(taken, more)
	}
	<-make(chan struct{}) // taken must not be given back
	runtime.KeepAlive(taken)
}

// tooOld has a value when it has been ready long enough to crash.
func (s *server) tooOld() <-chan time.Time {
	if s.crashAfter < 0 {
		return nil
	}
	return time.After(s.crashAfter)
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	loaded := func(path string, handle http.HandlerFunc) {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case !s.ready.Load():
				http.Error(w, `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`, http.StatusServiceUnavailable)
			case s.now(frozen):
				<-r.Context().Done()
			default:
				handle(w, r)
			}
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
	loaded("/v1/completions", func(w http.ResponseWriter, r *http.Request) { s.complete(w, r, plainText{}) })
	loaded("/v1/chat/completions", func(w http.ResponseWriter, r *http.Request) { s.complete(w, r, chat{}) })
	return mux
}

func answer[T any](w http.ResponseWriter, value T) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(value) // the caller may be gone
}

// metrics answers in the form of the real one, six digits a number.
func (s *server) metrics(w http.ResponseWriter, r *http.Request) {
	if s.now(secretive) {
		<-r.Context().Done()
		return
	}
	deferred, processing := s.inFlight()
	for _, metric := range []struct {
		name, kind string
		value      int64
	}{
		{"prompt_tokens_total", "counter", s.promptTokens.Load()},
		{"tokens_predicted_total", "counter", s.answeredTotal.Load()},
		{"n_decode_total", "counter", s.decodes.Load()},
		{"requests_processing", "gauge", int64(processing)},
		{"requests_deferred", "gauge", int64(deferred)},
	} {
		fmt.Fprintf(w, "# HELP llamacpp:%[1]s A number.\n# TYPE llamacpp:%[1]s %[2]s\nllamacpp:%[1]s %.6[3]g\n",
			metric.name, metric.kind, float64(metric.value))
	}
}
