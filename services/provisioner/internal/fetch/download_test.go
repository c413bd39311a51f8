// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store/storetest"
)

var (
	body  = strings.Repeat("0123456789abcdef", 40_000)
	other = strings.Repeat("fedcba9876543210", 40_000)
)

const half = 300_000

func TestDownload(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		faults []fault
		ranges []string // that the server must have been asked for, one for each request
	}{
		{name: "plain", ranges: []string{""}},
		{name: "cut", faults: []fault{cutAfter(half, -1)}, ranges: []string{"", "bytes=300000-"}},
		{name: "cut twice", faults: []fault{cutAfter(half, -1), cutAfter(1000, -1)}, ranges: []string{"", "bytes=300000-", "bytes=301000-"}},
		{name: "cut more often than it may fail", faults: []fault{cutAfter(1000, -1), cutAfter(1000, -1), cutAfter(1000, -1), cutAfter(1000, -1), cutAfter(1000, -1)},
			ranges: []string{"", "bytes=1000-", "bytes=2000-", "bytes=3000-", "bytes=4000-", "bytes=5000-"}},
		{name: "cut before the first byte", faults: []fault{cutAfter(0, -1)}, ranges: []string{"", ""}},
		{name: "busy", faults: []fault{answer(503, "", "", "busy"), answer(429, "Retry-After", "0", ""), answer(500, "", "", "")}, ranges: []string{"", "", "", ""}},
		{name: "busy half-way", faults: []fault{cutAfter(half, -1), answer(502, "", "", "<html>")}, ranges: []string{"", "bytes=300000-", "bytes=300000-"}},
		{name: "other range", faults: []fault{cutAfter(half, -1), answer(206, "Content-Range", "bytes 0-639999/640000", body)}, ranges: []string{"", "bytes=300000-", ""}},
		{name: "part of a range", faults: []fault{cutAfter(half, -1), answer(206, "Content-Range", "bytes 300000-399999/640000", body[half:400_000])},
			ranges: []string{"", "bytes=300000-", "bytes=400000-"}},
		{name: "unreadable range", faults: []fault{cutAfter(half, -1), answer(206, "Content-Range", "bytes */*", "x")}, ranges: []string{"", "bytes=300000-", ""}},
		{name: "range that nobody asked for", faults: []fault{answer(206, "Content-Range", "bytes 0-639999/640000", body)}, ranges: []string{"", ""}},
		{name: "all in place of a range", faults: []fault{cutAfter(half, -1), answer(200, "Content-Length", "640000", body)}, ranges: []string{"", "bytes=300000-"}},
		{name: "less than before", faults: []fault{cutAfter(half, -1), answer(416, "Content-Range", "bytes */10", "")}, ranges: []string{"", "bytes=300000-", ""}},
		{name: "rest of another file", faults: []fault{cutAfter(half, -1), answer(206, "Content-Range", "bytes 300000-639999/640000", other[half:])},
			ranges: []string{"", "bytes=300000-", ""}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, s := newFixture(t), newServer(t, body, test.faults...)
			var last, total int64
			result, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body)}, func(d, n int64) {
				last, total = d, n
				if d > n && n > 0 {
					t.Errorf("progress is %d of %d", d, n)
				}
			})
			must(t, err)
			content, err := os.ReadFile(result.Blob.Path)
			must(t, err)
			if string(content) != body || result.Name != "file.gguf" || last != int64(len(body)) || total != int64(len(body)) {
				t.Errorf("got %d bytes as %s, progress ended at %d of %d", len(content), result.Name, last, total)
			}
			var ranges []string
			for _, header := range s.seen() {
				ranges = append(ranges, header.Get("Range"))
				if header.Get("Range") != "" && header.Get("If-Range") != `"v1"` {
					t.Errorf("range %s was asked for without a validator", header.Get("Range"))
				}
			}
			if diff := cmp.Diff(test.ranges, ranges); diff != "" {
				t.Errorf("ranges (-want +got):\n%s", diff)
			}
			wantNoPartial(t, f.store)
		})
	}
}

func TestDownloadAfterReset(t *testing.T) {
	t.Parallel()
	f, s := newFixture(t), newServer(t, body, cutAfter(half, 0))
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body)}, nil)
	must(t, err)
	if len(s.seen()) != 2 {
		t.Errorf("%d requests, want 2", len(s.seen()))
	}
}

func TestDownloadOfAFileThatChanges(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		next fault
	}{
		{name: "with a new validator", next: change(other, `"v2"`)},
		{name: "behind the same validator", next: change(other, `"v1"`)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, s := newFixture(t), newServer(t, body, cutAfter(half, -1), test.next)
			_, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(other)}, nil)
			must(t, err)
		})
	}
}

func TestDownloadStalls(t *testing.T) {
	t.Parallel()
	for name, sent := range map[string]int{"before the answer": 0, "in the middle": half} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, func(cfg *fetch.Config) { cfg.StallTimeout = 200 * time.Millisecond })
			s := newServer(t, body, stallAfter(sent))
			_, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body)}, nil)
			must(t, err)
			if got := s.seen()[1].Get("Range"); (got != "") != (sent > 0) {
				t.Errorf("after %d bytes the range %q was asked for", sent, got)
			}
		})
	}
}

