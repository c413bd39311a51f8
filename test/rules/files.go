// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bytes"
	"fmt"
	"go/ast"
	"maps"
	"path"
	"slices"
	"strings"
)

const (
	licence = "SPDX-License-Identifier: Apache-2.0"
	// maxMainLines is the body of func main.
	maxMainLines = 10
	maxFileLines = 600
	poolManager  = "services/pool-manager"
)

// engineNames finds the name of an engine anywhere in the pool manager's code, comments included.
func engineNames(tree *Tree) []Violation {
	var found []Violation
	seen := false
	for _, file := range tree.Files {
		if !within(file.Path, poolManager) {
			continue
		}
		seen = true
		if file.IsTest() {
			continue
		}
		number := 0
		for line := range bytes.Lines(file.Source) {
			number++
			for _, engine := range []string{"llama", "vllm"} {
				if bytes.Contains(bytes.ToLower(line), []byte(engine)) {
					found = append(found, Violation{file.Path, number, fmt.Sprintf("names the engine %s", engine)})
				}
			}
		}
	}
	if !seen {
		found = append(found, Violation{Path: poolManager, Text: "the rule names a folder without Go files; correct the rule"})
	}
	return found
}

// packageComments finds packages without a comment, with more than one, or with it in another file than NAME.go.
func packageComments(tree *Tree) []Violation {
	type pkg struct {
		name             string
		documented, code []string
	}
	packages := map[string]*pkg{}
	for _, file := range tree.Files {
		name := file.Syntax.Name.Name
		if file.IsGenerated() || strings.HasSuffix(name, "_test") {
			continue
		}
		p := packages[file.Dir()]
		if p == nil {
			p = &pkg{name: name}
			packages[file.Dir()] = p
		}
		if !file.IsTest() {
			p.code = append(p.code, file.Path)
		}
		if file.Syntax.Doc != nil && file.Syntax.Doc.Text() != "" {
			p.documented = append(p.documented, path.Base(file.Path))
		}
	}
	var found []Violation
	for _, dir := range slices.Sorted(maps.Keys(packages)) {
		p := packages[dir]
		home := p.name + ".go"
		switch {
		case len(p.documented) == 0:
			found = append(found, Violation{Path: dir, Text: fmt.Sprintf("package %s has no comment; it belongs into %s", p.name, home)})
		case len(p.documented) > 1:
			found = append(found, Violation{Path: dir, Text: fmt.Sprintf("package %s has comments in %v", p.name, p.documented)})
		case len(p.code) > 0 && p.documented[0] != home:
			found = append(found, Violation{
				Path: dir,
				Text: fmt.Sprintf("package %s has its comment in %s; it belongs into %s", p.name, p.documented[0], home),
			})
		}
	}
	return found
}

// licenceLines finds files whose first line, or second below a shebang, is not the licence line.
func licenceLines(tree *Tree) []Violation {
	var found []Violation
	for _, text := range tree.Texts {
		first, rest, _ := bytes.Cut(text.Source, []byte("\n"))
		if bytes.HasPrefix(first, []byte("#!")) {
			first, _, _ = bytes.Cut(rest, []byte("\n"))
		}
		mark := "// "
		if ext := path.Ext(text.Path); ext != ".go" && ext != ".proto" {
			mark = "# "
		}
		if string(first) != mark+licence {
			found = append(found, Violation{text.Path, 1, "the licence line is missing: " + mark + licence})
		}
	}
	return found
}

// initFunctions finds func init.
func initFunctions(tree *Tree) []Violation {
	var found []Violation
	for _, file := range tree.Files {
		if file.IsGenerated() {
			continue
		}
		for _, function := range functions(file) {
			if function.Recv == nil && function.Name.Name == "init" {
				found = append(found, Violation{file.Path, tree.line(function.Pos()), "has func init"})
			}
		}
	}
	return found
}

// mains finds code in package main beyond a short func main. Programs of the test module are exempt: they are themselves
// what a test runs.
func mains(tree *Tree) []Violation {
	var found []Violation
	for _, file := range tree.Files {
		if file.Syntax.Name.Name != "main" || file.IsTest() || within(file.Path, "test") {
			continue
		}
		if path.Base(file.Path) != "main.go" {
			found = append(found, Violation{Path: file.Path, Text: "package main has another file than main.go"})
		}
		for _, function := range functions(file) {
			lines := tree.line(function.End()) - tree.line(function.Pos()) - 1
			switch {
			case function.Name.Name != "main" || function.Recv != nil:
				found = append(found, Violation{
					file.Path, tree.line(function.Pos()), fmt.Sprintf("package main has func %s besides main", function.Name.Name),
				})
			case lines >= maxMainLines:
				found = append(found, Violation{
					file.Path, tree.line(function.Pos()), fmt.Sprintf("main has %d lines, want under %d", lines, maxMainLines),
				})
			}
		}
	}
	return found
}

// fileLengths finds Go files that are too long.
func fileLengths(tree *Tree) []Violation {
	var found []Violation
	for _, file := range tree.Files {
		if lines := bytes.Count(file.Source, []byte("\n")); lines > maxFileLines && !file.IsGenerated() {
			found = append(found, Violation{Path: file.Path, Text: fmt.Sprintf("has %d lines, want %d at most", lines, maxFileLines)})
		}
	}
	return found
}

// functions returns the functions and methods that a file declares.
func functions(file File) []*ast.FuncDecl {
	var out []*ast.FuncDecl
	for _, decl := range file.Syntax.Decls {
		if function, ok := decl.(*ast.FuncDecl); ok {
			out = append(out, function)
		}
	}
	return out
}
