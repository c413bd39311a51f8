// SPDX-License-Identifier: Apache-2.0

// Package rules holds the architecture rules of this repository as checks over its source text.
//
// A rule reads a Tree, which is parsed and never built, so all of them together take about a second. Each says why it
// is there, and each is proven able to fail by a crafted tree in this package's tests. A rule that names a folder
// reports the folder when it is gone: a ban that guards nothing is a fault of its own.
package rules

import (
	"fmt"
	"slices"
	"strings"
)

// prefix is the import path of the repository's root.
const prefix = "github.com/roundhouse-llm/roundhouse"

// Rule is one thing that must hold for the whole repository.
type Rule struct {
	// Name is short and unique.
	Name string
	// Why is what breaks when the rule does not hold.
	Why string
	// check returns what breaks the rule, nil if nothing does.
	check func(*Tree) []Violation
}

// Check returns every violation, ordered by place. It changes nothing.
func (r Rule) Check(tree *Tree) []Violation {
	found := r.check(tree)
	slices.SortFunc(found, func(a, b Violation) int {
		return strings.Compare(a.String(), b.String())
	})
	return found
}

// Violation is one place that breaks a rule.
type Violation struct {
	// Path is relative to the repository's root, with slashes.
	Path string
	// Line starts at 1; zero means the file or folder as a whole.
	Line int
	// Text is what is wrong there.
	Text string
}

// String gives path, line and text the way editors jump to them.
func (v Violation) String() string {
	if v.Line == 0 {
		return v.Path + ": " + v.Text
	}
	return fmt.Sprintf("%s:%d: %s", v.Path, v.Line, v.Text)
}

// All returns every rule of the repository.
func All() []Rule {
	rules := make([]Rule, 0, len(bans())+9)
	for _, b := range bans() {
		rules = append(rules, b.rule())
	}
	return append(rules,
		Rule{
			Name:  "no-engine-name-in-pool-manager",
			Why:   "the pool manager runs what a PreparedEngine says; one that knows an engine must change with each new one",
			check: engineNames,
		},
		Rule{
			Name:  "package-comment",
			Why:   "a package's promises stand where its name leads: in NAME.go, or in main.go",
			check: packageComments,
		},
		Rule{
			Name:  "licence-line",
			Why:   "a file that is copied out of here must still say under what terms",
			check: licenceLines,
		},
		Rule{
			Name:  "no-init",
			Why:   "what runs at import cannot be configured, ordered or tested",
			check: initFunctions,
		},
		Rule{
			Name:  "small-main",
			Why:   "code in package main cannot be tested from outside; main only calls the daemon or the command",
			check: mains,
		},
		Rule{
			Name:  "file-length",
			Why:   "a file past 600 lines holds two subjects",
			check: fileLengths,
		},
		Rule{
			Name:  "one-version",
			Why:   "what is tested in the workspace must be what a module built alone gets",
			check: versions,
		},
		Rule{
			Name:  "go-directive",
			Why:   "one language version, so that code moves between the modules",
			check: goDirectives,
		},
		Rule{
			Name:  "workspace-members",
			Why:   "every module is tested together and finds the others by ../x; a pinned tool keeps its own dependencies",
			check: workspaceMembers,
		},
	)
}
