// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

// Every typed error of this service tells what to do about it: whoever makes one gives a remedy.
func TestEveryErrorHasARemedy(t *testing.T) {
	t.Parallel()
	made := 0
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, path, nil, 0)
		if err != nil {
			return err
		}
		for _, declared := range parsed.Decls {
			whole := written(t, files, declared)
			ast.Inspect(declared, func(node ast.Node) bool {
				call, ok := node.(*ast.CallExpr)
				if !ok || written(t, files, call.Fun) != "reason.New" {
					return true
				}
				made++
				told := written(t, files, call)
				if call.Ellipsis.IsValid() { // its options were put together before
					told = whole
				}
				if !strings.Contains(told, "reason.Remedy(") {
					t.Errorf("%s: no remedy: %s", files.Position(call.Pos()), told)
				}
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if made < 50 {
		t.Errorf("only %d errors were found, so this proves little", made)
	}
}

func written(t *testing.T, files *token.FileSet, node ast.Node) string {
	t.Helper()
	var text bytes.Buffer
	if err := printer.Fprint(&text, files, node); err != nil {
		t.Fatal(err)
	}
	return text.String()
}
