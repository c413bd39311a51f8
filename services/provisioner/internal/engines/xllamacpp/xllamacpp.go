// SPDX-License-Identifier: Apache-2.0

// Package xllamacpp is the engine kind xllamacpp: llama.cpp's HTTP server inside a Python process, out of the wheel of
// that name, with nothing to compile.
//
// The wheel has no program, so two files are added to it: a launcher of ours, which takes llama-server's flags and lets
// requests in flight end after a SIGTERM, and a copy of this machine's Python interpreter, so that all that is executed
// lies in one folder with its digest. Python's standard library and the system's shared libraries are used where they
// are. The interpreter reads no other packages and writes no files. A Kind is a description and may be used by several
// goroutines at once.
package xllamacpp

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamaserver"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// The files that are added, below the engine's folder.
const (
	launcherName    = "launcher.py"
	interpreterName = "bin/python3"
)

//go:embed launcher.py
var launcher string

// Kind is the xllamacpp wheel. The zero value is ready to use.
type Kind struct{}

// Traits implements engines.Kind.
func (Kind) Traits() engines.Traits {
	return engines.Traits{
		Name: "xllamacpp",
		Ways: []engines.Way{{
			Mode:  enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE,
			Tools: []toolchain.Name{toolchain.Python},
		}},
		Owned:       llamaserver.Owned(),
		Interpreter: toolchain.Python,
		Revision:    fmt.Sprintf("1 %x", sha256.Sum256([]byte(launcher))),
		Packages:    []string{"xllamacpp"},
	}
}

// Recipe implements engines.Kind; the kind is not built from source.
func (Kind) Recipe(*enginev1.SourceBuild) engines.Recipe { return engines.Recipe{} }

// Complete implements engines.Kind: it adds launcher and interpreter.
func (Kind) Complete(ctx context.Context, dir, executable, interpreter string, ask engines.Ask) (engines.Layout, error) {
	if executable != "" {
		return engines.Layout{}, reason.New(reason.InvalidParams, "a package of the kind xllamacpp has no executable of its own",
			reason.Field("spec.engine.package.executable"), reason.Remedy("leave it empty"))
	}
	if _, err := os.Stat(filepath.Join(dir, "xllamacpp", "__init__.py")); err != nil {
		return engines.Layout{}, notTheWheel("the package has no module xllamacpp")
	}
	python := engines.Program{Executable: interpreter, Dir: dir}
	prefix, err := ask(ctx, python, nil, "-I", "-S", "-c", "import sys; print(sys.base_prefix)")
	if err != nil {
		return engines.Layout{}, fmt.Errorf("ask %s where its library is: %w", interpreter, err)
	}
	if err := os.WriteFile(filepath.Join(dir, launcherName), []byte(launcher), 0o644); err != nil {
		return engines.Layout{}, fmt.Errorf("add the launcher: %w", err)
	}
	if err := copyProgram(interpreter, filepath.Join(dir, interpreterName)); err != nil {
		return engines.Layout{}, fmt.Errorf("add the interpreter: %w", err)
	}
	return engines.Layout{
		Executable: interpreterName,
		Args:       []string{"-s", "-S", "-B"},
		Script:     launcherName,
		Env: map[string]string{
			"PYTHONHOME": strings.TrimSpace(prefix), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1",
		},
	}, nil
}

func copyProgram(from, to string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = source.Close() }()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}

func notTheWheel(why string) error {
	return reason.New(reason.EngineNotFound, why, reason.Field("spec.engine.package.uri"), reason.Remedy("name a wheel of xllamacpp"))
}

var versionLine = regexp.MustCompile(`(?m)^version: (\S{1,200})$`)

// Probe implements engines.Kind: --version loads the wheel's library, --help lists what the launcher takes.
func (Kind) Probe(ctx context.Context, p engines.Program, ask engines.Ask) (engines.Probe, error) {
	text, err := ask(ctx, p, llamaserver.Env(), "--version")
	if err != nil {
		return engines.Probe{}, fmt.Errorf("load the wheel's library: %w", err)
	}
	found := versionLine.FindStringSubmatch(text)
	if found == nil {
		return engines.Probe{}, notTheWheel("the package does not tell its version")
	}
	text, err = ask(ctx, p, llamaserver.Env(), "--help")
	if err != nil {
		return engines.Probe{}, fmt.Errorf("ask the launcher for its flags: %w", err)
	}
	return engines.Probe{Version: found[1], Flags: engines.ParseHelp(text)}, nil
}

// Launch implements engines.Kind. The run after loading stays on: without it the first request's first token takes three
// times as long, 0.7 s in place of 0.2 s.
func (Kind) Launch(p engines.Program, probe engines.Probe, serving engines.Serving) (engines.Launch, error) {
	launch, err := llamaserver.Launch(p, probe, serving, []string{"--fit", "off"}, []string{"--no-ui"}, []string{"--offline"})
	if err != nil {
		return engines.Launch{}, err
	}
	launch.Contract.ExitPatterns = append(launch.Contract.ExitPatterns,
		&enginev1.ExitPattern{Contains: "error: server did not start:", Class: enginev1.ExitClass_EXIT_CLASS_CONFIG})
	return launch, nil
}
