// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRepository checks the repository that this file is part of.
func TestRepository(t *testing.T) {
	t.Parallel()
	tree, err := Load(os.DirFS(root(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range All() {
		t.Run(rule.Name, func(t *testing.T) {
			t.Parallel()
			for _, violation := range rule.Check(tree) {
				t.Errorf("%s\n\twhy: %s", violation, rule.Why)
			}
		})
	}
}

// root is the nearest folder above with a go.work.
func root(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.work above the test")
		}
		dir = filepath.Dir(dir)
	}
}
