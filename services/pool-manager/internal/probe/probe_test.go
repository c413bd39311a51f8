// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

func TestMain(m *testing.M) {
	processtest.Main()
	os.Exit(m.Run())
}

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

// serve answers with h and returns where.
func serve(t testing.TB, h http.HandlerFunc) netip.AddrPort {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return netip.MustParseAddrPort(s.Listener.Addr().String())
}

func newProber(t testing.TB, c Config) *Prober {
	t.Helper()
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestGetIsBounded(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"never answers", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer within 100ms"},
		{"never ends its answer", func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, "no answer within 100ms"},
		{"answers without end", func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, "the answer has more than"},
		{"a header without end", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X", strings.Repeat("x", 2*maxHeader))
		}, "server response headers exceeded"},
		{"hangs up", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			limit := 100 * time.Millisecond
			if !strings.Contains(tt.want, "100ms") {
				limit = patience
			}
			_, err := newProber(t, Config{Limit: limit}).get(t.Context(), serve(t, tt.handler), "/")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("get: got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestGetGoesNowhereElse(t *testing.T) {
	t.Parallel()
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.String() != "/page?a=b" || r.Method != http.MethodGet || !r.Close {
			t.Errorf("asked %s %s, close %v", r.Method, r.URL, r.Close)
		}
		http.Redirect(w, r, "/elsewhere", http.StatusFound)
	})
	got, err := newProber(t, Config{}).get(t.Context(), at, "/page?a=b")
	if err != nil || got.status != http.StatusFound {
		t.Errorf("get: %d, %v; want the redirect itself", got.status, err)
	}
}

func TestGetTellsWhyItsContextEnded(t *testing.T) {
	t.Parallel()
	drained := errors.New("drained")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(drained)
	if _, err := newProber(t, Config{}).get(ctx, serve(t, func(http.ResponseWriter, *http.Request) {}), "/"); !errors.Is(err, drained) {
		t.Errorf("get: got %v, want the cause", err)
	}
}

func TestNewRefusesANegativeLimit(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Limit: -1}); err == nil {
		t.Error("New: no error")
	}
}

