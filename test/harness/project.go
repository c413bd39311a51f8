// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"testing"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Project is a small CMake project in place of an engine's source. Its program tells a version and flags as an engine does
// and can do nothing else.
type Project struct {
	// BuiltLog gets a line each time that the project's program is compiled.
	BuiltLog string
	// Gate, unless empty, is a file that the build waits for before its last steps.
	Gate string
	// Broken makes the compiler refuse the program.
	Broken bool
	// Hostile are names of more files in its archive.
	Hostile []string
}

const projectCMake = `cmake_minimum_required(VERSION 3.14)
project(tiny C)
add_custom_command(OUTPUT gate.h
  COMMAND /bin/sh -c "echo waiting at the gate; until test -e '%s'; do sleep 0.02; done; echo '/* open */' > gate.h"
  VERBATIM)
add_custom_command(OUTPUT built.h DEPENDS gate.h ${CMAKE_CURRENT_SOURCE_DIR}/main.c
  COMMAND /bin/sh -c "echo built >> '%s'; echo '/* built */' > built.h"
  VERBATIM)
add_executable(llama-server a.c b.c main.c gate.h built.h)
target_include_directories(llama-server PRIVATE ${CMAKE_CURRENT_BINARY_DIR})
set_target_properties(llama-server PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
`

const projectMain = `#include <stdio.h>
#include <string.h>
#include "gate.h"
#include "built.h"
int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "--version") == 0) puts("version: 42 (tiny)");
  else if (argc > 1) puts("--host HOST\n--port PORT\n--model FNAME\n--alias STRING\n--ctx-size N\n--parallel N\n--metrics\n");
  return argc > 1 ? 0 : 1;
}
`

// Archive is the project as a .tar.gz.
func (p Project) Archive(tb testing.TB) []byte {
	tb.Helper()
	gate, main := p.Gate, projectMain
	if gate == "" {
		gate = "/dev/null"
	}
	if p.Broken {
		main = "int main(void) { return no_such_thing; }\n"
	}
	files := [][2]string{
		{"tiny/CMakeLists.txt", fmt.Sprintf(projectCMake, gate, p.BuiltLog)},
		{"tiny/a.c", "int a(void) { return 1; }\n"},
		{"tiny/b.c", "int b(void) { return 2; }\n"},
		{"tiny/main.c", main},
	}
	for _, name := range p.Hostile {
		files = append(files, [2]string{name, "escaped\n"})
	}
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	archive := tar.NewWriter(packed)
	for _, file := range files {
		if err := archive.WriteHeader(&tar.Header{Name: file[0], Mode: 0o644, Size: int64(len(file[1]))}); err != nil {
			tb.Fatalf("write archive: %v", err)
		}
		if _, err := archive.Write([]byte(file[1])); err != nil {
			tb.Fatalf("write archive: %v", err)
		}
	}
	for _, writer := range []interface{ Close() error }{archive, packed} {
		if err := writer.Close(); err != nil {
			tb.Fatalf("write archive: %v", err)
		}
	}
	return out.Bytes()
}

// ProjectEngine is a project to be built, from an archive below the node's root, with a tiny model.
func (n *Node) ProjectEngine(tb testing.TB, project Project) *enginev1.PrepareSpec {
	tb.Helper()
	data := project.Archive(tb)
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_SourceBuild{SourceBuild: &enginev1.SourceBuild{
			Origin: &enginev1.SourceBuild_Archive{Archive: &enginev1.SourceArchive{
				Uri: "file:" + n.WriteFile(tb, "tiny-"+SHA256(data)[:8]+".tar.gz", data), Sha256: SHA256(data),
			}},
			Accelerator: enginev1.Accelerator_ACCELERATOR_CPU,
		}}},
		Model: &enginev1.ModelSpec{Uri: "file:" + n.WriteFile(tb, "tiny.gguf", TinyGGUF("tiny"))},
	}
}
