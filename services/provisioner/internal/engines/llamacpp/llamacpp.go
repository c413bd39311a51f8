// SPDX-License-Identifier: Apache-2.0

// Package llamacpp is the engine kind llamacpp: llama-server of llama.cpp, built here, out of a package, or installed.
//
// What it knows was read in and measured with v0.5.0. It is a description and may be used by several goroutines at once.
package llamacpp

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamaserver"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// program is the executable's name wherever it comes from.
const program = "llama-server"

// recipeRevision is to be raised when a change here gives another binary from the same definitions.
const recipeRevision = "1"

// Kind is llama-server. The zero value is ready to use.
type Kind struct{}

// Traits implements engines.Kind.
func (Kind) Traits() engines.Traits {
	return engines.Traits{
		Name: "llamacpp",
		Ways: []engines.Way{
			{
				Mode:  enginev1.ProvisioningMode_PROVISIONING_MODE_SOURCE,
				Tools: []toolchain.Name{toolchain.Git, toolchain.CMake, toolchain.Ninja, toolchain.CC, toolchain.CXX},
			},
			{Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE},
			{Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_EXTERNAL},
		},
		Owned: llamaserver.Owned(),
	}
}

// Recipe implements engines.Kind. The binary has ggml in it, needs only the C and C++ libraries, has no TLS, no web page
// and no OpenMP, whose threads would spin beside those of other engines.
func (Kind) Recipe(build *enginev1.SourceBuild) engines.Recipe {
	native := "OFF"
	if build.GetCpuTarget() == enginev1.CpuTarget_CPU_TARGET_NATIVE {
		native = "ON"
	}
	return engines.Recipe{
		Revision: recipeRevision,
		Definitions: map[string]string{
			"BUILD_SHARED_LIBS":     "OFF",
			"CMAKE_BUILD_TYPE":      "Release",
			"GGML_CCACHE":           "OFF",
			"GGML_NATIVE":           native,
			"GGML_OPENMP":           "OFF",
			"LLAMA_BUILD_APP":       "OFF",
			"LLAMA_BUILD_EXAMPLES":  "OFF",
			"LLAMA_BUILD_SERVER":    "ON",
			"LLAMA_BUILD_TESTS":     "OFF",
			"LLAMA_BUILD_UI":        "OFF",
			"LLAMA_CURL":            "OFF",
			"LLAMA_OPENSSL":         "OFF",
			"LLAMA_USE_PREBUILT_UI": "OFF",
		},
		Targets: []string{program},
		Output:  filepath.Join("bin", program),
	}
}

// Complete implements engines.Kind: the executable is the one named, or the one file of the package called llama-server.
func (Kind) Complete(_ context.Context, dir, executable, _ string, _ engines.Ask) (engines.Layout, error) {
	tree := os.DirFS(dir)
	var programs, libraries []string
	err := fs.WalkDir(tree, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		if path == executable || executable == "" && entry.Name() == program {
			programs = append(programs, path)
		}
		if folder := filepath.Dir(path); strings.Contains(entry.Name(), ".so") && !slices.Contains(libraries, folder) {
			libraries = append(libraries, folder)
		}
		return nil
	})
	if err != nil {
		return engines.Layout{}, fmt.Errorf("look for the executable of the package: %w", err)
	}
	if len(programs) != 1 {
		return engines.Layout{}, reason.New(reason.EngineNotFound,
			fmt.Sprintf("the package has %d files called %s", len(programs), cmp.Or(executable, program)),
			reason.Field("spec.engine.package.executable"), reason.Meta("found", strings.Join(programs, ",")),
			reason.Remedy("name the path of the executable in the package"))
	}
	if err := os.Chmod(filepath.Join(dir, programs[0]), 0o755); err != nil {
		return engines.Layout{}, fmt.Errorf("make %s executable: %w", programs[0], err)
	}
	return engines.Layout{Executable: programs[0], LibraryDirs: libraries}, nil
}

var versionLine = regexp.MustCompile(`(?m)^version: (.{1,200}?)\s*$`)

// Probe implements engines.Kind: --version, then --help.
func (Kind) Probe(ctx context.Context, p engines.Program, ask engines.Ask) (engines.Probe, error) {
	text, err := ask(ctx, p, llamaserver.Env(), "--version")
	if err != nil {
		return engines.Probe{}, fmt.Errorf("ask %s for its version: %w", p.Executable, err)
	}
	found := versionLine.FindStringSubmatch(text)
	if found == nil {
		return engines.Probe{}, notLlamaServer(p, "it does not print its version for --version")
	}
	text, err = ask(ctx, p, llamaserver.Env(), "--help")
	if err != nil {
		return engines.Probe{}, fmt.Errorf("ask %s for its flags: %w", p.Executable, err)
	}
	flags := engines.ParseHelp(text)
	if !slices.ContainsFunc(flags, func(f engines.Flag) bool { return slices.Contains(f.Names, "--ctx-size") }) {
		return engines.Probe{}, notLlamaServer(p, "it does not list its flags for --help")
	}
	return engines.Probe{Version: found[1], Flags: flags}, nil
}

func notLlamaServer(p engines.Program, why string) error {
	return reason.New(reason.EngineNotFound, fmt.Sprintf("%s is not a llama-server: %s", p.Executable, why),
		reason.Field("spec.engine"), reason.Remedy("name a llama-server of llama.cpp"))
}

// Launch implements engines.Kind. The run after loading that --no-warmup leaves out makes the first real request no
// faster: 0.11 s to its first token either way, READY 20 ms later. --fit would change the context without a word.
func (Kind) Launch(p engines.Program, probe engines.Probe, serving engines.Serving) (engines.Launch, error) {
	return llamaserver.Launch(p, probe, serving, []string{"--fit", "off"}, []string{"--no-warmup"}, []string{"--no-ui"}, []string{"--offline"})
}
