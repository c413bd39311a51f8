// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// requestLog writes one line for each call when it is over: error if Roundhouse is at fault, debug for gRPC's own
// services, else info. Of a request only the pool's id is logged.
type requestLog struct {
	log *zap.Logger
}

// ServerReporter begins the line of one call.
func (l requestLog) ServerReporter(ctx context.Context, meta interceptors.CallMeta) (interceptors.Reporter, context.Context) {
	return &requestLine{log: l.log, method: meta.FullMethod(), fields: callFields(ctx)}, ctx
}

func callFields(ctx context.Context) []zap.Field {
	fields := []zap.Field{zap.String("request_id", RequestID(ctx))}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(PeerInfo); ok {
			fields = append(fields, zap.Uint32("peer_uid", info.UID), zap.Int32("peer_pid", info.PID))
		}
	}
	return fields
}

// requestLine is the line of one call. Handlers of our services receive one message, before they send any.
type requestLine struct {
	interceptors.NoopReporter
	log    *zap.Logger
	method string
	fields []zap.Field
}

// PostMsgReceive keeps the pool's id.
func (l *requestLine) PostMsgReceive(req any, err error, _ time.Duration) {
	message, ok := req.(proto.Message)
	if err != nil || !ok {
		return
	}
	if id := poolID(message.ProtoReflect()); id != "" {
		l.fields = append(l.fields, zap.String("pool_id", id))
	}
}

// PostCall writes the line.
func (l *requestLine) PostCall(err error, duration time.Duration) {
	code := status.Code(err)
	line := l.log.Check(l.level(code), "request")
	if line == nil {
		return
	}
	fields := slices.Concat(l.fields, []zap.Field{
		zap.String("method", l.method), zap.Stringer("code", code), zap.Duration("duration", duration),
	})
	if err != nil {
		failure := reason.FromStatus(err)
		fields = append(fields, zap.String("reason", strings.TrimPrefix(failure.Reason.String(), "REASON_")),
			zap.String("error", failure.Error()))
	}
	line.Write(fields...)
}

func (l *requestLine) level(code codes.Code) zapcore.Level {
	switch {
	case isInfrastructure(l.method):
		return zapcore.DebugLevel
	case code == codes.Internal || code == codes.Unknown:
		return zapcore.ErrorLevel
	default:
		return zapcore.InfoLevel
	}
}

// poolID is the string field pool_id of a message or of a message directly in it; empty if there is none.
func poolID(message protoreflect.Message) string {
	if id := stringField(message); id != "" {
		return id
	}
	found := ""
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		if field.Message() != nil && !field.IsList() && !field.IsMap() {
			found = stringField(value.Message())
		}
		return found == ""
	})
	return found
}

func stringField(message protoreflect.Message) string {
	field := message.Descriptor().Fields().ByName("pool_id")
	if field == nil || field.Kind() != protoreflect.StringKind || field.IsList() {
		return ""
	}
	id := message.Get(field).String()
	return strings.ToValidUTF8(id[:min(len(id), maxLoggedIDBytes)], "")
}
