// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
)

// checks refuse requests that are too large or break the rules of their proto.
type checks struct {
	validator protovalidate.Validator
}

// newChecks compiles the rules of every request of the services, so that no call waits for it and a rule that does not
// compile is found at start.
func newChecks(services recorder) (*checks, error) {
	var requests []protoreflect.MessageDescriptor
	for _, service := range services {
		desc, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.desc.ServiceName))
		if err != nil {
			return nil, fmt.Errorf("find descriptor of %s: %w", service.desc.ServiceName, err)
		}
		contract, ok := desc.(protoreflect.ServiceDescriptor)
		if !ok {
			return nil, fmt.Errorf("find descriptor of %s: it is no service", service.desc.ServiceName)
		}
		for i := range contract.Methods().Len() {
			requests = append(requests, contract.Methods().Get(i).Input())
		}
	}
	validator, err := protovalidate.New(protovalidate.WithMessageDescriptors(requests...))
	if err != nil {
		return nil, fmt.Errorf("compile rules of requests: %w", err)
	}
	return &checks{validator: validator}, nil
}

// check is nil for a request that may go to its handler, else a *reason.Error.
func (c *checks) check(req any) error {
	message, ok := req.(proto.Message)
	if !ok {
		return nil
	}
	if size := proto.Size(message); size > wire.MaxRequestBytes {
		return reason.New(reason.LimitExceeded, fmt.Sprintf("the request has %d bytes", size),
			reason.Remedy(fmt.Sprintf("send at most %d bytes", wire.MaxRequestBytes)),
			reason.Meta("limit_bytes", wire.MaxRequestBytes), reason.Meta("size_bytes", size))
	}
	err := c.validator.Validate(message)
	if err == nil {
		return nil
	}
	invalid, ok := errors.AsType[*protovalidate.ValidationError](err)
	if !ok || len(invalid.Violations) == 0 {
		return reason.New(reason.Internal, "the request could not be checked", reason.Cause(err))
	}
	return violations(message, invalid)
}

// violations names each field at fault and what it takes. With one it is the error's field; with more, each has its own
// problem.
func violations(message proto.Message, invalid *protovalidate.ValidationError) error {
	var options []reason.Option
	var problems, remedies []string
	for _, violation := range invalid.Violations {
		name := protovalidate.FieldPathString(violation.Proto.GetField())
		problem, takes := explain(message.ProtoReflect().Descriptor(), violation)
		if len(invalid.Violations) == 1 {
			return reason.New(reason.InvalidParams, problem, reason.Field(name), reason.Remedy("give "+takes))
		}
		options = append(options, reason.Violation(name, problem))
		problems = append(problems, name+": "+problem)
		remedies = append(remedies, name+": "+takes)
	}
	options = append(options, reason.Remedy("give for "+strings.Join(remedies, "; for ")))
	return reason.New(reason.InvalidParams, strings.Join(problems, "; "), options...)
}

func (c *checks) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := c.check(req); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func (c *checks) stream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(srv, &checkedStream{ServerStream: stream, checks: c})
}

// checkedStream gives its handler valid messages only.
type checkedStream struct {
	grpc.ServerStream
	checks *checks
}

func (s *checkedStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.checks.check(m)
}
