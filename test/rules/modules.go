// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

const (
	// goVersion is the go directive of every module of the workspace. A pinned tool has the one that its authors ask for.
	goVersion = "1.26.0"
	tools     = "tools"
)

// Module is what a go.mod says.
type Module struct {
	// Dir is the module's folder, relative to the root.
	Dir string
	// Path is the module path, and Go the go directive.
	Path, Go string
	// Requires are versions and Replaces are targets, both by module path.
	Requires, Replaces map[string]string
}

// parseModule reads the directives that the rules need; go itself judges whether the file is valid.
func parseModule(dir string, source []byte) Module {
	module := Module{Dir: dir, Requires: map[string]string{}, Replaces: map[string]string{}}
	for _, words := range directives(source) {
		switch {
		case words[0] == "module" && len(words) > 1:
			module.Path = words[1]
		case words[0] == "go" && len(words) > 1:
			module.Go = words[1]
		case words[0] == "require" && len(words) > 2:
			module.Requires[words[1]] = words[2]
		case words[0] == "replace" && slices.Contains(words, "=>"):
			module.Replaces[words[1]] = words[slices.Index(words, "=>")+1]
		}
	}
	return module
}

// workspaceFolders returns the folders that go.work uses.
func workspaceFolders(source []byte) []string {
	var folders []string
	for _, words := range directives(source) {
		if words[0] == "use" && len(words) > 1 {
			folders = append(folders, path.Clean(words[1]))
		}
	}
	return folders
}

// directives returns the words of every line of a go.mod or go.work, each with its verb, blocks unfolded.
func directives(source []byte) [][]string {
	var out [][]string
	block := ""
	for line := range bytes.Lines(source) {
		text, _, _ := strings.Cut(string(line), "//")
		words := strings.Fields(text)
		switch {
		case len(words) == 0:
		case words[0] == ")":
			block = ""
		case len(words) == 2 && words[1] == "(":
			block = words[0]
		case block != "":
			out = append(out, append([]string{block}, words...))
		default:
			out = append(out, words)
		}
	}
	return out
}

// versions finds dependencies that two modules of the workspace require at different versions.
func versions(tree *Tree) []Violation {
	users := map[string]map[string][]string{} // dependency -> version -> folders
	for _, module := range tree.Modules {
		if within(module.Dir, tools) {
			continue
		}
		for dependency, version := range module.Requires {
			if users[dependency] == nil {
				users[dependency] = map[string][]string{}
			}
			users[dependency][version] = append(users[dependency][version], module.Dir)
		}
	}
	var found []Violation
	for _, dependency := range slices.Sorted(maps.Keys(users)) {
		if len(users[dependency]) == 1 {
			continue
		}
		var parts []string
		for _, version := range slices.Sorted(maps.Keys(users[dependency])) {
			parts = append(parts, fmt.Sprintf("%s in %s", version, strings.Join(users[dependency][version], " ")))
		}
		found = append(found, Violation{
			Path: "go.work", Text: fmt.Sprintf("%s is required at %s; run make fix-tidy", dependency, strings.Join(parts, ", ")),
		})
	}
	return found
}

// goDirectives finds modules of the workspace with another go directive.
func goDirectives(tree *Tree) []Violation {
	var found []Violation
	for _, module := range tree.Modules {
		if !within(module.Dir, tools) && module.Go != goVersion {
			found = append(found, Violation{
				Path: path.Join(module.Dir, "go.mod"), Text: fmt.Sprintf("says go %s, want go %s", module.Go, goVersion),
			})
		}
	}
	return found
}

// workspaceMembers finds modules that the workspace misses or should not have, paths that do not follow the folder, and
// requires of our modules without the replace that lets the module build alone.
func workspaceMembers(tree *Tree) []Violation {
	var found []Violation
	for _, module := range tree.Modules {
		file := path.Join(module.Dir, "go.mod")
		if used := slices.Contains(tree.workspace, module.Dir); used == within(module.Dir, tools) {
			found = append(found, Violation{Path: file, Text: "go.work uses every module except those of tools"})
		}
		if want := path.Join(prefix, module.Dir); module.Path != want {
			found = append(found, Violation{Path: file, Text: fmt.Sprintf("is module %s, want %s", module.Path, want)})
		}
		for dependency := range module.Requires {
			if folder, ours := strings.CutPrefix(dependency, prefix+"/"); ours &&
				path.Join(module.Dir, module.Replaces[dependency]) != folder {
				found = append(found, Violation{Path: file, Text: fmt.Sprintf("requires %s without a replace by its folder", dependency)})
			}
		}
	}
	for _, folder := range tree.workspace {
		if !slices.ContainsFunc(tree.Modules, func(m Module) bool { return m.Dir == folder }) {
			found = append(found, Violation{Path: "go.work", Text: fmt.Sprintf("uses %s, which is no module", folder)})
		}
	}
	return found
}
