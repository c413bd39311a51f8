// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode"
)

// form says in words which texts a pattern accepts, for patterns that are made of literals and of characters that are
// repeated; ok is false for others.
func form(pattern string) (words string, ok bool) {
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return "", false
	}
	parts := []*syntax.Regexp{tree}
	if tree.Op == syntax.OpConcat {
		parts = tree.Sub
	}
	if len(parts) < 2 || parts[0].Op != syntax.OpBeginText {
		return "", false
	}
	parts = parts[1:]
	if last := len(parts) - 1; parts[last].Op == syntax.OpEndText {
		return formOf(parts[:last])
	}
	words, ok = formOf(parts)
	return "a text that begins with " + words, ok
}

func formOf(parts []*syntax.Regexp) (words string, ok bool) {
	if len(parts) == 1 {
		switch only := parts[0]; only.Op {
		case syntax.OpQuest:
			words, ok = formOf(only.Sub)
			return "nothing, or " + words, ok
		case syntax.OpCapture, syntax.OpConcat:
			return formOf(only.Sub)
		default:
		}
	}
	var said []string
	for len(parts) > 0 {
		if parts[0].Op == syntax.OpLiteral {
			said = append(said, fmt.Sprintf("%q", string(parts[0].Rune)))
			parts = parts[1:]
			continue
		}
		first, ok := runOf(parts[0])
		if !ok {
			return "", false
		}
		parts = parts[1:]
		text := first.String()
		if len(parts) > 0 && first.min == 1 && first.max == 1 {
			if rest, ok := runOf(parts[0]); ok && rest.kinds.hold(first.kinds) {
				text = rest.longer().String() + ", beginning with a " + first.kinds.words(one)
				parts = parts[1:]
			}
		}
		said = append(said, text)
	}
	return strings.Join(said, " and "), len(said) > 0
}

// run is a number of characters of some kinds.
type run struct {
	kinds    kinds
	min, max int // max is -1 if there is no limit
}

func runOf(tree *syntax.Regexp) (run, bool) {
	if tree.Op == syntax.OpCharClass {
		kinds, ok := kindsOf(tree.Rune)
		return run{kinds, 1, 1}, ok
	}
	if len(tree.Sub) != 1 || tree.Sub[0].Op != syntax.OpCharClass {
		return run{}, false
	}
	found, ok := runOf(tree.Sub[0])
	switch tree.Op {
	case syntax.OpRepeat:
		found.min, found.max = tree.Min, tree.Max
	case syntax.OpPlus:
		found.min, found.max = 1, -1
	case syntax.OpStar:
		found.min, found.max = 0, -1
	default:
		return run{}, false
	}
	return found, ok
}

// longer is the run with one more character.
func (r run) longer() run {
	r.min++
	if r.max >= 0 {
		r.max++
	}
	return r
}

func (r run) String() string {
	words := r.kinds.words(many)
	switch {
	case r.max < 0:
		return fmt.Sprintf("%d or more %s", r.min, words)
	case r.min == r.max:
		return fmt.Sprintf("%d %s", r.min, words)
	default:
		return fmt.Sprintf("%d to %d %s", r.min, r.max, words)
	}
}

// kind is a set of characters that has a name.
type kind struct{ characters, one, many string }

// knownKinds are the kinds that there are, in the order in which they are told. Earlier ones are preferred.
func knownKinds() []kind {
	const small, capital, digits = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
	return []kind{
		{capital + small, "letter", "letters"},
		{small, "small letter", "small letters"},
		{capital, "capital letter", "capital letters"},
		{digits + "abcdef", "hexadecimal digit (0-9, a-f)", "hexadecimal digits (0-9, a-f)"},
		{digits, "digit", "digits"},
		{".", "dot", "dots"},
		{"-", "dash", "dashes"},
		{"_", "underscore", "underscores"},
		{"/", "slash", "slashes"},
		{":", "colon", "colons"},
	}
}

// kinds are what a class of characters is made of.
type kinds []kind

// kindsOf takes a class apart, which is the first and the last character of each range; ok is false if it holds others.
func kindsOf(class []rune) (found kinds, ok bool) {
	left := map[rune]bool{}
	for i := 0; i < len(class); i += 2 {
		if class[i+1] > unicode.MaxASCII {
			return nil, false
		}
		for c := class[i]; c <= class[i+1]; c++ {
			left[c] = true
		}
	}
	for _, kind := range knownKinds() {
		if strings.ContainsFunc(kind.characters, func(c rune) bool { return !left[c] }) {
			continue
		}
		found = append(found, kind)
		for _, c := range kind.characters {
			delete(left, c)
		}
	}
	return found, len(found) > 0 && len(left) == 0
}

// hold tells whether all of others are among the kinds.
func (k kinds) hold(others kinds) bool {
	return !slices.ContainsFunc(others, func(other kind) bool { return !slices.Contains(k, other) })
}

// number is how many characters are told of.
type number int

const (
	one number = iota
	many
)

// words names the kinds.
func (k kinds) words(n number) string {
	names, last := make([]string, len(k)), " or "
	for i, kind := range k {
		names[i] = kind.one
		if n == many {
			names[i], last = kind.many, " and "
		}
	}
	if len(names) == 1 {
		return names[0]
	}
	return strings.Join(names[:len(names)-1], ", ") + last + names[len(names)-1]
}
