// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"os"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// maxFileBytes is far above any honest request and below the services' own limit of 4 MiB.
const maxFileBytes = 1 << 20

// readFile fills message from the file at path, or from stdin if path is "-".
func readFile(path string, stdin io.Reader, message proto.Message) error {
	source, name := stdin, "standard input"
	if path != "-" {
		name = path
		file, err := os.Open(path)
		if err != nil {
			return reason.New(reason.InvalidParams, "cannot be read", reason.Field(path),
				reason.Remedy("check the path and its permissions"), reason.Cause(errors.Unwrap(err)))
		}
		defer func() { _ = file.Close() }() // only read
		source = file
	}
	data, err := io.ReadAll(io.LimitReader(source, maxFileBytes+1))
	if err != nil {
		return reason.New(reason.InvalidParams, "cannot be read", reason.Field(name),
			reason.Remedy("give a readable file"), reason.Cause(err))
	}
	if len(data) > maxFileBytes {
		return reason.New(reason.InvalidParams, "is larger than 1 MiB", reason.Field(name),
			reason.Remedy("give the file that holds the request"))
	}
	return decode(name, data, message)
}

// decode fills message from data, the JSON or YAML of its JSON form. name says in errors where data came from.
func decode(name string, data []byte, message proto.Message) error {
	text := data
	if !json.Valid(data) {
		converted, err := yamlToJSON(data)
		if err != nil {
			return reason.New(reason.InvalidParams, "", reason.Field(name),
				reason.Remedy("give the request as JSON or YAML"), reason.Cause(err))
		}
		text = converted
	}
	if err := checkKeys(text, message.ProtoReflect().Descriptor(), ""); err != nil {
		return cmp.Or(mistaken(name, text, message), err)
	}
	if err := protojson.Unmarshal(text, message); err != nil {
		return reason.New(reason.InvalidParams, "does not fit the request: "+withoutPrefix(err), reason.Field(name),
			reason.Remedy("see the messages and their fields in proto/roundhouse"))
	}
	return nil
}

// mistaken says that a file holds the request of another command than the one that wants message; nil if it does not.
func mistaken(name string, text []byte, message proto.Message) error {
	switch message.(type) {
	case *provisionerv1.PrepareRequest:
		if checkKeys(text, (&poolv1.PreloadRequest{}).ProtoReflect().Descriptor(), "") == nil {
			return reason.New(reason.InvalidParams, "holds a preload request", reason.Field(name),
				reason.Remedy("use `roundhouse preload -f "+name+"`, or give the file only what stands below spec.prepare, as spec"))
		}
	case *poolv1.PreloadRequest, *poolv1.ReloadRequest:
		if checkKeys(text, (&provisionerv1.PrepareRequest{}).ProtoReflect().Descriptor(), "") == nil {
			return reason.New(reason.InvalidParams, "holds a prepare request", reason.Field(name),
				reason.Remedy("use `roundhouse prepare -f "+name+"`, or move what stands below spec to spec.prepare"))
		}
	}
	return nil
}
