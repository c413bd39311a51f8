// SPDX-License-Identifier: Apache-2.0

package build

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// project is a small CMake project of C files, and a recipe for it.
type project struct {
	t      *testing.T
	recipe Recipe
	log    *bytes.Buffer
}

const (
	cmakeLists = `cmake_minimum_required(VERSION 3.14)
project(tiny C)
add_executable(tiny main.c a.c b.c)
`
	mainC = "int a(void);\nint b(void);\nint main(void) { return a() + b(); }\n"
	aC    = "int a(void) { return 1; }\n"
	bC    = "int b(void) { return -1; }\n"
)

func newProject(t *testing.T) project {
	t.Helper()
	root := t.TempDir()
	p := project{t: t, log: &bytes.Buffer{}}
	p.recipe = Recipe{
		SourceDir: filepath.Join(root, "source"), BuildDir: filepath.Join(root, "build"), Targets: []string{"tiny"},
		Definitions: map[string]string{"TINY_OPTION": "1"}, Log: p.log,
	}
	if err := os.Mkdir(p.recipe.SourceDir, 0o750); err != nil {
		t.Fatal(err)
	}
	p.write("CMakeLists.txt", cmakeLists)
	p.write("main.c", mainC)
	p.write("a.c", aC)
	p.write("b.c", bC)
	return p
}

func (p project) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.recipe.SourceDir, name), []byte(text), 0o755); err != nil {
		p.t.Fatal(err)
	}
}

// seen is what one build told.
type seen struct {
	progress []Progress
	lines    []string
}

func (s seen) has(part string) bool {
	return slices.ContainsFunc(s.lines, func(line string) bool { return strings.Contains(line, part) })
}

// build builds, and checks what holds for every build.
func (p project) build(ctx context.Context, b *Builder) (Result, seen, error) {
	p.t.Helper()
	var s seen
	res, err := b.Build(ctx, p.recipe, Observer{
		Progress: func(g Progress) { s.progress = append(s.progress, g) },
		Line:     func(_ runner.Stream, line string) { s.lines = append(s.lines, line) },
	})
	if !slices.IsSortedFunc(s.progress, func(a, b Progress) int {
		if a.Phase != b.Phase {
			return int(a.Phase - b.Phase)
		}
		return a.Percent - b.Percent
	}) {
		p.t.Errorf("progress goes back: %+v", s.progress)
	}
	last := Progress{}
	if n := len(s.progress); n > 0 {
		last = s.progress[n-1]
	}
	if ended := last.Phase == Compile && last.Percent == 100; ended != (err == nil) {
		p.t.Errorf("last progress is %+v with error %v", last, err)
	}
	if _, err := os.Stat(filepath.Join(p.recipe.BuildDir, ownName, "tmp")); !os.IsNotExist(err) {
		p.t.Errorf("temporary files of compilers are left: %v", err)
	}
	return res, s, err
}

func (p project) must(b *Builder) (Result, seen) {
	p.t.Helper()
	res, s, err := p.build(p.t.Context(), b)
	if err != nil {
		p.t.Fatalf("build: %v\n%s", err, p.log)
	}
	return res, s
}

func newTools(t *testing.T, path string) *toolchain.Detector {
	t.Helper()
	tools, err := toolchain.New(toolchain.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return tools
}

func newTestBuilder(t *testing.T) *Builder {
	t.Helper()
	b, err := New(Config{Tools: newTools(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
