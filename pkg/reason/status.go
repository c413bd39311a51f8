// SPDX-License-Identifier: Apache-2.0

package reason

import (
	"context"
	"errors"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Domain is the domain of every ErrorInfo that Roundhouse sends.
const Domain = "roundhouse"

const (
	namePrefix = "REASON_"
	metaField  = "field"
	metaRemedy = "remedy"
	// metaUnknown keeps the name of a reason of a newer version.
	metaUnknown = "unknown_reason"
)

// Limits of what goes on the wire. A status travels in response headers, which some clients refuse beyond 8 KiB; with a
// message, a remedy, a field and some facts it has about 1 KiB.
const (
	maxMessageBytes = 1024
	maxValueBytes   = 512
	maxMetadata     = 16
	maxFields       = 8
)

// Status is what a client gets for err: for an *Error in its chain the code of its reason with one ErrorInfo, a
// BadRequest for its fields, a RetryInfo if it may be retried, and a PreconditionFailure where the code is
// FAILED_PRECONDITION. What wraps the *Error goes before its message. A gRPC status in the chain passes unchanged. The
// end of a context is CANCELLED: a deadline in it is the caller's. Every other error is INTERNAL.
//
// Addresses in texts lose their user info and query, which is where credentials are. Texts are cut at 1 KiB, metadata
// values at 512 bytes, and bytes that are not UTF-8 are replaced. Nil gives OK.
func Status(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	if e, ok := As(err); ok {
		return e.status(strings.Replace(err.Error(), e.Error(), e.text(), 1))
	}
	if s, ok := status.FromError(err); ok {
		return s
	}
	switch {
	case errors.Is(err, context.Canceled):
		return New(Cancelled, "the call was cancelled").GRPCStatus()
	case errors.Is(err, context.DeadlineExceeded):
		return New(Cancelled, "the call's deadline has passed", Remedy("give the call more time")).GRPCStatus()
	}
	return New(Internal, err.Error()).GRPCStatus()
}

// status writes e with text in place of its own.
func (e *Error) status(text string) *status.Status {
	text = clean(text, maxMessageBytes)
	remedy := clean(e.Remedy, maxValueBytes)
	shown := Error{Fields: e.fields(), Remedy: remedy}
	message := shown.prefix() + text + shown.suffix()
	code := Code(e.Reason)
	if e.code != codes.OK {
		code = e.code
	}
	if e.Reason == Unspecified {
		return status.New(code, message)
	}
	details := []protoadapt.MessageV1{e.info(remedy)}
	if len(shown.Fields) > 0 {
		details = append(details, badRequest(shown.Fields, text))
	}
	if e.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.RetryAfter)})
	}
	if code == codes.FailedPrecondition {
		details = append(details, e.precondition(text))
	}
	s := status.New(code, message)
	if full, err := s.WithDetails(details...); err == nil {
		return full
	}
	return s
}

// fields are the first of the error's fields, fit to be sent.
func (e *Error) fields() []FieldViolation {
	fields := slices.Clone(e.Fields[:min(len(e.Fields), maxFields)])
	for i, f := range fields {
		fields[i] = FieldViolation{Name: clean(f.Name, maxValueBytes), Problem: clean(f.Problem, maxValueBytes)}
	}
	return fields
}

func (e *Error) info(remedy string) *errdetails.ErrorInfo {
	meta := map[string]string{}
	keys := slices.Sorted(maps.Keys(e.Metadata))
	for _, key := range keys[:min(len(keys), maxMetadata)] {
		meta[clean(key, maxValueBytes)] = clean(e.Metadata[key], maxValueBytes)
	}
	if remedy != "" {
		meta[metaRemedy] = remedy
	}
	if len(e.Fields) > 0 {
		meta[metaField] = clean(e.Fields[0].Name, maxValueBytes)
	}
	return &errdetails.ErrorInfo{
		Reason:   strings.TrimPrefix(e.Reason.String(), namePrefix),
		Domain:   Domain,
		Metadata: meta,
	}
}

func badRequest(fields []FieldViolation, text string) *errdetails.BadRequest {
	bad := &errdetails.BadRequest{}
	for _, f := range fields {
		description := f.Problem
		if description == "" {
			description = text
		}
		bad.FieldViolations = append(bad.FieldViolations,
			&errdetails.BadRequest_FieldViolation{Field: f.Name, Description: description})
	}
	return bad
}

func (e *Error) precondition(text string) *errdetails.PreconditionFailure {
	subject := e.Metadata["pool_id"]
	if subject == "" && len(e.Fields) > 0 {
		subject = e.Fields[0].Name
	}
	return &errdetails.PreconditionFailure{Violations: []*errdetails.PreconditionFailure_Violation{{
		Type:        strings.TrimPrefix(e.Reason.String(), namePrefix),
		Subject:     clean(subject, maxValueBytes),
		Description: text,
	}}}
}

// clean makes a text fit for the wire: valid UTF-8, no credentials in addresses, at most limit bytes.
func clean(text string, limit int) string {
	text = Redact(strings.ToValidUTF8(text, "\uFFFD"))
	if len(text) <= limit {
		return text
	}
	const ellipsis = "..."
	cut := limit - len(ellipsis)
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + ellipsis
}

// Redact takes user info and query, which is where credentials are, out of every address in text. Status does it to all
// that it sends; what goes elsewhere, such as a log, is redacted by whoever sends it. Doing it twice changes nothing.
func Redact(text string) string {
	if !strings.Contains(text, "://") {
		return text
	}
	return regexp.MustCompile(`(\w://)(?:[^\s/?#"']*@)?([^\s?#"']*)(?:\?[^\s"]*)?`).ReplaceAllString(text, "$1$2")
}
