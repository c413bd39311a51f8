// SPDX-License-Identifier: Apache-2.0

package render

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Failure writes why a command failed: the reason, the message, each field that is at fault, and the remedy. word is
// the reason to show, which is the error's own unless the command knows better.
func Failure(w io.Writer, format Format, word string, err error) error {
	e := reason.FromStatus(err)
	if format == JSON {
		return failureJSON(w, word, message(err, e), e)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "error: %s: %s\n", word, message(err, e))
	for _, field := range e.Fields {
		if field.Problem != "" {
			fmt.Fprintf(&text, "  %s: %s\n", field.Name, field.Problem)
		}
	}
	if e.Remedy != "" {
		fmt.Fprintf(&text, "remedy: %s\n", e.Remedy)
	}
	return write(w, []byte(text.String()))
}

// message is what went wrong without the remedy, which is shown by itself.
func message(err error, e *reason.Error) string {
	text := e.Error()
	if wrapped, ok := reason.As(err); ok && wrapped == e {
		text = err.Error()
	}
	return strings.TrimSuffix(text, ": "+e.Remedy)
}

// failure is an error in JSON output.
type failure struct {
	Reason   string            `json:"reason"`
	Message  string            `json:"message"`
	Fields   []fieldFailure    `json:"fields,omitempty"`
	Remedy   string            `json:"remedy,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// fieldFailure is one field at fault.
type fieldFailure struct {
	Field   string `json:"field"`
	Problem string `json:"problem,omitempty"`
}

func failureJSON(w io.Writer, word, text string, e *reason.Error) error {
	shown := failure{Reason: word, Message: text, Remedy: e.Remedy, Metadata: e.Metadata}
	for _, field := range e.Fields {
		shown.Fields = append(shown.Fields, fieldFailure{Field: field.Name, Problem: field.Problem})
	}
	line, err := json.Marshal(struct {
		Error failure `json:"error"`
	}{shown})
	if err != nil {
		return fmt.Errorf("write error as JSON: %w", err)
	}
	return write(w, append(line, '\n'))
}