func TestDownloadFails(t *testing.T) {
	t.Parallel()
	always := func(f fault) []fault { return []fault{f, f, f, f, f, f, f, f} }
	for _, test := range []struct {
		name     string
		faults   []fault
		want     reason.Reason
		text     string
		field    string
		requests int
	}{
		{name: "missing", faults: always(answer(404, "", "", "")), want: reason.EngineNotFound, text: "404", field: "spec.uri", requests: 1},
		{name: "gone", faults: always(answer(410, "", "", "")), want: reason.EngineNotFound, text: "410", field: "spec.uri", requests: 1},
		{name: "forbidden", faults: always(answer(403, "", "", "")), want: reason.FetchFailed, text: "403", field: "spec.uri", requests: 1},
		{name: "never well", faults: always(answer(500, "", "", "")), want: reason.FetchFailed, text: "cannot be read", field: "spec.uri", requests: 4},
		{name: "always cut", faults: always(cutAfter(0, -1)), want: reason.FetchFailed, text: "cannot be read", field: "spec.uri", requests: 4},
		{name: "page in place of the file", faults: always(answer(200, "", "", "<html>sign in</html>")), want: reason.DigestMismatch, text: "has sha256", field: "spec.sha256", requests: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, s := newFixture(t), newServer(t, body, test.faults...)
			req := fetch.Request{Ref: s.ref(t), Want: sha(body), Field: "spec.uri", DigestField: "spec.sha256", Missing: reason.EngineNotFound}
			_, err := f.Fetch(t.Context(), req, nil)
			wantReason(t, err, test.want, test.field, test.text)
			if len(s.seen()) != test.requests {
				t.Errorf("%d requests, want %d", len(s.seen()), test.requests)
			}
			if _, ok := f.Cached(req); ok {
				t.Error("the file is there")
			}
		})
	}
}

func TestServerThatIsNotThere(t *testing.T) {
	t.Parallel()
	f, s := newFixture(t), newServer(t, body)
	s.Close()
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body), Field: "uri"}, nil)
	wantReason(t, err, reason.FetchFailed, "uri", "cannot be read")
}

func TestAddressNeedsADigest(t *testing.T) {
	t.Parallel()
	f, s := newFixture(t), newServer(t, body)
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Field: "uri"}, nil)
	wantReason(t, err, reason.UntrustedArtifact, "uri", "needs its sha256")
	if len(s.seen()) != 0 {
		t.Error("the server was asked")
	}
}

func TestCancelledDownloadIsResumed(t *testing.T) {
	t.Parallel()
	f, s := newFixture(t), newServer(t, body, stallAfter(half))
	left := errors.New("the caller left")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := f.Fetch(ctx, fetch.Request{Ref: s.ref(t), Want: sha(body)}, func(done, _ int64) {
		if done == half {
			cancel(left)
		}
	})
	if !errors.Is(err, left) {
		t.Fatalf("got %v, want the cause", err)
	}
	later, err := fetch.New(fetch.Config{Store: f.store})
	must(t, err)
	_, err = later.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body)}, nil)
	must(t, err)
	if got := s.seen()[1].Get("Range"); got != "bytes=300000-" {
		t.Errorf("the second download asked for %q", got)
	}
}

func TestDownloadGoesOnAtAMirror(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first, mirror := newServer(t, body, cutAfter(half, -1), answer(403, "", "", "")), newServer(t, body)
	mirror.etag = `"mirror"`
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: first.ref(t), Want: sha(body)}, nil)
	if reason.Of(err) != reason.FetchFailed {
		t.Fatalf("got %v, want FETCH_FAILED", err)
	}
	_, err = f.Fetch(t.Context(), fetch.Request{Ref: mirror.ref(t), Want: sha(body)}, nil)
	must(t, err)
	if got := mirror.seen()[0]; got.Get("Range") != "bytes=300000-" || got.Get("If-Range") != "" {
		t.Errorf("the mirror was asked for %q if %q", got.Get("Range"), got.Get("If-Range"))
	}
}

