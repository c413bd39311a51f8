// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"strings"
)

// Tree is the source of the repository as the rules see it. It is not changed after Load, so rules may share it.
type Tree struct {
	// Modules are those of the workspace and of tools, by path.
	Modules []Module
	// Files are all Go files, by path.
	Files []File
	// Texts are all files that must bear a licence line, Go files included, by path.
	Texts []Text

	// workspace lists the folders that go.work names.
	workspace []string
	positions *token.FileSet
}

// Text is a file's content.
type Text struct {
	Path   string
	Source []byte
}

// File is one parsed Go file.
type File struct {
	Text

	// Syntax is the whole file with its comments.
	Syntax *ast.File
}

// Dir is the file's folder, relative to the root.
func (f File) Dir() string { return path.Dir(f.Path) }

// IsTest tells a _test.go file.
func (f File) IsTest() bool { return strings.HasSuffix(f.Path, "_test.go") }

// IsGenerated tells a file that a tool wrote.
func (f File) IsGenerated() bool { return ast.IsGenerated(f.Syntax) }

// Load reads and parses the repository whose root is fsys. Folders of other owners, of build output and of test data are
// left out. A file that does not parse is an error, and then there is no tree.
func Load(fsys fs.FS) (*Tree, error) {
	tree := &Tree{positions: token.NewFileSet()}
	work, err := fs.ReadFile(fsys, "go.work")
	if err != nil {
		return nil, fmt.Errorf("read the workspace: %w", err)
	}
	tree.workspace = workspaceFolders(work)

	err = fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && skipped(name):
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		return tree.add(fsys, name)
	})
	if err != nil {
		return nil, fmt.Errorf("load the repository: %w", err)
	}
	return tree, nil
}

// add takes one file into the tree if a rule wants it.
func (t *Tree) add(fsys fs.FS, name string) error {
	base, ext := path.Base(name), path.Ext(name)
	switch {
	case base == "go.mod", base == "Makefile", ext == "", ext == ".go", ext == ".proto", ext == ".py", ext == ".sh":
	default:
		return nil
	}
	source, err := fs.ReadFile(fsys, name)
	if err != nil {
		return fmt.Errorf("read a source file: %w", err)
	}
	text := Text{Path: name, Source: source}
	switch {
	case base == "go.mod":
		t.Modules = append(t.Modules, parseModule(path.Dir(name), source))
	case ext == ".go":
		syntax, err := parser.ParseFile(t.positions, name, source, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parse a source file: %w", err)
		}
		t.Files = append(t.Files, File{Text: text, Syntax: syntax})
		t.Texts = append(t.Texts, text)
	case ext != "", base == "Makefile", bytes.HasPrefix(source, []byte("#!")):
		t.Texts = append(t.Texts, text)
	}
	return nil
}

// line is where pos lies in its file.
func (t *Tree) line(pos token.Pos) int { return t.positions.Position(pos).Line }

// skipped tells folders that are not ours to rule: other people's, hidden ones, build output and test data.
func skipped(name string) bool {
	base := path.Base(name)
	switch base {
	case ".", ".ci":
		return false
	case "testdata", "node_modules":
		return true
	}
	return strings.HasPrefix(base, ".") || name == "bin" || name == "third_party"
}

// within tells whether a path is the folder or below it.
func within(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}

// withinAny tells whether a path is within one of the folders.
func withinAny(name string, folders []string) bool {
	for _, folder := range folders {
		if within(name, folder) {
			return true
		}
	}
	return false
}
