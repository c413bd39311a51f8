// SPDX-License-Identifier: Apache-2.0

package daemonkit_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// slow answers when it is let.
type slow struct{ asked, let chan struct{} }

func (s slow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked <- struct{}{}
	select {
	case <-s.let:
	case <-r.Context().Done():
	}
	fmt.Fprint(w, "answer")
}

// wait returns when somebody has asked.
func (s slow) wait(t *testing.T) {
	t.Helper()
	patience := time.NewTimer(10 * time.Second)
	defer patience.Stop()
	select {
	case <-s.asked:
	case <-patience.C:
		t.Fatal("no request arrives")
	}
}

func newSlow() slow { return slow{asked: make(chan struct{}, 100), let: make(chan struct{})} }

// serveMetrics serves until the test or stop ends it.
func serveMetrics(t *testing.T, network, address string, handler http.Handler) (at net.Addr, stop func() error) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemonkit.ServeMetrics(ctx, listener, handler, zap.NewNop()) }()
	stop = func() error {
		cancel()
		err := <-ended
		ended <- err
		return err
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("ServeMetrics: %v", err)
		}
	})
	return listener.Addr(), stop
}

// ask sends one request on a connection of its own.
func ask(t *testing.T, at net.Addr) (net.Conn, func() (string, error)) {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(t.Context(), at.Network(), at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return conn, func() (string, error) {
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return "", err
		}
		defer func() { _ = answer.Body.Close() }()
		body, err := io.ReadAll(answer.Body)
		return string(body), err
	}
}

func TestServeMetricsOnLocalAddresses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ network, address string }{
		{"tcp", "127.0.0.1:0"}, {"unix", filepath.Join(testkit.ShortDir(t), "metrics.sock")},
	} {
		t.Run(tt.network, func(t *testing.T) {
			t.Parallel()
			handler := newSlow()
			close(handler.let)
			at, stop := serveMetrics(t, tt.network, tt.address, handler)
			_, read := ask(t, at)
			if got, err := read(); got != "answer" || err != nil {
				t.Errorf("answer %q, %v", got, err)
			}
			if err := stop(); err != nil {
				t.Errorf("ServeMetrics: %v", err)
			}
			if _, err := new(net.Dialer).DialContext(t.Context(), at.Network(), at.String()); err == nil {
				t.Error("it listens after its end")
			}
		})
	}
}

// foreign is a listener whose address others can reach.
type foreign struct {
	net.Listener
	address net.Addr
}

func (f foreign) Addr() net.Addr { return f.address }

func TestServeMetricsRefusesOtherAddresses(t *testing.T) {
	t.Parallel()
	for _, address := range []net.Addr{
		&net.TCPAddr{IP: net.IPv4zero, Port: 9202}, &net.TCPAddr{IP: net.IPv6unspecified}, &net.TCPAddr{},
		&net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)}, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)},
	} {
		t.Run(address.String(), func(t *testing.T) {
			t.Parallel()
			listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err = daemonkit.ServeMetrics(ctx, foreign{listener, address}, newSlow(), zap.NewNop())
			if reason.Of(err) != reason.InvalidParams || !strings.Contains(err.Error(), address.String()) {
				t.Errorf("ServeMetrics on %s: %v", address, err)
			}
			if _, err := listener.Accept(); err == nil {
				t.Error("the listener is still open")
			}
		})
	}
}

func TestServeMetricsFailsWithItsListener(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = listener.Close()
	if err := daemonkit.ServeMetrics(t.Context(), listener, newSlow(), zap.NewNop()); err == nil {
		t.Error("no error on a closed listener")
	}
}

func TestEndOfServeMetricsLetsAScrapeFinish(t *testing.T) {
	t.Parallel()
	handler := newSlow()
	at, stop := serveMetrics(t, "tcp", "127.0.0.1:0", handler)
	_, read := ask(t, at)
	handler.wait(t)
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	testkit.Eventually(t, 10*time.Second, "nobody listens any more", func() (bool, string) {
		conn, err := new(net.Dialer).DialContext(t.Context(), at.Network(), at.String())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil, "it listens"
	})
	close(handler.let)
	if got, err := read(); got != "answer" || err != nil {
		t.Errorf("the scrape under way got %q, %v", got, err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("ServeMetrics: %v", err)
	}
}

func TestEndOfServeMetricsCutsAScrapeThatDoesNotEnd(t *testing.T) {
	t.Parallel()
	handler := newSlow()
	at, stop := serveMetrics(t, "tcp", "127.0.0.1:0", handler)
	_, read := ask(t, at)
	handler.wait(t)
	if err := stop(); err != nil {
		t.Errorf("ServeMetrics: %v", err)
	}
	if got, err := read(); err == nil {
		t.Errorf("the scrape got %q", got)
	}
}

// TestServeMetricsBoundsConnections opens one more than there may be: it is served when another has gone.
func TestServeMetricsBoundsConnections(t *testing.T) {
	t.Parallel()
	const most = 32
	handler := newSlow()
	at, _ := serveMetrics(t, "tcp", "127.0.0.1:0", handler)
	conns := make([]net.Conn, most)
	for i := range conns {
		conns[i], _ = ask(t, at)
		handler.wait(t)
	}
	_, read := ask(t, at)
	patience := time.NewTimer(200 * time.Millisecond)
	defer patience.Stop()
	select {
	case <-handler.asked:
		t.Fatalf("connection %d is served beside all others", most+1)
	case <-patience.C:
	}
	_ = conns[0].Close()
	handler.wait(t)
	close(handler.let)
	if got, err := read(); got != "answer" || err != nil {
		t.Errorf("the last one got %q, %v", got, err)
	}
}

// TestEndOfServeMetricsWithAllConnectionsInUse proves that the end does not wait for room.
func TestEndOfServeMetricsWithAllConnectionsInUse(t *testing.T) {
	t.Parallel()
	handler := newSlow()
	at, stop := serveMetrics(t, "tcp", "127.0.0.1:0", handler)
	for range 32 {
		ask(t, at)
		handler.wait(t)
	}
	if err := stop(); err != nil {
		t.Errorf("ServeMetrics: %v", err)
	}
}
