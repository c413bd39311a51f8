// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// update is a variable because a flag has to be there before the test binary reads its command line.
var update = flag.Bool("update", false, "write golden files instead of comparing them") //nolint:gochecknoglobals // as above

// Golden compares got with the file testdata/name of the package under test and shows the lines that differ. With the
// flag -update it writes the file instead, and its folder if need be.
func Golden(tb testing.TB, name string, got []byte) {
	tb.Helper()
	path := filepath.Join("testdata", filepath.FromSlash(name))
	if *update {
		if err := writeGolden(path, got); err != nil {
			tb.Fatalf("write golden file: %v", err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		tb.Fatalf("read golden file (go test -update writes it): %v", err)
	}
	if !bytes.Equal(want, got) {
		tb.Errorf("%s differs, - is the file, + is what came (go test -update takes it over):\n%s", path,
			cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")))
	}
}

func writeGolden(path string, got []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, got, 0o644)
}
