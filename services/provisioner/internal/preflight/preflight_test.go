// SPDX-License-Identifier: Apache-2.0

package preflight_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/xllamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/preflight"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// tools reports every tool, of which some are missing.
type tools map[toolchain.Name]bool

func (missing tools) Report(ctx context.Context) (toolchain.Report, error) {
	if ctx.Err() != nil {
		return toolchain.Report{}, ctx.Err()
	}
	var report toolchain.Report
	for _, name := range []toolchain.Name{toolchain.Git, toolchain.CMake, toolchain.Ninja, toolchain.CC, toolchain.CXX, toolchain.Python} {
		tool := toolchain.Tool{Name: name, Path: "/bin/x"}
		if missing[name] {
			tool.Problem = "not found"
		}
		report.Tools = append(report.Tools, tool)
	}
	return report, nil
}

func check(t *testing.T, root string, missing tools) preflight.Report {
	t.Helper()
	catalog, err := engines.NewCatalog(llamacpp.Kind{}, xllamacpp.Kind{})
	if err != nil {
		t.Fatal(err)
	}
	report, err := preflight.Checker{Tools: missing, Catalog: catalog, StoreRoot: root, Roots: []string{"/r"}}.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func TestCheckNamesWhatEachWayLacks(t *testing.T) {
	t.Parallel()
	want := []preflight.Engine{
		{Kind: "llamacpp", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_SOURCE, Missing: []toolchain.Name{toolchain.CMake, toolchain.Ninja}},
		{Kind: "llamacpp", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE},
		{Kind: "llamacpp", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_EXTERNAL},
		{Kind: "xllamacpp", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE, Missing: []toolchain.Name{toolchain.Python}},
	}
	got := check(t, t.TempDir(), tools{toolchain.CMake: true, toolchain.Ninja: true, toolchain.Python: true})
	if diff := cmp.Diff(want, got.Engines); diff != "" {
		t.Errorf("engines (-want +got):\n%s", diff)
	}
}

func TestCheckOfTheStore(t *testing.T) {
	t.Parallel()
	good := check(t, t.TempDir(), nil)
	if good.Store.FreeBytes <= 0 || good.Store.Problem != "" && !strings.Contains(good.Store.Problem, "MiB free") {
		t.Errorf("store %+v", good.Store)
	}
	if bad := check(t, "/nonexistent", nil); !strings.Contains(bad.Store.Problem, "cannot be read") {
		t.Errorf("a store that is not there: %+v", bad.Store)
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	catalog, err := engines.NewCatalog()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (preflight.Checker{Tools: tools{}, Catalog: catalog, StoreRoot: "/"}).Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Check: %v, want the end of its context", err)
	}
}
