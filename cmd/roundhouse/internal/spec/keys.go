// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// checkKeys refuses the first key, in alphabetical order, that descriptor has no field for, and says where it stands and
// which there are. What is not an object is left to the decoder.
func checkKeys(text json.RawMessage, descriptor protoreflect.MessageDescriptor, path string) error {
	if descriptor.ParentFile().Package() == "google.protobuf" {
		return nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil //nolint:nilerr // the decoder says what is wrong with a value that is no object
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		where := key
		if path != "" {
			where = path + "." + key
		}
		field := fieldNamed(descriptor, key)
		if field == nil {
			return reason.New(reason.InvalidParams, "unknown key", reason.Field(where),
				reason.Remedy(string(descriptor.Name())+" has: "+strings.Join(fieldNames(descriptor), ", ")))
		}
		if field.Message() == nil || field.IsMap() {
			continue
		}
		if err := checkValue(object[key], field, where); err != nil {
			return err
		}
	}
	return nil
}

// checkValue checks the keys of one message, or of each in a list.
func checkValue(text json.RawMessage, field protoreflect.FieldDescriptor, where string) error {
	if !field.IsList() {
		return checkKeys(text, field.Message(), where)
	}
	var items []json.RawMessage
	if err := json.Unmarshal(text, &items); err != nil {
		return nil //nolint:nilerr // the decoder says what is wrong with a value that is no list
	}
	for i, item := range items {
		if err := checkKeys(item, field.Message(), fmt.Sprintf("%s[%d]", where, i)); err != nil {
			return err
		}
	}
	return nil
}

// fieldNamed finds a field by either of its two spellings.
func fieldNamed(descriptor protoreflect.MessageDescriptor, key string) protoreflect.FieldDescriptor {
	if field := descriptor.Fields().ByJSONName(key); field != nil {
		return field
	}
	return descriptor.Fields().ByTextName(key)
}

func fieldNames(descriptor protoreflect.MessageDescriptor) []string {
	fields := descriptor.Fields()
	names := make([]string, fields.Len())
	for i := range names {
		names[i] = fields.Get(i).JSONName()
	}
	return names
}

// withoutPrefix is the error's text without the name of the library that made it.
func withoutPrefix(err error) string {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return strings.TrimPrefix(text, "proto: ")
}
