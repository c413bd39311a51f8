// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// Field is a value in the JSON that a page answers with.
type Field struct {
	Path string // page, with query.
	Name string // names joined by dots, indexes in brackets, such as data[0].id.
}

// MismatchError says that an engine answers, but is not the one that was started.
type MismatchError struct {
	Field     Field
	Want, Got string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("engine says %s of %s is %q, want %q", e.Field.Name, e.Field.Path, e.Got, e.Want)
}

// Identify returns nil if the engine at the address says want in the field, and a *MismatchError if it says something
// else. Another error means that it said nothing of the kind.
func (p *Prober) Identify(ctx context.Context, at netip.AddrPort, f Field, want string) error {
	got, err := p.Text(ctx, at, f)
	if err != nil {
		return err
	}
	if got != want {
		return &MismatchError{Field: f, Want: want, Got: got}
	}
	return nil
}

// Text returns a field as text: a string as it is, a number or a truth value as JSON writes it. A field that is not
// there, or holds something else, is an error.
func (p *Prober) Text(ctx context.Context, at netip.AddrPort, f Field) (string, error) {
	got, err := p.get(ctx, at, f.Path)
	if err != nil {
		return "", err
	}
	if got.status != http.StatusOK {
		return "", fmt.Errorf("ask %s%s: answered %d", at, f.Path, got.status)
	}
	text, err := lookup(got.body, f.Name)
	if err != nil {
		return "", fmt.Errorf("read %s of %s%s: %w", f.Name, at, f.Path, err)
	}
	return text, nil
}

// Count returns a field that must be a whole number of 0 or more, such as a number of slots.
func (p *Prober) Count(ctx context.Context, at netip.AddrPort, f Field) (int, error) {
	text, err := p.Text(ctx, at, f)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("read %s of %s%s: %q is no count", f.Name, at, f.Path, text)
	}
	return n, nil
}

// lookup walks down a JSON value one step at a time.
func lookup(value json.RawMessage, name string) (string, error) {
	for rest := name; rest != ""; {
		step, after := nextStep(rest)
		rest = after
		if index, ok := strings.CutPrefix(step, "["); ok {
			number, shut := strings.CutSuffix(index, "]")
			i, err := strconv.Atoi(number)
			if err != nil || i < 0 || !shut {
				return "", fmt.Errorf("%q is no index", step)
			}
			var list []json.RawMessage
			if err := json.Unmarshal(value, &list); err != nil {
				return "", fmt.Errorf("at %s: %w", step, err)
			}
			if i >= len(list) {
				return "", fmt.Errorf("at %s: there are %d", step, len(list))
			}
			value = list[i]
			continue
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(value, &fields); err != nil {
			return "", fmt.Errorf("at %s: %w", step, err)
		}
		next, ok := fields[step]
		if !ok {
			return "", fmt.Errorf("there is no %q", step)
		}
		value = next
	}
	return scalar(value)
}

// nextStep splits "data[0].id" into "data" and "[0].id", "[0].id" into "[0]" and "id".
func nextStep(name string) (step, rest string) {
	if strings.HasPrefix(name, "[") {
		if i := strings.IndexByte(name, ']'); i >= 0 {
			return name[:i+1], strings.TrimPrefix(name[i+1:], ".")
		}
		return name, ""
	}
	i := strings.IndexAny(name, ".[")
	if i < 0 {
		return name, ""
	}
	return name[:i], strings.TrimPrefix(name[i:], ".")
}

func scalar(value json.RawMessage) (string, error) {
	text := strings.TrimSpace(string(value))
	switch {
	case text == "" || text == "null" || text[0] == '{' || text[0] == '[':
		return "", fmt.Errorf("it holds %.40q, not a text, number or truth value", text)
	case text[0] == '"':
		var s string
		err := json.Unmarshal(value, &s)
		return s, err
	default:
		return text, nil
	}
}
