// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
)

// fieldListen names the setting in errors about addresses.
const fieldListen = "listen"

// Listen is an address to serve on.
type Listen = wire.Address

// ParseListen reads unix:///absolute/path, tcp://127.0.0.1:9200, tcp://[::1]:0 or 127.0.0.1:9200. Port 0 picks a free
// port. Anything but a Unix socket or a literal loopback address is InvalidParams for the field listen.
func ParseListen(text string) (Listen, error) { return wire.ParseAddress(fieldListen, text) }

// ListenError is an address that could not be opened.
type ListenError struct {
	// Listen is the address.
	Listen Listen
	// Err is why.
	Err error
}

// Error names the address and the cause.
func (e *ListenError) Error() string { return fmt.Sprintf("listen on %s: %v", e.Listen, e.Err) }

// Unwrap is the cause.
func (e *ListenError) Unwrap() error { return e.Err }

// Open listens on an address, for something that is no gRPC. Its error is a *ListenError.
func Open(ctx context.Context, l Listen) (net.Listener, error) {
	listener, err := open(ctx, l)
	if err != nil {
		return nil, &ListenError{Listen: l, Err: err}
	}
	return listener, nil
}

// open listens on an address. Closing the listener leaves nothing behind.
func open(ctx context.Context, l Listen) (net.Listener, error) {
	if l.Network == wire.Unix {
		return openSocket(ctx, l.Name)
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, string(l.Network), l.Name)
	if errors.Is(err, syscall.EADDRINUSE) {
		_, port, _ := net.SplitHostPort(l.Name)
		return nil, reason.New(reason.PortInUse, "the port belongs to another process", reason.Field(fieldListen),
			reason.Remedy("stop that process or choose another port"), reason.Meta("port", port), reason.Cause(err))
	}
	return listener, err
}
