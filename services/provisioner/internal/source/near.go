// SPDX-License-Identifier: Apache-2.0

package source

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

const (
	// maxNear keeps the message of a wrong reference to one line.
	maxNear = 8
	// maxCompared bounds the work on a repository with very many references.
	maxCompared = 20_000
)

// noSuchRef is the error for a reference that is not there, and names those most like it.
func noSuchRef(ref, field string, refs []reference) error {
	message := fmt.Sprintf("no reference %q", cmp.Or(ref, "HEAD"))
	if abbreviated(ref) {
		message += " (a commit id must be given in full)"
	}
	near := nearest(ref, refs)
	switch {
	case len(refs) == 0:
		message += "; there are no branches and no tags"
	case len(near) < len(refs):
		message += fmt.Sprintf("; nearest of %d: %s", len(refs), strings.Join(near, ", "))
	default:
		message += "; there are: " + strings.Join(near, ", ")
	}
	return reason.New(reason.InvalidParams, message, reason.Field(field),
		reason.Remedy("give a tag, a branch or a full commit id"), reason.Meta("near", strings.Join(near, ",")))
}

// abbreviated tells whether ref looks like the beginning of a commit id.
func abbreviated(ref string) bool {
	return len(ref) >= 7 && len(ref) < 40 && strings.Trim(ref, "0123456789abcdef") == ""
}

// nearest returns the short names most like ref, the best first.
func nearest(ref string, refs []reference) []string {
	type scored struct {
		name  string
		score int
	}
	var all []scored
	for _, r := range refs[:min(len(refs), maxCompared)] {
		name := strings.TrimPrefix(strings.TrimPrefix(r.name, "refs/heads/"), "refs/tags/")
		all = append(all, scored{name, distance(strings.ToLower(ref), strings.ToLower(name))})
	}
	slices.SortStableFunc(all, func(a, b scored) int { return cmp.Or(a.score-b.score, cmp.Compare(a.name, b.name)) })
	var names []string
	for _, s := range all {
		if len(names) < maxNear && !slices.Contains(names, s.name) {
			names = append(names, s.name)
		}
	}
	return names
}

// distance counts the bytes to insert, delete or replace to make b of a. Both are short: names have at most 255 bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
