// SPDX-License-Identifier: Apache-2.0

package build

import (
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// reserved are the definitions that this package sets itself.
func reserved() []string {
	return []string{
		"CMAKE_GENERATOR", "CMAKE_MAKE_PROGRAM", "CMAKE_C_COMPILER", "CMAKE_CXX_COMPILER",
		"CMAKE_C_COMPILER_LAUNCHER", "CMAKE_CXX_COMPILER_LAUNCHER", "CMAKE_HOME_DIRECTORY", "CMAKE_CACHEFILE_DIR",
	}
}

// check refuses a recipe that cmake or ninja would take for something else.
func (r Recipe) check() error {
	bad := func(problem string) error {
		return reason.New(reason.InvalidParams, problem, reason.Field("engine.source_build"),
			reason.Remedy("have the store in a folder with a plain absolute path, and use options that the engine kind gives"))
	}
	for _, dir := range []string{r.SourceDir, r.BuildDir} {
		if !filepath.IsAbs(dir) || strings.ContainsAny(dir, "\n\x00") {
			return bad(fmt.Sprintf("folder %q is not an absolute path", dir))
		}
	}
	if r.CCacheDir != "" && !filepath.IsAbs(r.CCacheDir) {
		return bad(fmt.Sprintf("ccache folder %q is not an absolute path", r.CCacheDir))
	}
	if inside, err := filepath.Rel(r.BuildDir, r.SourceDir); err == nil && filepath.IsLocal(inside) {
		return bad(fmt.Sprintf("source folder %q lies in the build folder", r.SourceDir))
	}
	name := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	for _, key := range slices.Sorted(maps.Keys(r.Definitions)) {
		if !name.MatchString(key) || slices.Contains(reserved(), key) {
			return bad(fmt.Sprintf("definition %q is not allowed", key))
		}
		if strings.ContainsAny(r.Definitions[key], "\n\r\x00") {
			return bad("the value of definition " + key + " has a line break")
		}
	}
	target := regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_./+-]*$`)
	for _, t := range r.Targets {
		if !target.MatchString(t) {
			return bad(fmt.Sprintf("target %q is not allowed", t))
		}
	}
	return nil
}

// kit is the tools of one build.
type kit struct {
	cmake, ninja, cc, cxx toolchain.Tool
	ccache                toolchain.Tool // not usable: build without
}

// configuration returns cmake's arguments.
func (r Recipe) configuration(k kit) []string {
	defs := map[string]string{"CMAKE_BUILD_TYPE": "Release"}
	maps.Copy(defs, r.Definitions)
	defs["CMAKE_MAKE_PROGRAM"] = k.ninja.Path
	defs["CMAKE_C_COMPILER"] = k.cc.Path
	defs["CMAKE_CXX_COMPILER"] = k.cxx.Path
	if k.ccache.Usable() {
		defs["CMAKE_C_COMPILER_LAUNCHER"] = k.ccache.Path
		defs["CMAKE_CXX_COMPILER_LAUNCHER"] = k.ccache.Path
	}
	args := []string{"-S", r.SourceDir, "-B", r.BuildDir, "-G", "Ninja"}
	for _, key := range slices.Sorted(maps.Keys(defs)) {
		args = append(args, "-D"+key+"="+defs[key])
	}
	return args
}

// fingerprint tells configurations apart: the arguments, and the tools behind their paths.
func (r Recipe) fingerprint(k kit) string {
	lines := append([]string{"1"}, r.configuration(k)...)
	for _, t := range []toolchain.Tool{k.cmake, k.ninja, k.cc, k.cxx} {
		lines = append(lines, string(t.Name)+" "+t.Identity)
	}
	return strings.Join(lines, "\n") + "\n"
}

// bytesPerJob is what a compiler of a large C++ file with optimisation takes.
const bytesPerJob = 3 << 29

// jobs is how many compilers a machine bears.
func (r Recipe) jobs(h toolchain.Host) int {
	n := min(h.Cores, int(h.MemoryBytes/bytesPerJob))
	if r.Jobs > 0 {
		n = min(n, r.Jobs)
	}
	return max(n, 1)
}
