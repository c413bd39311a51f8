// SPDX-License-Identifier: Apache-2.0

// Package render shows to a person, or writes for a program, what Roundhouse answers.
//
// Text is for people and may change in any release. JSON is the protobuf JSON form of the messages with every default
// written out, one object a line: one for each event of a stream, one for any other answer. The package decides nothing and
// reads nothing but the clock it is given. A Progress may be used from several goroutines; the rest holds no state.
package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Format is how answers are written. It is a flag's value; the zero value is not valid.
type Format string

// The formats.
const (
	Text Format = "text"
	JSON Format = "json"
)

// Set takes the format from the command line.
func (f *Format) Set(text string) error {
	switch Format(text) {
	case Text, JSON:
		*f = Format(text)
		return nil
	default:
		return fmt.Errorf("unknown format %q: give text or json", text)
	}
}

// String is the format's name.
func (f *Format) String() string { return string(*f) }

// Type is the kind of value that the flag takes, for the help.
func (f *Format) Type() string { return "FORMAT" }

// Line writes message as one line of JSON.
func Line(w io.Writer, message proto.Message) error {
	text, err := marshal(message)
	if err != nil {
		return err
	}
	return write(w, append(text, '\n'))
}

// marshal is the compact JSON of message; the same message always gives the same bytes.
func marshal(message proto.Message) ([]byte, error) {
	text, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("write %s as JSON: %w", message.ProtoReflect().Descriptor().Name(), err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil { // protojson varies its spaces on purpose
		return nil, fmt.Errorf("compact JSON: %w", err)
	}
	return compact.Bytes(), nil
}

func write(w io.Writer, data []byte) error {
	if _, err := w.Write(data); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
