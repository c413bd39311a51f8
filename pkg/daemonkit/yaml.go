// SPDX-License-Identifier: Apache-2.0

package daemonkit

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// decodeOne fills target, a struct, with the one document that the decoder has; none leaves it as it is. The error names
// the line and the key of everything that does not fit.
func decodeOne(decoder *yaml.Decoder, target reflect.Value) error {
	var document, more yaml.Node
	if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return fmt.Errorf("line %d: there is a second document", more.Line)
	}
	return decodeNode(document.Content[0], target, "")
}

// decodeNode fills target, which key leads to.
func decodeNode(node *yaml.Node, target reflect.Value, key string) error {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.ShortTag() == "!!null" {
		return nil
	}
	if target.Kind() == reflect.Struct {
		return decodeKeys(node, target, key)
	}
	if err := node.Decode(target.Addr().Interface()); err != nil {
		value := ""
		if node.Kind == yaml.ScalarNode {
			value = fmt.Sprintf("%q ", node.Value)
		}
		return fmt.Errorf("line %d: %s: %sis not %s", node.Line, key, value, kindOf(target))
	}
	return nil
}

// decodeKeys fills the fields of target, whose tags are the keys.
func decodeKeys(node *yaml.Node, target reflect.Value, path string) error {
	if node.Kind != yaml.MappingNode {
		where := ""
		if path != "" {
			where = path + ": "
		}
		return fmt.Errorf("line %d: %sis not made of keys and values", node.Line, where)
	}
	fields := map[string]reflect.Value{}
	for i := range target.NumField() {
		fields[target.Type().Field(i).Tag.Get("yaml")] = target.Field(i)
	}
	seen := map[string]bool{}
	var errs []error
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, line := node.Content[i].Value, node.Content[i].Line
		field, known := fields[name]
		switch {
		case !known:
			errs = append(errs, fmt.Errorf("line %d: unknown key %q; there are %s", line, name,
				strings.Join(slices.Sorted(maps.Keys(fields)), ", ")))
		case seen[name]:
			errs = append(errs, fmt.Errorf("line %d: key %q is given twice", line, name))
		default:
			errs = append(errs, decodeNode(node.Content[i+1], field, strings.TrimPrefix(path+"."+name, ".")))
		}
		seen[name] = true
	}
	return errors.Join(errs...)
}

// kindOf says what a value takes.
func kindOf(value reflect.Value) string {
	if value.Type() == reflect.TypeFor[time.Duration]() {
		return "a time such as 30s or 5m"
	}
	switch value.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number that fits"
	case reflect.Slice:
		return "a list"
	default:
		return "a text"
	}
}
