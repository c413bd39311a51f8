// SPDX-License-Identifier: Apache-2.0

package preflight

import (
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

func TestMachine(t *testing.T) {
	t.Parallel()
	missing := &provisionerv1.EngineCheck{Kind: "llamacpp", MissingTools: []string{"cmake"}}
	fine := &provisionerv1.EngineCheck{Kind: "xllamacpp", Available: true}
	tests := []struct {
		name    string
		engines []*provisionerv1.EngineCheck
		store   *provisionerv1.StoreCheck
		want    reason.Reason
		remedy  string
	}{
		{"one engine can be had", []*provisionerv1.EngineCheck{missing, fine}, nil, reason.Unspecified, ""},
		{"none can", []*provisionerv1.EngineCheck{missing}, nil, reason.ToolMissing, "install what"},
		{
			"the store is read-only", []*provisionerv1.EngineCheck{fine},
			&provisionerv1.StoreCheck{Path: "/s", Problem: "read-only", FreeBytes: 1 << 40}, reason.StorageFailed,
			"make /s a folder that the provisioner can write",
		},
		{
			"the store has little room", []*provisionerv1.EngineCheck{fine},
			&provisionerv1.StoreCheck{Path: "/s", Problem: "59 MiB free", FreeBytes: 59 << 20}, reason.DiskFull,
			"free space on the file system of /s",
		},
		{
			"the store has no room", []*provisionerv1.EngineCheck{fine},
			&provisionerv1.StoreCheck{Path: "/s", Problem: "0 MiB free"}, reason.DiskFull, "free space on the file system of /s",
		},
		{
			"little room is no problem to the provisioner", []*provisionerv1.EngineCheck{fine},
			&provisionerv1.StoreCheck{Path: "/s", FreeBytes: 5}, reason.Unspecified, "",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := Machine(&provisionerv1.PreflightResponse{Engines: test.engines, Store: test.store})
			if got := reason.Of(err); got != test.want {
				t.Fatalf("Machine = %v, want %v", err, test.want)
			}
			if e, ok := reason.As(err); ok && !strings.HasPrefix(e.Remedy, test.remedy) {
				t.Errorf("remedy is %q, want %q", e.Remedy, test.remedy)
			}
		})
	}
}
