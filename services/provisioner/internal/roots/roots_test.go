// SPDX-License-Identifier: Apache-2.0

package roots_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/roots"
)

func TestResolve(t *testing.T) {
	t.Parallel()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	allowed, outside := filepath.Join(base, "allowed"), filepath.Join(base, "allowed-not")
	for _, dir := range []string{allowed, outside} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		filepath.Join(allowed, "in"): filepath.Join(allowed, "file"), filepath.Join(allowed, "out"): filepath.Join(outside, "file"),
		filepath.Join(base, "link"): allowed, filepath.Join(allowed, "loop"): filepath.Join(allowed, "loop"),
	} {
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(allowed, "file")
	for _, tt := range []struct {
		name  string
		roots roots.Roots
		path  string
		want  string
		fails reason.Reason
	}{
		{name: "below", roots: roots.Roots{allowed}, path: file, want: file},
		{name: "below a second root", roots: roots.Roots{"/nowhere", allowed}, path: file, want: file},
		{name: "below a root that is a link", roots: roots.Roots{filepath.Join(base, "link")}, path: filepath.Join(base, "link/file"), want: file},
		{name: "a link inside", roots: roots.Roots{allowed}, path: filepath.Join(allowed, "in"), want: file},
		{name: "a link that leads out", roots: roots.Roots{allowed}, path: filepath.Join(allowed, "out"), fails: reason.UntrustedArtifact},
		{name: "a link to itself", roots: roots.Roots{allowed}, path: filepath.Join(allowed, "loop"), fails: reason.UntrustedArtifact},
		{name: "outside", roots: roots.Roots{allowed}, path: filepath.Join(base, "file"), fails: reason.UntrustedArtifact},
		{name: "outside by dots", roots: roots.Roots{allowed}, path: allowed + "/../allowed-not/file", fails: reason.UntrustedArtifact},
		{name: "a folder whose name begins like a root", roots: roots.Roots{allowed}, path: filepath.Join(outside, "file"), fails: reason.UntrustedArtifact},
		{name: "no roots", path: file, fails: reason.UntrustedArtifact},
		{name: "missing", roots: roots.Roots{allowed}, path: filepath.Join(allowed, "gone"), fails: reason.ModelNotFound},
		{name: "missing below a file", roots: roots.Roots{allowed}, path: filepath.Join(file, "gone"), fails: reason.ModelNotFound},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := tt.roots.Resolve("spec.model.uri", tt.path, reason.ModelNotFound)
			if got != tt.want || reason.Of(err) != tt.fails {
				t.Errorf("Resolve(%s) = %q, %v, want %q and %v", tt.path, got, err, tt.want, tt.fails)
			}
			if found, ok := reason.As(err); ok && (len(found.Fields) != 1 || found.Remedy == "") {
				t.Errorf("Resolve(%s): %v names no field or remedy", tt.path, err)
			}
		})
	}
}
