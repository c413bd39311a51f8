// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// keyOf returns a store key made of name and a digest of parts; no two lists of parts have one key.
func keyOf(name string, parts ...string) string {
	h := sha256.New()
	for _, part := range parts {
		_, _ = fmt.Fprintf(h, "%d:%s\n", len(part), part)
	}
	return name + "-" + hex.EncodeToString(h.Sum(nil)[:20])
}

// BuildKey is the store key of an engine that is built: it changes with the source, the options, the compilers and what
// the result runs on. source is a commit, or the digest of an archive.
func (p Planner) BuildKey(kind engines.Kind, build *enginev1.SourceBuild, source, compilers string) string {
	traits, recipe := kind.Traits(), kind.Recipe(build)
	parts := []string{"source", source, recipe.Revision, recipe.Output, strings.Join(recipe.Targets, " "), compilers, p.Platform, build.GetAccelerator().String()}
	for _, name := range slices.Sorted(maps.Keys(recipe.Definitions)) {
		parts = append(parts, name+"="+recipe.Definitions[name])
	}
	if build.GetCpuTarget() == enginev1.CpuTarget_CPU_TARGET_NATIVE {
		parts = append(parts, "native", p.Processor)
	}
	return keyOf(traits.Name, parts...)
}

// PackageKey is the store key of an engine from a package. interpreter tells the kind's interpreter from others, and is
// empty if it has none.
func PackageKey(traits engines.Traits, artifact *enginev1.PackageArtifact, interpreter string) string {
	return keyOf(traits.Name, "package", artifact.GetSha256(), artifact.GetExecutable(), traits.Revision, interpreter)
}

// The keys of resolutions. A resolution is what a name was found to mean.

// ProbeKey keeps what the engine of a store key, or of an executable's digest, said of itself.
func ProbeKey(traits engines.Traits, engine string) string {
	return "probe " + traits.Name + " " + traits.Revision + " " + engine
}

// InspectKey keeps what the header of a model file says.
func InspectKey(digest store.Digest) string { return "inspect 1 " + string(digest) }

// CommitKey keeps the commit of a reference in origin, which is an address or a bundle's digest.
func CommitKey(origin, ref string) string { return "commit " + origin + " " + ref }

// RecordKey keeps the prepared id of a spec's key.
func RecordKey(key string) string { return "prepared " + key }

// durationKey keeps what a step took. Credentials in the subject's address are not kept.
func durationKey(step, subject string) string {
	return "duration " + step + " " + reason.Redact(subject)
}
