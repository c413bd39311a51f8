// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// FlagsField is the field of a request that errors about flags name, with an index.
const FlagsField = "spec.launch.flags"

// OwnedFlag is a flag that a spec must not set, under all the names it is known by.
type OwnedFlag struct {
	Names []string
	// Remedy says what to use in its place, or why there is nothing.
	Remedy string
}

// Flag is a flag that an engine has.
type Flag struct {
	// Names are its spellings, dashes included.
	Names []string `json:"names"`
	// Values is how many arguments follow it.
	Values int `json:"values,omitempty"`
}

var flagName = regexp.MustCompile(`^(--?[A-Za-z0-9][^\s,]*)(, *)?`)

// ParseHelp reads the list of flags that llama.cpp's programs print: one flag a line, beginning at the line's start with
// its names separated by commas, then its values, then, after two spaces or more, what it does. Other lines are skipped.
func ParseHelp(text string) []Flag {
	var flags []Flag
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n ")
		var flag Flag
		for {
			found := flagName.FindStringSubmatch(line)
			if found == nil {
				break
			}
			flag.Names = append(flag.Names, found[1])
			line = line[len(found[0]):]
			if found[2] == "" {
				break
			}
		}
		if len(flag.Names) == 0 {
			continue
		}
		if rest, ok := strings.CutPrefix(line, " "); ok && !strings.HasPrefix(rest, " ") {
			values, _, _ := strings.Cut(rest, "  ")
			flag.Values = len(strings.Fields(values))
		}
		flags = append(flags, flag)
	}
	return flags
}

// RefuseOwned refuses tokens that set a flag of owned, wherever they stand, with INVALID_PARAMS that tells what to use
// in its place. It needs no engine.
func RefuseOwned(tokens []string, owned []OwnedFlag) error {
	for i, token := range tokens {
		name, _, _ := cutFlag(token)
		for _, flag := range owned {
			if slices.Contains(flag.Names, name) {
				return refuseOwned(i, name, flag.Remedy)
			}
		}
	}
	return nil
}

// CheckFlags checks tokens against the flags that an engine has, and returns them with `--flag=value` in two. A flag that
// is owned under any of its names, one that the engine does not have, and one with too few or too many values is
// INVALID_PARAMS; an unknown one is answered with the nearest name.
func CheckFlags(tokens []string, owned []OwnedFlag, known []Flag) ([]string, error) {
	if err := RefuseOwned(tokens, owned); err != nil {
		return nil, err
	}
	var out []string
	for i := 0; i < len(tokens); {
		name, value, inline := cutFlag(tokens[i])
		flag, err := knownFlag(i, name, known)
		if err != nil {
			return nil, err
		}
		for _, own := range owned {
			if slices.ContainsFunc(flag.Names, func(n string) bool { return slices.Contains(own.Names, n) }) {
				return nil, refuseOwned(i, name, own.Remedy)
			}
		}
		values := tokens[i+1 : min(i+1+flag.Values, len(tokens))]
		if inline {
			if flag.Values != 1 {
				return nil, badFlag(i, fmt.Sprintf("%s takes %d values, not one after =", name, flag.Values), "see the engine's --help")
			}
			values = []string{value}
		}
		if len(values) < flag.Values {
			return nil, badFlag(i, fmt.Sprintf("%s wants %d values and has %d", name, flag.Values, len(values)), "give each value as a token of its own")
		}
		out = append(append(out, name), values...)
		i++
		if !inline {
			i += flag.Values
		}
	}
	return out, nil
}

func knownFlag(i int, name string, known []Flag) (Flag, error) {
	if !strings.HasPrefix(name, "-") {
		return Flag{}, badFlag(i, fmt.Sprintf("%.200q belongs to no flag", name), "write the flag, then its value, one token each")
	}
	for _, flag := range known {
		if slices.Contains(flag.Names, name) {
			return flag, nil
		}
	}
	remedy := "use a flag that the engine lists for --help"
	if near := nearest(name, known); near != "" {
		remedy = "did you mean " + near + "?"
	}
	return Flag{}, badFlag(i, fmt.Sprintf("the engine has no flag %.200q", name), remedy)
}

// cutFlag returns the name of a flag as engines compare it: llama.cpp takes --a_b for --a-b. A token that is no flag is
// returned whole.
func cutFlag(token string) (name, value string, inline bool) {
	if !strings.HasPrefix(token, "-") {
		return token, "", false
	}
	name, value, inline = strings.Cut(token, "=")
	if strings.HasPrefix(name, "--") {
		name = strings.ReplaceAll(name, "_", "-")
	}
	return name, value, inline
}

func refuseOwned(i int, name, remedy string) error {
	return badFlag(i, name+" is set by Roundhouse", remedy)
}

func badFlag(i int, message, remedy string) error {
	return reason.New(reason.InvalidParams, message, reason.Field(fmt.Sprintf("%s[%d]", FlagsField, i)), reason.Remedy(remedy))
}

// nearest returns the known name that takes the fewest changes, and "" if all take more than a third of the name.
func nearest(name string, known []Flag) string {
	best, least := "", max(2, len(name)/3)+1
	for _, flag := range known {
		for _, candidate := range flag.Names {
			if n := distance(name, candidate); n < least {
				best, least = candidate, n
			}
		}
	}
	return best
}

// distance is the number of letters to add, drop or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			next := min(row[j+1]+1, row[j]+1, diagonal)
			if a[i] != b[j] {
				next = min(row[j+1]+1, row[j]+1, diagonal+1)
			}
			diagonal, row[j+1] = row[j+1], next
		}
	}
	return row[len(b)]
}
