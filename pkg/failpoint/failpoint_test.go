// SPDX-License-Identifier: Apache-2.0

package failpoint_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
)

// All has every constant of the type, once: a test that walks it walks them all.
func TestAllIsComplete(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "failpoint.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared []string
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Name" {
			for _, value := range spec.Values {
				literal, ok := value.(*ast.BasicLit)
				if !ok {
					t.Fatalf("%v has no plain value", spec.Names)
				}
				name, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				declared = append(declared, name)
			}
		}
		return true
	})
	var all []string
	for _, name := range failpoint.All() {
		all = append(all, string(name))
	}
	slices.Sort(declared)
	slices.Sort(all)
	if diff := cmp.Diff(declared, all); diff != "" {
		t.Errorf("All (-declared +listed):\n%s", diff)
	}
	if twice := slices.Compact(slices.Clone(all)); len(twice) != len(all) {
		t.Errorf("a name is listed twice: %v", all)
	}
}

// A program without the tag goes on, whatever the environment says.
func TestHitWithoutTag(t *testing.T) { //nolint:paralleltest // it changes the environment
	if failpoint.Enabled {
		t.Fatal("this test is for programs without the tag")
	}
	t.Setenv(failpoint.Variable, string(failpoint.StartSpawned))
	failpoint.Hit(failpoint.StartSpawned)
}

func TestKnown(t *testing.T) {
	t.Parallel()
	if !failpoint.Known(failpoint.StartSpawned) || failpoint.Known("no-such") {
		t.Error("Known knows the wrong names")
	}
}
