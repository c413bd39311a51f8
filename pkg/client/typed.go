// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
)

// route is the way to one service. It knows why the service cannot be reached, which gRPC tells in words only.
type route struct {
	address wire.Address

	mu      sync.Mutex // guards what follows
	failure error      // of the last attempt to connect; nil if it went well
}

// dial opens a connection.
func (r *route) dial(ctx context.Context, _ string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, string(r.address.Network), r.address.Name)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failure = err
	if failed, ok := errors.AsType[*net.OpError](err); ok {
		r.failure = failed.Err // without the address, which the caller knows
	}
	return conn, err
}

// typed is what a caller sees for the error of a call.
func (r *route) typed(err error) error {
	if _, done := reason.As(err); done || err == nil {
		return err
	}
	e := reason.FromStatus(err)
	if e.Reason != reason.Unspecified || status.Code(err) != codes.Unavailable {
		return e
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Message = "the service ended the connection"
	if r.failure != nil {
		e.Message = ""
		reason.Cause(r.failure)(e)
	}
	return e
}

// typeUnary makes the error of a call typed.
func (r *route) typeUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
	opts ...grpc.CallOption) error {
	return r.typed(invoke(ctx, method, req, reply, conn, opts...))
}

// typeStream makes the errors of a stream typed.
func (r *route) typeStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer,
	opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, r.typed(err)
	}
	return typedStream{stream, r}, nil
}

// typedStream is a stream whose errors are typed. The end of the stream is io.EOF, as gRPC has it.
type typedStream struct {
	grpc.ClientStream
	route *route
}

func (s typedStream) Header() (metadata.MD, error) {
	header, err := s.ClientStream.Header()
	return header, s.route.typed(err)
}

func (s typedStream) SendMsg(m any) error { return s.typedUnlessEOF(s.ClientStream.SendMsg(m)) }

func (s typedStream) RecvMsg(m any) error { return s.typedUnlessEOF(s.ClientStream.RecvMsg(m)) }

func (s typedStream) CloseSend() error { return s.route.typed(s.ClientStream.CloseSend()) }

func (s typedStream) typedUnlessEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return s.route.typed(err)
}
