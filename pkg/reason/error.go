// SPDX-License-Identifier: Apache-2.0

package reason

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is a failure with a reason that a client can branch on. Make it with New.
type Error struct {
	// Reason is why. Unspecified only in an Error from FromStatus whose peer gave no reason of the contract.
	Reason Reason
	// Message says what was wrong, for people.
	Message string
	// Fields are the fields of the request that are at fault; none if the request is not at fault.
	Fields []FieldViolation
	// Remedy says what to do about it; empty if nothing is known to help.
	Remedy string
	// Metadata holds facts for programs, by key; never the keys "field" and "remedy", which the wire form uses itself.
	Metadata map[string]string
	// RetryAfter is how long to wait before the same call may do better; 0 means that repeating alone does not help.
	RetryAfter time.Duration

	cause error
	code  codes.Code // of a status that came without a reason; OK otherwise
}

// FieldViolation is one field of a request and what is wrong with it.
type FieldViolation struct {
	// Name is the path of the field in the request, such as spec.engine.kind.
	Name string
	// Problem is what is wrong with it; empty means what the error's message says.
	Problem string
}

// New makes an error. Unspecified becomes Internal. The reasons that the contract calls retriable get a default
// RetryAfter, which the option of that name replaces.
func New(r Reason, message string, opts ...Option) *Error {
	if r == Unspecified {
		r = Internal
	}
	e := &Error{Reason: r, Message: message, RetryAfter: defaultRetry(r)}
	for _, opt := range opts {
		opt(e)
	}
	return e
}

// defaultRetry is about how long the usual cause of a retriable reason lasts.
func defaultRetry(r Reason) time.Duration {
	switch r {
	case PoolBusy, ProvisionerUnavailable, ShuttingDown:
		return time.Second
	case FetchFailed:
		return 5 * time.Second
	case DiskFull:
		return 30 * time.Second
	default:
		return 0
	}
}

// Option adds a fact to an Error.
type Option func(*Error)

// Field names a field of the request that the message is about. It may be given more than once.
func Field(name string) Option { return Violation(name, "") }

// Violation names a field of the request and what is wrong with it, for errors about several fields.
func Violation(name, problem string) Option {
	return func(e *Error) { e.Fields = append(e.Fields, FieldViolation{Name: name, Problem: problem}) }
}

// Remedy says what the reader can do about it.
func Remedy(text string) Option {
	return func(e *Error) { e.Remedy = text }
}

// Scalar is what a metadata value can be made of.
type Scalar interface {
	~string | ~bool | ~int | ~int32 | ~int64 | ~uint | ~uint16 | ~uint32 | ~uint64 | ~float64
}

// Meta adds a fact for programs, written as fmt.Sprint writes it. The keys "field" and "remedy" are dropped.
func Meta[T Scalar](key string, value T) Option {
	return func(e *Error) {
		if key == metaField || key == metaRemedy {
			return
		}
		if e.Metadata == nil {
			e.Metadata = map[string]string{}
		}
		e.Metadata[key] = fmt.Sprint(value)
	}
}

// RetryAfter says when the same call may do better; 0 says that repeating alone does not help.
func RetryAfter(d time.Duration) Option {
	return func(e *Error) { e.RetryAfter = max(d, 0) }
}

// Cause is the error underneath. errors.Is and errors.As see it, and its text follows the message.
func Cause(err error) Option {
	return func(e *Error) { e.cause = err }
}

// Error reads `field: message: cause: remedy`, without the parts that are not there and without what Redact takes out.
// Fields with problems of their own are not repeated: the message tells of them.
func (e *Error) Error() string { return Redact(e.prefix() + e.text() + e.suffix()) }

// Unwrap is the error underneath, or nil.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus is Status(e). By it status.Code and status.FromError understand an Error.
func (e *Error) GRPCStatus() *status.Status { return e.status(e.text()) }

func (e *Error) text() string {
	if e.cause == nil {
		return e.Message
	}
	if e.Message == "" {
		return e.cause.Error()
	}
	return e.Message + ": " + e.cause.Error()
}

func (e *Error) prefix() string {
	names := make([]string, 0, len(e.Fields))
	for _, f := range e.Fields {
		if f.Problem == "" {
			names = append(names, f.Name)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return strings.Join(names, ", ") + ": "
}

func (e *Error) suffix() string {
	if e.Remedy == "" {
		return ""
	}
	return ": " + e.Remedy
}

// As finds the outermost *Error in err's chain. It does not look into gRPC statuses; see FromStatus.
func As(err error) (*Error, bool) {
	return errors.AsType[*Error](err)
}

// Of is the reason that a client would see for err: that of its *Error or gRPC status; Cancelled for the end of a
// context; Unspecified for nil and for a status without a reason; Internal for every other error.
func Of(err error) Reason {
	if err == nil {
		return Unspecified
	}
	if e, ok := As(err); ok {
		return e.Reason
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return Cancelled
	}
	return FromStatus(err).Reason
}
