// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"runtime"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

//go:embed presets/*.yaml
var presets embed.FS

// PresetNames lists the presets, the default of the demo first.
func PresetNames() []string { return []string{"quick", "source"} }

// Preset is the spec of that name for this machine's architecture, with every byte pinned by digest: "quick" is a
// prebuilt engine out of a package, "source" builds one.
func Preset(name string) (*enginev1.PrepareSpec, error) { return presetFor(name, runtime.GOARCH) }

func presetFor(name, arch string) (*enginev1.PrepareSpec, error) {
	if !contains(PresetNames(), name) {
		return nil, reason.New(reason.InvalidParams, fmt.Sprintf("there is no preset %q", name), reason.Field("--preset"),
			reason.Remedy("give quick or source"))
	}
	for _, file := range []string{name + ".yaml", name + "-" + arch + ".yaml"} {
		data, err := presets.ReadFile("presets/" + file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read preset %s: %w", file, err)
		}
		request := &provisionerv1.PrepareRequest{}
		if err := decode(file, data, request); err != nil {
			return nil, err
		}
		return request.GetSpec(), nil
	}
	return nil, reason.New(reason.InvalidParams, fmt.Sprintf("preset %q does not exist for %s", name, arch),
		reason.Field("--preset"), reason.Remedy("use --preset source, which is built on the machine itself"))
}
