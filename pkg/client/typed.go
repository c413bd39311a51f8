// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// typeUnary makes the error of a call typed.
func typeUnary(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker,
	opts ...grpc.CallOption) error {
	return typed(invoke(ctx, method, req, reply, conn, opts...))
}

// typeStream makes the errors of a stream typed.
func typeStream(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer,
	opts ...grpc.CallOption) (grpc.ClientStream, error) {
	stream, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, typed(err)
	}
	return typedStream{stream}, nil
}

// typedStream is a stream whose errors are typed. The end of the stream is io.EOF, as gRPC has it.
type typedStream struct {
	grpc.ClientStream
}

func (s typedStream) Header() (metadata.MD, error) {
	header, err := s.ClientStream.Header()
	return header, typed(err)
}

func (s typedStream) SendMsg(m any) error { return typedUnlessEOF(s.ClientStream.SendMsg(m)) }

func (s typedStream) RecvMsg(m any) error { return typedUnlessEOF(s.ClientStream.RecvMsg(m)) }

func (s typedStream) CloseSend() error { return typed(s.ClientStream.CloseSend()) }

func typedUnlessEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.EOF
	}
	return typed(err)
}
