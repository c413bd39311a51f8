// SPDX-License-Identifier: Apache-2.0

// Package serverkit serves gRPC the way both Roundhouse daemons do: on Unix sockets that only their owner may use and
// on loopback TCP, with typed errors, validated requests, a log line for each call, health, reflection and every limit set.
//
// To handlers it promises: a request satisfies the rules of its proto and the size limit; the context ends when the
// caller is gone, and with a *reason.Error of ShuttingDown as its cause when the server cannot wait any longer; Stopping
// tells earlier that the server wants to end. A handler may return any error: reason.Status decides what the caller sees.
// A panic in a handler is logged with its stack and is INTERNAL for its caller, and for no other.
//
// A Server runs once. Its methods may be called from any goroutine. Nothing is stored but the sockets, which go when Run
// returns.
package serverkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Registration registers one service, as the generated RegisterXServer functions do.
type Registration func(grpc.ServiceRegistrar)

// Config is what a Server is made of.
type Config struct {
	// Logger gets one line per call and what happens to the server itself. Nil logs nothing.
	Logger *zap.Logger
	// Listens are the addresses to serve on, from ParseListen. At least one.
	Listens []Listen
	// Services are the services to serve. At least one. Health and reflection come by themselves.
	Services []Registration
	// AllowedUIDs may use the Unix sockets besides root and the server's own user. They also need the permission of the
	// file system, which a socket gives to its owner only.
	AllowedUIDs []uint32
	// StopGrace is how long calls in flight may go on when the server stops; 0 means 10 s.
	StopGrace time.Duration
}

// Server serves a fixed set of services.
type Server struct {
	log       *zap.Logger
	listens   []Listen
	services  recorder
	checks    *checks
	creds     *peerCredentials
	stopGrace time.Duration

	started   atomic.Bool
	ready     chan struct{} // closed once addresses is complete
	addresses []string
}

// New checks the configuration and compiles the rules of all requests. It opens nothing and starts nothing.
func New(cfg Config) (*Server, error) {
	if len(cfg.Listens) == 0 {
		return nil, reason.New(reason.InvalidParams, "no address to listen on", reason.Field(fieldListen),
			reason.Remedy("give at least one"))
	}
	if len(cfg.Services) == 0 {
		return nil, errors.New("make server: no services")
	}
	s := &Server{
		log:       cfg.Logger,
		listens:   slices.Clone(cfg.Listens),
		stopGrace: cfg.StopGrace,
		ready:     make(chan struct{}),
	}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	if s.stopGrace == 0 {
		s.stopGrace = defaultStopGrace
	}
	for _, register := range cfg.Services {
		register(&s.services)
	}
	var err error
	if s.checks, err = newChecks(s.services); err != nil {
		return nil, fmt.Errorf("make server: %w", err)
	}
	s.creds = newPeerCredentials(s.log, cfg.AllowedUIDs)
	return s, nil
}

// Ready is closed when the server accepts connections on all its addresses. It stays open if Run fails before that.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addresses are the addresses that are served, in the order of Config.Listens and with real ports in place of 0. It is
// nil before Ready.
func (s *Server) Addresses() []string {
	select {
	case <-s.ready:
		return slices.Clone(s.addresses)
	default:
		return nil
	}
}

// Run serves until ctx ends or a listener fails. Then it says NOT_SERVING, takes no new calls, lets those in flight go on
// for the grace, cancels what is left and returns when all is closed and the sockets are gone. A handler that ignores its
// cancelled context for a second more is abandoned.
//
// The error is nil after an end of ctx, and a *ListenError if an address could not be opened. A second Run is an error.
func (s *Server) Run(ctx context.Context) error {
	if !s.started.CompareAndSwap(false, true) {
		return errors.New("run server: it has run before")
	}
	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	stopping, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	cut, cutOff := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cutOff(nil)
	quiet, quieten := context.WithCancelCause(cut)
	defer quieten(nil)
	server, health := s.newGRPC(&lifetime{stopping: stopping, quiet: quiet, cut: cut})

	var serving sync.WaitGroup
	for i, listener := range listeners {
		serving.Go(func() {
			if err := server.Serve(listener); err != nil {
				stop(fmt.Errorf("serve %s: %w", s.addresses[i], err))
			}
		})
	}
	close(s.ready)
	s.log.Info("listening", zap.Strings("addresses", s.addresses))
	<-stopping.Done()
	health.Shutdown()
	s.end(server, quieten, cutOff)
	serving.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return context.Cause(stopping)
}

// listen opens every address, or none.
func (s *Server) listen(ctx context.Context) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, l := range s.listens {
		listener, err := open(ctx, l)
		if err != nil {
			for _, opened := range listeners {
				err = errors.Join(err, opened.Close())
			}
			return nil, &ListenError{Listen: l, Err: err}
		}
		listeners = append(listeners, listener)
		s.addresses = append(s.addresses, Listen{Network: l.Network, Name: listener.Addr().String()}.String())
	}
	return listeners, nil
}

// end stops the server within stopGrace and cutGrace.
func (s *Server) end(server *grpc.Server, quieten, cutOff context.CancelCauseFunc) {
	goingAway := reason.New(reason.ShuttingDown, "the service is shutting down", reason.Remedy("repeat the call in a moment"))
	watchers := time.AfterFunc(min(quietGrace, s.stopGrace), func() { quieten(goingAway) })
	defer watchers.Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.GracefulStop()
	}()
	grace := time.NewTimer(s.stopGrace)
	defer grace.Stop()
	select {
	case <-done:
		return
	case <-grace.C:
	}
	s.log.Warn("calls in flight are cancelled", zap.Duration("grace", s.stopGrace))
	cutOff(goingAway)
	last := time.NewTimer(cutGrace)
	defer last.Stop()
	select {
	case <-done:
	case <-last.C:
		s.log.Error("handlers ignore the end of their context", zap.Duration("grace", cutGrace))
		server.Stop()
	}
}
