// SPDX-License-Identifier: Apache-2.0

package engines_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/xllamacpp"
)

func TestCatalogFind(t *testing.T) {
	t.Parallel()
	catalog, err := engines.NewCatalog(xllamacpp.Kind{}, llamacpp.Kind{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"llamacpp", "xllamacpp"} {
		kind, err := catalog.Find("spec.engine.kind", name)
		if err != nil || kind.Traits().Name != name {
			t.Errorf("Find(%q) = %v, %v", name, kind, err)
		}
	}
	_, err = catalog.Find("spec.engine.kind", "vllm")
	found, ok := reason.As(err)
	if !ok || found.Reason != reason.EngineNotFound || !strings.Contains(found.Remedy, "llamacpp, xllamacpp") {
		t.Errorf("Find of an unknown kind: %v, want ENGINE_NOT_FOUND that lists the kinds", err)
	}
}

func TestCatalogRefusesOneNameTwice(t *testing.T) {
	t.Parallel()
	if _, err := engines.NewCatalog(llamacpp.Kind{}, xllamacpp.Kind{}, llamacpp.Kind{}); err == nil {
		t.Error("NewCatalog took one kind twice")
	}
}

func TestLayoutProgram(t *testing.T) {
	t.Parallel()
	layout := engines.Layout{
		Executable: "bin/python3", Args: []string{"-B"}, Script: "launcher.py", Env: map[string]string{"A": "1"}, LibraryDirs: []string{".", "lib"},
	}
	want := engines.Program{
		Executable: "/s/bin/python3", Prefix: []string{"-B", "/s/launcher.py"}, Env: map[string]string{"A": "1"}, Dir: "/s", LibraryDirs: []string{"/s", "/s/lib"},
	}
	if diff := cmp.Diff(want, layout.Program("/s", nil)); diff != "" {
		t.Errorf("Program (-want +got):\n%s", diff)
	}
}