func TestSameFileIsDownloadedOnce(t *testing.T) {
	t.Parallel()
	f, s := newFixture(t), newServer(t, body)
	var callers sync.WaitGroup
	for range 6 {
		callers.Go(func() {
			if _, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body)}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	callers.Wait()
	if len(s.seen()) != 1 {
		t.Errorf("%d requests, want 1", len(s.seen()))
	}
	wantNoPartial(t, f.store)
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	t.Run("known before", func(t *testing.T) {
		t.Parallel()
		f, s := newFixture(t), newServer(t, body, answer(200, "Content-Length", "1000000000000000", ""))
		_, err := f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body), Field: "uri"}, nil)
		if reason.Of(err) != reason.LimitExceeded {
			t.Errorf("got %v, want LIMIT_EXCEEDED", err)
		}
		s = newServer(t, body, answer(200, "Content-Length", "1000000000000", ""))
		_, err = f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body), Field: "uri"}, nil)
		wantReason(t, err, reason.DiskFull, "uri", "bytes wanted")
	})
	t.Run("while writing", func(t *testing.T) {
		t.Parallel()
		disk := storetest.New(storetest.Never, syscall.ENOSPC, nil)
		full, err := store.Open(store.Config{Root: filepath.Join(t.TempDir(), "root"), FS: disk})
		must(t, err)
		f, s := newFixture(t, func(cfg *fetch.Config) { cfg.Store = full }), newServer(t, body)
		armed := false
		_, err = f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body), Field: "uri"}, func(int64, int64) {
			if !armed {
				armed = true
				disk.FailAt(0)
			}
		})
		wantReason(t, err, reason.DiskFull, "uri", "no space left")
		_, err = f.Fetch(t.Context(), fetch.Request{Ref: s.ref(t), Want: sha(body)}, nil)
		must(t, err)
		if got := s.seen()[1].Get("Range"); got == "" {
			t.Error("the second download began again")
		}
	})
}

// publicServer answers as if it were in the public network, without any.
type publicServer map[string]string

// RoundTrip redirects by the table and counts nothing else.
func (p publicServer) RoundTrip(r *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	if to, ok := p[r.URL.String()]; ok {
		recorder.Header().Set("Location", to)
		recorder.WriteHeader(http.StatusFound)
	} else {
		_, _ = recorder.WriteString(body)
	}
	response := recorder.Result()
	response.Request = r
	return response, nil
}

func TestRedirects(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, from, to string
		want           reason.Reason
		text           string
	}{
		{name: "public to public", from: "https://9.9.9.9/a", to: "https://8.8.8.8/b"},
		{name: "to itself", from: "https://9.9.9.9/a", to: "/b"},
		{name: "private to itself", from: "https://10.0.0.1/a", to: "https://10.0.0.1/b"},
		{name: "private to private", from: "https://10.0.0.1/a", to: "https://192.168.0.1/b"},
		{name: "public to private", from: "https://9.9.9.9/a", to: "https://10.0.0.1/b", want: reason.UntrustedArtifact},
		{name: "public to private v6", from: "https://9.9.9.9/a", to: "https://[fd00::1]/b", want: reason.UntrustedArtifact},
		{name: "public to mapped private", from: "https://9.9.9.9/a", to: "https://[::ffff:10.0.0.1]/b", want: reason.UntrustedArtifact},
		{name: "public to carrier", from: "https://9.9.9.9/a", to: "https://100.64.1.1/b", want: reason.UntrustedArtifact},
		{name: "public to loopback", from: "https://9.9.9.9/a", to: "http://127.0.0.1/b", want: reason.UntrustedArtifact},
		{name: "public to localhost", from: "https://9.9.9.9/a", to: "https://localhost/b", want: reason.UntrustedArtifact},
		{name: "public to this host", from: "https://9.9.9.9/a", to: "https://0.0.0.0/b", want: reason.UntrustedArtifact},
		{name: "public to the link", from: "https://9.9.9.9/a", to: "https://169.254.169.254/latest", want: reason.UntrustedArtifact},
		{name: "private to the link", from: "https://10.0.0.1/a", to: "https://169.254.169.254/latest", want: reason.UntrustedArtifact},
		{name: "unencrypted", from: "https://9.9.9.9/a", to: "http://8.8.8.8/b", want: reason.UntrustedArtifact},
		{name: "public to mapped carrier", from: "https://9.9.9.9/a", to: "https://[::ffff:100.64.1.1]/b", want: reason.UntrustedArtifact, text: "refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, func(cfg *fetch.Config) { cfg.Client = &http.Client{Transport: publicServer{test.from: test.to}} })
			_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, test.from), Want: sha(body), Field: "uri"}, nil)
			if got := reason.Of(err); got != test.want || err != nil && !strings.Contains(err.Error(), test.text) {
				t.Errorf("got %v (%v), want %v with %q", got, err, test.want, test.text)
			}
		})
	}
}

// endlessRedirect leads back to where it was asked, and counts.
type endlessRedirect struct{ requests int }

func (e *endlessRedirect) RoundTrip(r *http.Request) (*http.Response, error) {
	e.requests++
	return publicServer{r.URL.String(): r.URL.String()}.RoundTrip(r)
}

func TestRedirectsEnd(t *testing.T) {
	t.Parallel()
	endless := &endlessRedirect{}
	f := newFixture(t, func(cfg *fetch.Config) { cfg.Client = &http.Client{Transport: endless} })
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, "https://9.9.9.9/a"), Want: sha(body), Field: "uri"}, nil)
	wantReason(t, err, reason.FetchFailed, "uri", "more than 10 times")
	if endless.requests != 10 {
		t.Errorf("%d requests, want 10", endless.requests)
	}
}

func wantNoPartial(t *testing.T, s *store.Store) {
	t.Helper()
	left, err := os.ReadDir(filepath.Join(s.Root(), "partial"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("partial content is left: %v", left)
	}
}