func TestText(t *testing.T) {
	t.Parallel()
	const page = `{"data": [{"id": "m\"1", "n": 4, "f": 1.50, "t": true, "o": {}, "l": [], "z": null}, [["deep"]]], "a.b": 1, "": 2}`
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/list":
			fmt.Fprint(w, `[7, {"x": "y"}]`)
		case "/text":
			fmt.Fprint(w, `"whole"`)
		case "/torn":
			fmt.Fprint(w, page[:20])
		case "/status":
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, page)
		default:
			fmt.Fprint(w, page)
		}
	})
	p := newProber(t, Config{})
	for _, tt := range []struct {
		path, field, want, err string
	}{
		{"/", "data[0].id", `m"1`, ""},
		{"/", "data[0].n", "4", ""},
		{"/", "data[0].f", "1.50", ""},
		{"/", "data[0].t", "true", ""},
		{"/", "data[1][0][0]", "deep", ""},
		{"/list", "[0]", "7", ""},
		{"/list", "[1].x", "y", ""},
		{"/text", "", "whole", ""},
		{"/", "data[0].z", "", "not a text"},
		{"/", "data[0].o", "", "not a text"},
		{"/", "data[0].l", "", "not a text"},
		{"/", "data", "", "not a text"},
		{"/", "data[2]", "", "there are 2"},
		{"/", "data[-1]", "", "no index"},
		{"/", "data[x]", "", "no index"},
		{"/", "data[0", "", "no index"},
		{"/", "data.id", "", "cannot unmarshal array"},
		{"/", "data[0][0]", "", "cannot unmarshal object"},
		{"/", "none", "", `there is no "none"`},
		{"/torn", "data", "", "at data"},
		{"/status", "data[0].id", "", "answered 503"},
	} {
		t.Run(tt.path+" "+tt.field, func(t *testing.T) {
			t.Parallel()
			got, err := p.Text(t.Context(), at, Field{Path: tt.path, Name: tt.field})
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || got != "" {
					t.Errorf("Text: got %q, %v, want an error with %q", got, err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("Text: got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

func FuzzLookup(f *testing.F) {
	f.Add([]byte(`{"data":[{"id":"x"}]}`), "data[0].id")
	f.Add([]byte(`[[1]]`), "[0][0]")
	f.Fuzz(func(_ *testing.T, page []byte, name string) { _, _ = lookup(page, name) })
}

func TestIdentify(t *testing.T) {
	t.Parallel()
	at := serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"id": "ours"}`) })
	p, field := newProber(t, Config{}), Field{Path: "/props", Name: "id"}
	if err := p.Identify(t.Context(), at, field, "ours"); err != nil {
		t.Errorf("Identify: %v", err)
	}
	var mismatch *MismatchError
	err := p.Identify(t.Context(), at, field, "theirs")
	if !errors.As(err, &mismatch) || err.Error() != `engine says id of /props is "ours", want "theirs"` {
		t.Errorf("Identify of another: got %v", err)
	}
	if err := p.Identify(t.Context(), at, Field{Path: "/props", Name: "none"}, "ours"); err == nil || errors.As(err, &mismatch) {
		t.Errorf("Identify without an answer: got %v, want an error that is no mismatch", err)
	}
}

func TestBroken(t *testing.T) {
	t.Parallel()
	closed := netip.MustParseAddrPort(func() string {
		s := httptest.NewServer(http.NotFoundHandler())
		defer s.Close()
		return s.Listener.Addr().String()
	}())
	resets := func(linger int) netip.AddrPort {
		return serve(t, func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			if tcp, ok := conn.(*net.TCPConn); !ok || tcp.SetLinger(linger) != nil || tcp.Close() != nil {
				t.Errorf("connection %v was not closed as wanted", conn)
			}
		})
	}
	slow := serve(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	for name, tt := range map[string]struct {
		at   netip.AddrPort
		want bool
	}{
		"refused": {closed, true},
		"reset":   {resets(0), true},
		"closed":  {resets(-1), true},
		"absent":  {serve(t, http.NotFound), false},
		"silent":  {slow, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := newProber(t, Config{Limit: 200 * time.Millisecond}).Text(t.Context(), tt.at, Field{Path: "/", Name: "x"})
			if err == nil || Broken(err) != tt.want {
				t.Errorf("Broken(%v) = %v, want %v", err, Broken(err), tt.want)
			}
		})
	}
}

func TestCount(t *testing.T) {
	t.Parallel()
	at := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"n": 4, "minus": -1, "text": "4x", "half": 0.5}`)
	})
	p := newProber(t, Config{})
	if got, err := p.Count(t.Context(), at, Field{Path: "/", Name: "n"}); err != nil || got != 4 {
		t.Errorf("Count: got %d, %v, want 4", got, err)
	}
	for _, name := range []string{"minus", "text", "half", "none"} {
		if got, err := p.Count(t.Context(), at, Field{Path: "/", Name: name}); err == nil {
			t.Errorf("Count of %s: got %d, want an error", name, got)
		}
	}
}

func TestInFlight(t *testing.T) {
	t.Parallel()
	const page = `# HELP engine:running requests
# TYPE engine:running gauge
engine:running{model="a}b\"{",node="1"} 2 1700000000000
engine:running{model="c"} 1.0
engine:waiting 3
engine:running_total 100
engine:odd NaN
engine:minus -1
engine:text many
engine:open{model="x
`
	at := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			w.WriteHeader(http.StatusNotFound)
		}
		fmt.Fprint(w, page)
	})
	p := newProber(t, Config{})
	for _, tt := range []struct {
		name, path string
		gauges     []string
		want       int
		err        string
	}{
		{"labels are added up", "/metrics", []string{"engine:running"}, 3, ""},
		{"names are added up", "/metrics", []string{"engine:running", "engine:waiting"}, 6, ""},
		{"one is missing", "/metrics", []string{"engine:running", "engine:gone"}, 0, "no metric engine:gone"},
		{"a prefix is another name", "/metrics", []string{"engine:run"}, 0, "no metric"},
		{"no number", "/metrics", []string{"engine:text"}, 0, "no metric"},
		{"labels without end", "/metrics", []string{"engine:open"}, 0, "no metric"},
		{"not a number", "/metrics", []string{"engine:odd"}, 0, "NaN"},
		{"negative", "/metrics", []string{"engine:minus"}, 0, "-1 is no number"},
		{"none named", "/metrics", nil, 0, "no number"},
		{"no page", "/none", []string{"engine:running"}, 0, "answered 404"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := p.InFlight(t.Context(), at, Activity{Path: tt.path, Gauges: tt.gauges})
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("InFlight: got %d, %v, want %d, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestActivityIsOneQuestion(t *testing.T) {
	t.Parallel()
	const page = `engine:running 2
engine:tokens_total{model="a"} 10.5
engine:tokens_total{model="b"} 4
engine:steps_total 100
engine:odd_total NaN
engine:all_total +Inf
`
	for _, tt := range []struct {
		name     string
		gauges   []string
		counters []string
		want     Load
		err      string
	}{
		{"labels and names are added up", []string{"engine:running"}, []string{"engine:tokens_total", "engine:steps_total"}, Load{2, 114.5, true}, ""},
		{"one is not there yet", []string{"engine:running"}, []string{"engine:tokens_total", "engine:new_total"}, Load{2, 14.5, true}, ""},
		{"none is there yet", []string{"engine:running"}, []string{"engine:new_total"}, Load{2, 0, false}, ""},
		{"none named", []string{"engine:running"}, nil, Load{2, 0, false}, ""},
		{"not a number", []string{"engine:running"}, []string{"engine:steps_total", "engine:odd_total"}, Load{2, 0, false}, ""},
		{"infinite", []string{"engine:running"}, []string{"engine:all_total"}, Load{2, 0, false}, ""},
		{"no gauge", []string{"engine:waiting"}, []string{"engine:steps_total"}, Load{}, "no metric engine:waiting"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			at := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				fmt.Fprint(w, page)
			})
			got, err := newProber(t, Config{}).Activity(t.Context(), at, Activity{Path: "/metrics", Gauges: tt.gauges, Counters: tt.counters})
			if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Activity: got %+v, %v, want %+v, %q", got, err, tt.want, tt.err)
			}
			if n := asked.Load(); n != 1 {
				t.Errorf("asked %d times, want once", n)
			}
		})
	}
}

func TestInFlightOfAStoppedEngineIsUnknown(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := newProber(t, Config{}).InFlight(t.Context(), at, Activity{Path: "/metrics", Gauges: []string{"g"}}); err == nil {
		t.Errorf("InFlight: got %d, want an error", got)
	}
}

func FuzzReadLoad(f *testing.F) {
	f.Add([]byte("a{b=\"c\"} 1\n"), "a")
	f.Fuzz(func(t *testing.T, page []byte, name string) {
		load, err := readLoad(page, Activity{Gauges: []string{name}, Counters: []string{name}})
		if load.InFlight < 0 || err != nil && load != (Load{}) || err == nil && !load.HasCounters || load.Counters != load.Counters {
			t.Errorf("readLoad(%q, %q): got %+v, %v", page, name, load, err)
		}
	})
}
