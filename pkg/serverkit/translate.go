// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// translate is what the caller gets for a handler's error. If the error is the end of the call's context and the context
// knows a reason for it, that reason is the error.
func translate(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := ctx.Err(); ended != nil && errors.Is(err, ended) {
		if _, typed := reason.As(err); !typed {
			if cause, known := reason.As(context.Cause(ctx)); known {
				err = cause
			}
		}
	}
	return reason.Status(err).Err()
}

func translateUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	answer, err := handle(ctx, req)
	if err != nil {
		return nil, translate(ctx, err)
	}
	return answer, nil
}

func translateStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return translate(stream.Context(), handle(srv, stream))
}

// recoverWith makes a panic of a handler an error of its call and logs the stack.
func recoverWith(log *zap.Logger) recovery.Option {
	return recovery.WithRecoveryHandlerContext(func(ctx context.Context, p any) error {
		id := RequestID(ctx)
		log.Error("handler panicked", zap.String("request_id", id), zap.String("panic", fmt.Sprint(p)),
			zap.ByteString("stack", debug.Stack()))
		return reason.New(reason.Internal, "a defect in Roundhouse ended the call", reason.Meta("request_id", id),
			reason.Remedy("report it with the log's lines of request "+id))
	})
}
