// SPDX-License-Identifier: Apache-2.0

package reason

import (
	"context"
	"errors"
	"maps"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// FromStatus reads what Status wrote from the error of a gRPC call. An *Error in the chain is returned as it is.
// A status without a reason of ours keeps its code, which status.Code of the result tells, and gets a reason where only
// one fits: CANCELLED and DEADLINE_EXCEEDED are Cancelled, RESOURCE_EXHAUSTED is LimitExceeded, since that is how gRPC
// itself refuses a message for its size; otherwise Reason is Unspecified. The end of a context is Cancelled; an error that
// is none of these is Internal, with the error as its cause.
//
// For nil it returns nil of type *Error: test err before the call, not the result as an error.
func FromStatus(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := As(err); ok {
		return e
	}
	s, ok := status.FromError(err)
	if !ok {
		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
			return &Error{Reason: Cancelled, cause: err}
		}
		return &Error{Reason: Internal, cause: err}
	}
	e := &Error{}
	var bad *errdetails.BadRequest
	for _, detail := range s.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			e.readInfo(d)
		case *errdetails.BadRequest:
			bad = d
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	e.readText(s.Message(), bad)
	if e.Reason == Unspecified {
		e.Reason, e.code = guess(s.Code()), s.Code()
	}
	return e
}

// guess is the reason of a status that came without one.
func guess(code codes.Code) Reason {
	switch code {
	case codes.Canceled, codes.DeadlineExceeded:
		return Cancelled
	case codes.ResourceExhausted:
		return LimitExceeded
	default:
		return Unspecified
	}
}

func (e *Error) readInfo(info *errdetails.ErrorInfo) {
	if info.GetDomain() != Domain {
		return
	}
	meta := maps.Clone(info.GetMetadata())
	e.Remedy = meta[metaRemedy]
	if name := meta[metaField]; name != "" {
		e.Fields = []FieldViolation{{Name: name}}
	}
	delete(meta, metaRemedy)
	delete(meta, metaField)
	value, known := enginev1.Reason_value[namePrefix+info.GetReason()]
	if !known {
		if meta == nil {
			meta = map[string]string{}
		}
		meta[metaUnknown] = info.GetReason()
	}
	e.Reason = Reason(value)
	if len(meta) > 0 {
		e.Metadata = meta
	}
}

// readText takes the message apart: what the details tell as well is not repeated in Message.
func (e *Error) readText(message string, bad *errdetails.BadRequest) {
	message = strings.TrimSuffix(message, e.suffix())
	if bad != nil {
		e.Fields = readFields(message, bad.GetFieldViolations())
	}
	e.Message = strings.TrimPrefix(message, e.prefix())
}

// readFields finds out which fields had no problem of their own: those whose description is the rest of a message that
// begins with their names.
func readFields(message string, violations []*errdetails.BadRequest_FieldViolation) []FieldViolation {
	fields := make([]FieldViolation, len(violations))
	for i, v := range violations {
		fields[i] = FieldViolation{Name: v.GetField(), Problem: v.GetDescription()}
	}
	for _, v := range violations {
		candidate := &Error{Fields: append([]FieldViolation(nil), fields...)}
		for i := range fields {
			if fields[i].Problem == v.GetDescription() {
				candidate.Fields[i].Problem = ""
			}
		}
		if candidate.prefix()+v.GetDescription() == message {
			return candidate.Fields
		}
	}
	return fields
}
