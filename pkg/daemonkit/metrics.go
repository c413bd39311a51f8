// SPDX-License-Identifier: Apache-2.0

package daemonkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Limits of the listener for metrics. A scrape is one small request and one answer of some hundred KiB.
const (
	maxMetricsConns       = 32
	maxMetricsHeaderBytes = 16 << 10
	metricsReadTimeout    = 5 * time.Second
	metricsWriteTimeout   = 30 * time.Second
	// metricsIdleTimeout is longer than the usual minute between two scrapes, so that these need one connection.
	metricsIdleTimeout = 2 * time.Minute
	// metricsStopGrace is how long a scrape may go on when the daemon ends.
	metricsStopGrace = 2 * time.Second
)

// ServeMetrics answers HTTP with the handler until ctx ends, and then returns nil when the scrapes under way are answered or
// 2 s are over. It owns the listener, which must be a Unix socket or on loopback: any other is closed at once and the error is
// InvalidParams. The limits are for scrapes: at most 32 connections, of which each has 5 s to ask and 30 s to be answered.
func ServeMetrics(ctx context.Context, listener net.Listener, handler http.Handler, log *zap.Logger) error {
	if err := checkLocal(listener.Addr()); err != nil {
		return errors.Join(err, listener.Close())
	}
	complaints, err := zap.NewStdLogAt(log, zap.WarnLevel)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: metricsReadTimeout,
		ReadTimeout:       metricsReadTimeout,
		WriteTimeout:      metricsWriteTimeout,
		IdleTimeout:       metricsIdleTimeout,
		MaxHeaderBytes:    maxMetricsHeaderBytes,
		ErrorLog:          complaints,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(limit(listener, maxMetricsConns)) }()
	select {
	case err := <-served:
		return errors.Join(fmt.Errorf("serve metrics on %s: %w", listener.Addr(), err), server.Close())
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), metricsStopGrace, errors.New("a scrape does not end"))
	defer cancel()
	if server.Shutdown(ending) != nil {
		_ = server.Close() // Of what is cut off nobody needs to know.
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics on %s: %w", listener.Addr(), err)
	}
	return nil
}

// checkLocal refuses an address that others than this machine could reach.
func checkLocal(address net.Addr) error {
	switch a := address.(type) {
	case *net.UnixAddr:
		return nil
	case *net.TCPAddr:
		if a.IP.IsLoopback() {
			return nil
		}
	}
	return reason.New(reason.InvalidParams, fmt.Sprintf("metrics on %s could be read from other machines", address),
		reason.Field("metrics.listen"), reason.Remedy("use 127.0.0.1, [::1] or a Unix socket"))
}

// limited accepts a connection only while fewer than a number of them are open.
type limited struct {
	net.Listener

	free   chan struct{} // Holds one for each connection that may still be opened.
	closed chan struct{}
	close  func() error
}

func limit(listener net.Listener, conns int) net.Listener {
	l := &limited{Listener: listener, free: make(chan struct{}, conns), closed: make(chan struct{})}
	for range conns {
		l.free <- struct{}{}
	}
	l.close = sync.OnceValue(func() error {
		close(l.closed)
		return listener.Close()
	})
	return l
}

// Accept waits for room for a connection, and then for one. Close ends either.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case <-l.free:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	conn, err := l.Listener.Accept()
	if err != nil {
		l.free <- struct{}{}
		return nil, err
	}
	return &limitedConn{Conn: conn, release: sync.OnceFunc(func() { l.free <- struct{}{} })}, nil
}

// Close stops Accept. Repeating it changes nothing.
func (l *limited) Close() error { return l.close() }

// limitedConn makes room for another connection when it is closed.
type limitedConn struct {
	net.Conn

	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
