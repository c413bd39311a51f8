// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// host is the one Host of this program.
var host = sync.OnceValues(process.New)

// TestReadyWithARealEngine has the kernel tell whose sockets are whose.
func TestReadyWithARealEngine(t *testing.T) {
	t.Parallel()
	h, err := host()
	if err != nil {
		t.Fatal(err)
	}
	stranger := serve(t, answering(200))
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	freePort := netip.MustParseAddrPort(free.Addr().String()).Port()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	server := processtest.Script{Listen: "127.0.0.1:0", ListenAfter: 50 * time.Millisecond, ReadyAfter: 50 * time.Millisecond}
	fixed := server
	fixed.Listen = fmt.Sprintf("127.0.0.1:%d", freePort)
	late := processtest.Script{Listen: stranger.String()}
	for _, tt := range []struct {
		name   string
		script processtest.Script
		port   uint16
		want   reason.Reason
	}{
		{"picks a port", server, 0, reason.Unspecified},
		{"is told a port", fixed, freePort, reason.Unspecified},
		{"serves from a child", processtest.Script{Children: []processtest.Child{{Script: server}}}, 0, reason.Unspecified},
		{"dies", processtest.Script{End: &processtest.End{Code: 5}}, 0, reason.WorkerStartFailed},
		{"dies of a taken port", late, stranger.Port(), reason.PortInUse},
		{"does not notice a taken port", processtest.Script{}, stranger.Port(), reason.PortInUse},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := start(t, h, tt.script)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			w := wait(p)
			w.Holders, w.Port = h, tt.port
			got, err := newProber(t, Config{}).Ready(ctx, w)
			if reason.Of(err) != tt.want {
				t.Fatalf("Ready: got %+v, %v, want %v", got, err, tt.want)
			}
			if e, ok := reason.As(err); ok && e.Reason == reason.PortInUse && e.Metadata["holder_pid"] != fmt.Sprint(os.Getpid()) {
				t.Errorf("holder: got %s, want this test, %d", e.Metadata["holder_pid"], os.Getpid())
			}
			if tt.port != 0 && err == nil && got.Endpoint.Port() != tt.port {
				t.Errorf("endpoint: got %v, want port %d", got.Endpoint, tt.port)
			}
		})
	}
}

// start starts a scripted engine that is gone when the test ends.
func start(t testing.TB, h *process.Host, s processtest.Script) *process.Process {
	t.Helper()
	exe, args, err := processtest.Command(s)
	if err != nil {
		t.Fatal(err)
	}
	p, err := h.Spawn(process.Command{
		Executable: exe, Args: args, Env: process.BaseEnv(os.Environ()), Nonce: process.NewNonce(),
		LogPath: filepath.Join(t.TempDir(), "engine.log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := p.Stop(ctx, process.Policy{}); err != nil {
			t.Error(err)
		}
	})
	return p
}

// BenchmarkReady tells how long after an engine got ready that is noticed, and compares with asking every millisecond.
func BenchmarkReady(b *testing.B) {
	h, err := host()
	if err != nil {
		b.Fatal(err)
	}
	p := start(b, h, processtest.Script{})
	for _, load := range []time.Duration{20 * time.Millisecond, 160 * time.Millisecond, time.Second} {
		for _, how := range []string{"hint", "poll", "loop"} {
			b.Run(fmt.Sprintf("load=%v/by=%s", load, how), func(b *testing.B) {
				var late time.Duration
				for b.Loop() {
					late += lateness(b, p, load, how)
				}
				b.ReportMetric(float64(late)/float64(b.N)/float64(time.Millisecond), "ms-late")
			})
		}
	}
}

// lateness is how long after it got ready an engine was found ready. Sockets are looked up for a real process, as usual.
func lateness(b *testing.B, p *process.Process, load time.Duration, how string) time.Duration {
	b.Helper()
	var ready atomic.Bool
	at := serve(b, func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	ours := process.Sockets{Ours: []process.Listener{{Addr: at}}}
	e := &fakeEngine{done: make(chan struct{}), see: func(int64) (process.Sockets, error) {
		_, err := p.Sockets(0)
		return ours, err
	}}
	hint, readyAt := make(chan struct{}, 1), make(chan time.Time, 1)
	time.AfterFunc(load, func() {
		ready.Store(true)
		readyAt <- time.Now()
		if how == "hint" {
			hint <- struct{}{}
		}
	})
	prober := newProber(b, Config{})
	if how == "loop" {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for got, err := prober.get(b.Context(), at, "/health"); err != nil || got.status != http.StatusOK; got, err = prober.get(b.Context(), at, "/health") {
			<-tick.C
		}
	} else {
		w := wait(e)
		w.Hint = hint
		if _, err := prober.Ready(b.Context(), w); err != nil {
			b.Fatal(err)
		}
	}
	found := time.Now()
	return found.Sub(<-readyAt)
}
