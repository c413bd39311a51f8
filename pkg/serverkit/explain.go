// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"fmt"
	"strconv"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"
)

// explain says what is wrong with a field of the request and what the field takes, both out of the rule that was broken.
func explain(request protoreflect.MessageDescriptor, violation *protovalidate.Violation) (problem, takes string) {
	problem = violation.Proto.GetMessage()
	field, oneof := placeOf(request, violation)
	if oneof != nil {
		return "is missing", "one of " + names(oneof.Fields())
	}
	if field == nil {
		return problem, "what the comments of " + string(request.FullName()) + " say"
	}
	rule := ruleOf(field, violation)
	switch rule.name {
	case "required":
		takes = "one"
		if message := field.Message(); message != nil {
			takes = "one, which has " + names(message.Fields())
		}
		return "is missing", takes
	case "pattern":
		pattern, _ := rule.value("pattern") // it was broken, so it is there
		if words, ok := form(pattern.String()); ok {
			return "does not have the form that it must have", words
		}
	case "prefix":
		prefix, _ := rule.value("prefix") // as above
		takes = fmt.Sprintf("a text that begins with %q", prefix.String())
	case "min_len", "max_len":
		takes = rule.count("min_len", "max_len") + " characters"
	case "min_items", "max_items":
		takes = rule.count("min_items", "max_items") + " of them"
	case "unique":
		return "has an item twice", "each of them once"
	case "defined_only", "not_in":
		if enum := field.Enum(); enum != nil {
			return "is not one of its values", "one of " + rule.values(enum.Values())
		}
	case "lt", "lte", "gt", "gte":
		takes = rule.limits()
	}
	if takes == "" {
		takes = "what the comment of " + string(field.FullName()) + " says"
	}
	return problem, takes
}

// placeOf finds the field or the oneof that a violation is about. An item of a list is its list.
func placeOf(request protoreflect.MessageDescriptor, violation *protovalidate.Violation) (protoreflect.FieldDescriptor, protoreflect.OneofDescriptor) {
	var field protoreflect.FieldDescriptor
	for _, element := range violation.Proto.GetField().GetElements() {
		owner := request
		if field != nil {
			owner = field.Message()
		}
		if owner == nil {
			return nil, nil
		}
		field = owner.Fields().ByNumber(protoreflect.FieldNumber(element.GetFieldNumber()))
		if field == nil {
			return nil, owner.Oneofs().ByName(protoreflect.Name(element.GetFieldName()))
		}
	}
	return field, nil
}

func names(fields protoreflect.FieldDescriptors) string {
	all := make([]string, fields.Len())
	for i := range all {
		all[i] = string(fields.Get(i).Name())
	}
	return strings.Join(all, ", ")
}

// rule is a rule of a field, among the others of its kind.
type rule struct {
	name string
	all  protoreflect.Message
}

// ruleOf finds the rule of the field that was broken. A rule that is not a standard one has no name.
func ruleOf(field protoreflect.FieldDescriptor, violation *protovalidate.Violation) rule {
	rules, err := protovalidate.ResolveFieldRules(field)
	if err != nil || rules == nil {
		return rule{}
	}
	found := rule{all: rules.ProtoReflect()}
	path := violation.Proto.GetRule().GetElements()
	for i, element := range path {
		field := found.all.Descriptor().Fields().ByNumber(protoreflect.FieldNumber(element.GetFieldNumber()))
		if field == nil {
			return rule{}
		}
		found.name = string(field.Name())
		if i == len(path)-1 {
			break
		}
		if field.Message() == nil || field.IsList() {
			return rule{}
		}
		found.all = found.all.Get(field).Message()
	}
	return found
}

// value is what a rule says; ok is false if there is none.
func (r rule) value(name protoreflect.Name) (v protoreflect.Value, ok bool) {
	field := r.all.Descriptor().Fields().ByName(name)
	if field == nil || !r.all.Has(field) {
		return protoreflect.Value{}, false
	}
	return r.all.Get(field), true
}

// count is the number that two rules of size allow.
func (r rule) count(least, most protoreflect.Name) string {
	low, hasLow := r.value(least)
	high, hasHigh := r.value(most)
	switch {
	case hasLow && hasHigh:
		return low.String() + " to " + high.String()
	case hasHigh:
		return "at most " + high.String()
	default:
		return "at least " + low.String()
	}
}

// values names the values of an enum that the rules do not exclude.
func (r rule) values(values protoreflect.EnumValueDescriptors) string {
	excluded := map[int64]bool{}
	if not, ok := r.value("not_in"); ok {
		for i := range not.List().Len() {
			excluded[not.List().Get(i).Int()] = true
		}
	}
	var all []string
	for i := range values.Len() {
		if !excluded[int64(values.Get(i).Number())] {
			all = append(all, string(values.Get(i).Name()))
		}
	}
	return strings.Join(all, ", ")
}

// limits is the range that the rules of order allow, of numbers or of times.
func (r rule) limits() string {
	from, hasFrom := r.bound("gte")
	to, hasTo := r.bound("lte")
	if !hasFrom && r.unsigned() {
		from, hasFrom = "0", true
	}
	if hasFrom && hasTo {
		return "a value from " + from + " to " + to
	}
	var bounds []string
	for _, b := range []struct {
		name protoreflect.Name
		says string
	}{{"gte", "at least "}, {"gt", "above "}, {"lte", "at most "}, {"lt", "below "}} {
		if value, ok := r.bound(b.name); ok {
			bounds = append(bounds, b.says+value)
		}
	}
	return "a value " + strings.Join(bounds, " and ")
}

// bound is the value of a rule of order, as JSON writes it; ok is false if there is none.
func (r rule) bound(name protoreflect.Name) (text string, ok bool) {
	value, ok := r.value(name)
	if !ok {
		return "", false
	}
	if message, isMessage := value.Interface().(protoreflect.Message); isMessage {
		if d, isDuration := message.Interface().(*durationpb.Duration); isDuration {
			return strconv.FormatFloat(d.AsDuration().Seconds(), 'f', -1, 64) + "s", true
		}
	}
	return value.String(), true
}

// unsigned tells whether the values are numbers that begin with 0.
func (r rule) unsigned() bool {
	field := r.all.Descriptor().Fields().ByName("lte")
	if field == nil {
		return false
	}
	switch field.Kind() {
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return true
	default:
		return false
	}
}
