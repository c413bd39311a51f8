// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"context"
	"strings"
	"sync"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// requestIDHeader is where a caller may name its call, and where the answer tells the name: in the header, or in the
// trailer of a call that fails before its first message, since a header would keep clients from repeating it.
const requestIDHeader = "x-request-id"

// lifetime is how far a running server has come: stopping ends when it wants to end, quiet when it will not wait for
// health watchers and the like any longer, cut when it will not wait for anybody.
type lifetime struct {
	stopping context.Context
	quiet    context.Context
	cut      context.Context
}

// call is what a call's context knows.
type call struct {
	requestID string
	stopping  <-chan struct{}
}

type callKey struct{}

func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// RequestID is the id of the call that ctx belongs to: the caller's x-request-id if it has at most 128 printable ASCII
// characters, else a new UUID. It is empty outside of a call.
func RequestID(ctx context.Context) string { return callOf(ctx).requestID }

// Stopping is closed when the server that serves ctx's call begins to stop. A stream that could go on for ever should
// end then with ShuttingDown; if it does not, it holds up the stop until the grace is over. Outside of a call it is nil.
func Stopping(ctx context.Context) <-chan struct{} { return callOf(ctx).stopping }

// begin gives a call its id and ties the call's end to the server's. The function returned must be called when the call
// is over.
func (l *lifetime) begin(ctx context.Context, method string) (context.Context, func()) {
	c := call{requestID: requestID(ctx), stopping: l.stopping.Done()}
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, callKey{}, c))
	end := l.cut
	if isInfrastructure(method) {
		end = l.quiet
	}
	release := context.AfterFunc(end, func() { cancel(context.Cause(end)) })
	return ctx, func() {
		release()
		cancel(nil)
	}
}

func (l *lifetime) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, end := l.begin(ctx, info.FullMethod)
	defer end()
	answer, err := handle(ctx, req)
	id := metadata.Pairs(requestIDHeader, RequestID(ctx))
	// These fail only on calls that are over, and then nobody misses the id.
	if err != nil {
		_ = grpc.SetTrailer(ctx, id)
	} else {
		_ = grpc.SetHeader(ctx, id)
	}
	return answer, err
}

func (l *lifetime) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, end := l.begin(stream.Context(), info.FullMethod)
	defer end()
	s := &callStream{ServerStream: stream, ctx: ctx}
	err := handle(srv, s)
	s.named.Do(func() { stream.SetTrailer(metadata.Pairs(requestIDHeader, RequestID(ctx))) })
	return err
}

// callStream is a stream with the call's context, whose first message takes the call's id along.
type callStream struct {
	grpc.ServerStream
	ctx   context.Context
	named sync.Once
}

func (s *callStream) SendMsg(m any) error {
	s.named.Do(func() { _ = s.SetHeader(metadata.Pairs(requestIDHeader, RequestID(s.ctx))) })
	return s.ServerStream.SendMsg(m)
}

func (s *callStream) Context() context.Context { return s.ctx }

// requestID is the caller's id if it is fit to be logged, else a new one.
func requestID(ctx context.Context) string {
	given := metadata.ValueFromIncomingContext(ctx, requestIDHeader)
	if len(given) == 1 && isPrintable(given[0]) {
		return given[0]
	}
	return uuid.Must(uuid.NewV7()).String()
}

func isPrintable(id string) bool {
	if id == "" || len(id) > maxRequestIDBytes {
		return false
	}
	return strings.IndexFunc(id, func(r rune) bool { return r < '!' || r > '~' }) < 0
}

// isInfrastructure tells gRPC's own services from ours: they are logged quietly and do not hold up a stop.
func isInfrastructure(method string) bool { return strings.HasPrefix(method, "/grpc.") }
