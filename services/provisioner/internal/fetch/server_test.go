// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// fault answers one request in place of the server. pass lets the server answer as it should.
type fault func(w http.ResponseWriter, r *http.Request, s *server)

func pass(w http.ResponseWriter, r *http.Request, s *server) { s.serve(w, r) }

// server serves one file with ranges and validators, after its faults are used up, one a request.
type server struct {
	*httptest.Server

	mu       sync.Mutex
	content  []byte
	etag     string
	faults   []fault
	requests []http.Header
}

func newServer(t *testing.T, content string, faults ...fault) *server {
	t.Helper()
	s := &server{content: []byte(content), etag: `"v1"`, faults: faults}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

// ServeHTTP answers by the next fault, or as it should.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.requests = append(s.requests, r.Header.Clone())
	next := fault(pass)
	if len(s.faults) > 0 {
		next, s.faults = s.faults[0], s.faults[1:]
	}
	s.mu.Unlock()
	next(w, r, s)
}

func (s *server) serve(w http.ResponseWriter, r *http.Request) {
	if s.etag != "" {
		w.Header().Set("ETag", s.etag)
	}
	http.ServeContent(w, r, "file", time.Time{}, bytes.NewReader(s.content))
}

func (s *server) seen() []http.Header {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]http.Header(nil), s.requests...)
}

func (s *server) ref(t *testing.T) fetch.Ref {
	t.Helper()
	ref, err := fetch.Parse(s.URL + "/models/file.gguf")
	must(t, err)
	return ref
}

// cutAfter promises the whole answer and ends the connection after n bytes of it; lingering none means a reset.
func cutAfter(n, linger int) fault {
	return func(w http.ResponseWriter, r *http.Request, s *server) {
		recorder := httptest.NewRecorder()
		s.serve(recorder, r)
		body := recorder.Body.Bytes()
		conn, out, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		_, _ = fmt.Fprintf(out, "HTTP/1.1 %d OK\r\nContent-Length: %d\r\nETag: %s\r\n", recorder.Code, len(body), s.etag)
		if span := recorder.Header().Get("Content-Range"); span != "" {
			_, _ = fmt.Fprintf(out, "Content-Range: %s\r\n", span)
		}
		_, _ = fmt.Fprintf(out, "\r\n%s", body[:min(n, len(body))])
		_ = out.Flush()
		if tcp, ok := conn.(*net.TCPConn); ok && linger >= 0 {
			_ = tcp.SetLinger(linger)
		}
		_ = conn.Close()
	}
}

// stallAfter sends n bytes and then nothing until the client leaves.
func stallAfter(n int) fault {
	return func(w http.ResponseWriter, r *http.Request, s *server) {
		w.Header().Set("ETag", s.etag)
		w.Header().Set("Content-Length", fmt.Sprint(len(s.content)))
		if n > 0 {
			_, _ = w.Write(s.content[:n])
			_ = http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
	}
}

func answer(status int, header, value, body string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ *server) {
		if header != "" {
			w.Header().Set(header, value)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}
}

// change replaces the content, as a publisher may, and answers as it should.
func change(content, etag string) fault {
	return func(w http.ResponseWriter, r *http.Request, s *server) {
		s.mu.Lock()
		s.content, s.etag = []byte(content), etag
		s.mu.Unlock()
		s.serve(w, r)
	}
}

// fixture is a fetcher on a store of its own.
type fixture struct {
	*fetch.Fetcher

	store *store.Store
	dir   string
}

func newFixture(t *testing.T, adjust ...func(*fetch.Config)) fixture {
	t.Helper()
	dir := t.TempDir()
	s, err := store.Open(store.Config{Root: filepath.Join(dir, "root")})
	must(t, err)
	t.Cleanup(func() { _ = s.Close() })
	cfg := fetch.Config{Store: s, FileRoots: []string{filepath.Join(dir, "allowed")}, Attempts: 4, FirstDelay: time.Millisecond, StallTimeout: 5 * time.Second}
	for _, f := range adjust {
		f(&cfg)
	}
	f, err := fetch.New(cfg)
	must(t, err)
	return fixture{Fetcher: f, store: s, dir: dir}
}

func sha(content string) store.Digest {
	digest, err := store.ParseDigest(fmt.Sprintf("%x", sha256.Sum256([]byte(content))))
	if err != nil {
		panic(err)
	}
	return digest
}

func mustParse(t *testing.T, text string) fetch.Ref {
	t.Helper()
	ref, err := fetch.Parse(text)
	must(t, err)
	return ref
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// wantReason fails unless err has the reason, names the field, tells a remedy and has the text in it.
func wantReason(t *testing.T, err error, want reason.Reason, field, text string) {
	t.Helper()
	failed, ok := reason.As(err)
	if !ok || failed.Reason != want || failed.Remedy == "" || !strings.Contains(failed.Message, text) {
		t.Errorf("got %v, want %v with a remedy and %q", err, want, text)
		return
	}
	if len(failed.Fields) != 1 || failed.Fields[0].Name != field {
		t.Errorf("%v names the fields %v, want %s", err, failed.Fields, field)
	}
}
