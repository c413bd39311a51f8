// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxYAMLDepth is deeper than any request; it bounds what a hostile file can make of the stack.
const maxYAMLDepth = 32

// yamlToJSON turns one YAML document into JSON. Aliases, merge keys, keys that are no text and keys given twice are
// refused; an error names the line.
func yamlToJSON(data []byte) ([]byte, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document yaml.Node
	if err := decoder.Decode(&document); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, errors.New("is empty")
		}
		return nil, fmt.Errorf("is neither JSON nor YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var second yaml.Node
	if err := decoder.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, errors.New("holds more than one document")
	}
	var out bytes.Buffer
	if err := writeNode(&out, &document, 0); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func writeNode(out *bytes.Buffer, node *yaml.Node, depth int) error {
	if depth > maxYAMLDepth {
		return fmt.Errorf("line %d: nested too deep", node.Line)
	}
	switch node.Kind {
	case yaml.DocumentNode:
		return writeNode(out, node.Content[0], depth+1)
	case yaml.MappingNode:
		return writeMapping(out, node, depth)
	case yaml.SequenceNode:
		out.WriteByte('[')
		for i, item := range node.Content {
			if i > 0 {
				out.WriteByte(',')
			}
			if err := writeNode(out, item, depth+1); err != nil {
				return err
			}
		}
		out.WriteByte(']')
		return nil
	case yaml.ScalarNode:
		return writeScalar(out, node)
	case yaml.AliasNode:
		return fmt.Errorf("line %d: aliases are not allowed", node.Line)
	default:
		return fmt.Errorf("line %d: not understood", node.Line)
	}
}

func writeMapping(out *bytes.Buffer, node *yaml.Node, depth int) error {
	seen := make(map[string]struct{}, len(node.Content)/2)
	out.WriteByte('{')
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
			return fmt.Errorf("line %d: a key must be text", key.Line)
		}
		if _, twice := seen[key.Value]; twice {
			return fmt.Errorf("line %d: key %q is given twice", key.Line, key.Value)
		}
		seen[key.Value] = struct{}{}
		if i > 0 {
			out.WriteByte(',')
		}
		if err := writeString(out, key.Value); err != nil {
			return err
		}
		out.WriteByte(':')
		if err := writeNode(out, value, depth+1); err != nil {
			return err
		}
	}
	out.WriteByte('}')
	return nil
}

func writeScalar(out *bytes.Buffer, node *yaml.Node) error {
	switch node.ShortTag() {
	case "!!null":
		out.WriteString("null")
	case "!!bool":
		var value bool
		if err := node.Decode(&value); err != nil {
			return fmt.Errorf("line %d: %w", node.Line, err)
		}
		out.WriteString(strconv.FormatBool(value))
	case "!!int":
		var value int64
		if err := node.Decode(&value); err != nil {
			return writeString(out, node.Value) // longer than any number: a digest of digits only
		}
		out.WriteString(strconv.FormatInt(value, 10))
	default:
		return writeString(out, node.Value)
	}
	return nil
}

func writeString(out *bytes.Buffer, text string) error {
	quoted, err := json.Marshal(text)
	if err != nil {
		return fmt.Errorf("quote %q: %w", text, err)
	}
	out.Write(quoted)
	return nil
}
