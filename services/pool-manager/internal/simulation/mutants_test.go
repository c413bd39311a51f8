// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mutant is one guard that is taken away.
type mutant struct {
	name, file, old, new string
	// test is the package and the test that notices; without one the simulation does.
	test string
}

// mutantLimit is for one mutant, which may have the world go round for ever.
const mutantLimit = 2 * time.Minute

// mutants reads the list.
func mutants(t *testing.T) []mutant {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "mutants.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var list []mutant
	for block := range strings.SplitSeq(string(text), "\n\n") {
		var m mutant
		for line := range strings.SplitSeq(strings.TrimSpace(block), "\n") {
			key, value, _ := strings.Cut(line, ": ")
			switch key {
			case "name":
				m.name = value
			case "file":
				m.file = value
			case "old":
				m.old = value
			case "new":
				m.new = value
			case "test":
				m.test = value
			}
		}
		if m.name != "" {
			list = append(list, m)
		}
	}
	return list
}

// TestMutantsApply checks that every guard of the list is still where the list says.
func TestMutantsApply(t *testing.T) {
	t.Parallel()
	for _, m := range mutants(t) {
		text, err := os.ReadFile(filepath.Join("..", m.file))
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.Contains(string(text), m.old) {
			t.Errorf("%s: %s does not hold %q any more", m.name, m.file, m.old)
		}
	}
}

// TestMutants runs the simulation, or the test that the list names, without one guard after another. It does so when asked with -mutants, for it takes minutes.
func TestMutants(t *testing.T) {
	if flags.mutants == 0 {
		return
	}
	for _, m := range mutants(t) {
		if flags.only != "" && !strings.Contains(m.name, flags.only) {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			began := time.Now()
			said, err := m.run(t)
			if err == nil {
				t.Errorf("nothing has noticed")
				return
			}
			first, _, _ := strings.Cut(said[max(0, strings.Index(said, "seed "), strings.Index(said, "--- FAIL")):], "\n")
			t.Logf("%s: %s", time.Since(began).Round(time.Second), first)
		})
	}
}

// run builds this test without the guard, and runs it. It returns what it has said, and an error if that has failed.
func (m mutant) run(t *testing.T) (string, error) {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("..", m.file))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	changed := filepath.Join(dir, "mutant.go")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {file: changed}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	in, arguments := ".", []string{"-test.run", "^TestSeeds$", "-seeds", flags.mutantSeeds()}
	if folder, test, named := strings.Cut(m.test, " "); named {
		in, arguments = filepath.Join("..", folder), []string{"-test.run", "^" + test + "$"}
	}
	binary := filepath.Join(dir, "mutant.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-o", binary, "-overlay", filepath.Join(dir, "overlay.json"), "./"+in)
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the mutant cannot be built: %v\n%s", err, said)
	}
	ctx, cancel := context.WithTimeout(t.Context(), mutantLimit)
	defer cancel()
	run := exec.CommandContext(ctx, binary, arguments...)
	run.Dir = in
	said, err := run.CombinedOutput()
	return string(said), err
}
