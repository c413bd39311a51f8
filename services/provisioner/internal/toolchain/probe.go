// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// probeTimeout is for one question to a tool: milliseconds on a quiet machine, seconds from a cold disk.
const probeTimeout = 30 * time.Second

// prober asks the program at path what it is. The error says why it cannot be used.
type prober func(ctx context.Context, d *Detector, path string) (finding, error)

// ask returns what the program prints on its standard output.
func (d *Detector) ask(ctx context.Context, path string, args ...string) ([]string, error) {
	var out []string
	_, err := runner.Run(ctx, runner.Command{
		Path: path, Args: args, Env: d.env, Timeout: probeTimeout, Grace: time.Second,
		Lines: func(s runner.Stream, line string) {
			if s == runner.Stdout {
				out = append(out, line)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, errors.New("it prints nothing about itself")
	}
	return out, nil
}

// found is a finding whose files are paths.
func found(tool Tool, paths ...string) (finding, error) {
	f := finding{tool: tool}
	for _, path := range paths {
		s, err := stampOf(path)
		if err != nil {
			return finding{}, err
		}
		f.files = append(f.files, s)
	}
	return f, nil
}

func probeVersion(ctx context.Context, d *Detector, path string) (finding, error) {
	out, err := d.ask(ctx, path, "--version")
	if err != nil {
		return finding{}, err
	}
	version := versions(out[0])
	if len(version) == 0 {
		return finding{}, fmt.Errorf("no version in %q", out[0])
	}
	return found(Tool{Path: path, Version: version[0], Identity: out[0]}, path)
}

func probeC(ctx context.Context, d *Detector, path string) (finding, error) {
	return probeCompiler(ctx, d, path, "c", "stdio.h")
}

func probeCXX(ctx context.Context, d *Detector, path string) (finding, error) {
	return probeCompiler(ctx, d, path, "c++", "vector")
}

// probeCompiler asks a compiler for its version, its target and its linker, and has it read a header of its library,
// which is often in a package of its own.
func probeCompiler(ctx context.Context, d *Detector, path, language, header string) (finding, error) {
	out, err := d.ask(ctx, path, "--version")
	if err != nil {
		return finding{}, err
	}
	version := versions(out[0])
	if len(version) == 0 {
		return finding{}, fmt.Errorf("no version in %q", out[0])
	}
	target, err := d.ask(ctx, path, "-dumpmachine")
	if err != nil {
		return finding{}, err
	}
	_, err = runner.Run(ctx, runner.Command{
		Path: path, Args: []string{"-fsyntax-only", "-include", header, "-x", language, "/dev/null"},
		Env: d.env, Timeout: probeTimeout,
	})
	if err != nil {
		return finding{}, fmt.Errorf("cannot compile with <%s>: %w", header, err)
	}
	linkerPath, linker, err := d.linker(ctx, path)
	if err != nil {
		return finding{}, err
	}
	// The compiler prints the name it was called by first, and that says nothing.
	name := strings.TrimPrefix(out[0], filepath.Base(path)+" ")
	return found(Tool{
		Path: path, Version: version[len(version)-1],
		Identity: strings.Join([]string{language, name, target[0], linker}, " | "),
	}, path, linkerPath)
}

// linker finds the linker of a compiler and what it says about itself.
func (d *Detector) linker(ctx context.Context, compiler string) (path, identity string, err error) {
	out, err := d.ask(ctx, compiler, "-print-prog-name=ld")
	if err != nil {
		return "", "", err
	}
	path = out[0]
	if !filepath.IsAbs(path) {
		if path, err = runner.LookPath(path, d.path); err != nil {
			return "", "", fmt.Errorf("find linker: %w", err)
		}
	}
	out, err = d.ask(ctx, path, "--version")
	if err != nil {
		return "", "", fmt.Errorf("probe linker: %w", err)
	}
	return path, out[0], nil
}

// probePython takes the interpreter itself in place of a script that picks one.
func probePython(ctx context.Context, d *Detector, path string) (finding, error) {
	out, err := d.ask(ctx, path, "-I", "-c",
		"import sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.executable); print(sys.version.replace('\\n', ' '))")
	if err != nil {
		return finding{}, err
	}
	if len(out) != 3 || !filepath.IsAbs(out[1]) {
		return finding{}, fmt.Errorf("it answers %q", out)
	}
	return found(Tool{Path: out[1], Version: out[0], Identity: "python " + out[2]}, path, out[1])
}

// versions returns the dotted numbers of a line.
func versions(line string) []string {
	return regexp.MustCompile(`[0-9]+(?:\.[0-9]+)+`).FindAllString(line, -1)
}

// older tells whether version comes before minimum, number by number. An empty minimum is older than all.
func older(version, minimum string) bool {
	if minimum == "" {
		return false
	}
	have, want := strings.Split(version, "."), strings.Split(minimum, ".")
	for i := range want {
		w, _ := strconv.Atoi(want[i])
		h := 0
		if i < len(have) {
			h, _ = strconv.Atoi(have[i])
		}
		if h != w {
			return h < w
		}
	}
	return false
}
