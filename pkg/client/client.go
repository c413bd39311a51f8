// SPDX-License-Identifier: Apache-2.0

// Package client reaches Roundhouse services from Go: it dials a Unix socket or loopback TCP, turns every failure into a
// *reason.Error, and follows a pool manager's pools across broken connections.
//
// Dial gives an ordinary gRPC connection; the generated clients (poolv1.NewPoolManagerServiceClient,
// provisionerv1.NewProvisionerServiceClient) take it. Reads that change nothing are repeated by themselves a few times
// while the service is UNAVAILABLE; calls that start or stop work never are. Connections may be used from any goroutine.
// The caller owns the connection and closes it.
package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/roundhouse-llm/roundhouse/pkg/wire"
)

const (
	// fieldTarget names the address in errors about it.
	fieldTarget = "target"
	// authority is the server's name in requests; no Roundhouse service looks at it.
	authority = "localhost"
	// connectTimeout is long for a socket on the same machine, whose server may be busy all the same.
	connectTimeout = 5 * time.Second
	// pingIdle and pingTimeout find a service that is stopped or hangs while a call waits for it. The server allows a
	// ping every 10 s.
	pingIdle    = 30 * time.Second
	pingTimeout = 10 * time.Second
)

// serviceConfig repeats idempotent reads up to 3 times within about 2 s, and stops doing so for a service that fails
// more often than it answers.
const serviceConfig = `{
  "methodConfig": [{
    "name": [
      {"service": "roundhouse.provisioner.v1.ProvisionerService", "method": "Plan"},
      {"service": "roundhouse.provisioner.v1.ProvisionerService", "method": "GetPrepared"},
      {"service": "roundhouse.provisioner.v1.ProvisionerService", "method": "ListPrepared"},
      {"service": "roundhouse.provisioner.v1.ProvisionerService", "method": "Preflight"},
      {"service": "roundhouse.pool.v1.PoolManagerService", "method": "GetPool"},
      {"service": "roundhouse.pool.v1.PoolManagerService", "method": "ListPools"}
    ],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.1s",
      "maxBackoff": "1s",
      "backoffMultiplier": 3,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.5}
}`

// Option changes how Dial connects.
type Option func(*settings)

type settings struct {
	userAgent string
}

// WithUserAgent names the program in the service's view of its callers.
func WithUserAgent(name string) Option {
	return func(s *settings) { s.userAgent = name }
}

// Dial makes a connection to unix:///absolute/path, tcp://127.0.0.1:PORT or 127.0.0.1:PORT. It does not wait for the
// service: see WaitReady. Another target is InvalidParams for the field target. Every error of a call on the connection,
// io.EOF apart, is a *reason.Error, which status.Code understands too. If the service could not be reached its code is
// UNAVAILABLE, its reason Unspecified, and its cause what the operating system said, such as syscall.EACCES.
func Dial(target string, opts ...Option) (*grpc.ClientConn, error) {
	address, err := wire.ParseAddress(fieldTarget, target)
	if err != nil {
		return nil, err
	}
	var set settings
	for _, opt := range opts {
		opt(&set)
	}
	route := &route{address: address}
	conn, err := grpc.NewClient("passthrough:///"+authority,
		grpc.WithContextDialer(route.dial),
		grpc.WithAuthority(authority),
		grpc.WithUserAgent(set.userAgent),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(serviceConfig),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingIdle, Timeout: pingTimeout}),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallSendMsgSize(wire.MaxRequestBytes),
			grpc.MaxCallRecvMsgSize(wire.MaxResponseBytes),
		),
		grpc.WithUnaryInterceptor(route.typeUnary),
		grpc.WithStreamInterceptor(route.typeStream),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	return conn, nil
}

// WaitReady returns nil as soon as the connection is up, and the cause of ctx when that ends first. It connects again and
// again until then.
func WaitReady(ctx context.Context, conn *grpc.ClientConn) error {
	for {
		state := conn.GetState()
		switch state {
		case connectivity.Ready:
			return nil
		case connectivity.Shutdown:
			return errors.New("wait for connection: it is closed")
		case connectivity.Idle:
			conn.Connect()
		case connectivity.Connecting, connectivity.TransientFailure:
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("wait for connection: %w", context.Cause(ctx))
		}
	}
}
