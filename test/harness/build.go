// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	// programsVar is how Main tells the tests where the programs are.
	programsVar = "ROUNDHOUSE_TEST_PROGRAMS"
	// failing is the folder, beside the programs, of those with failpoints.
	failing = "failing"
	// cacheVar overrules where the tests' shared store is.
	cacheVar = "ROUNDHOUSE_TEST_CACHE"
)

// Main builds the programs with the race detector, runs the tests, and returns the exit code. It makes the process the
// parent of every orphan, so that what a killed daemon leaves can be collected; one that still lives at the end is a failure.
func Main(m *testing.M) int {
	if code, done := inNamespace(); done {
		return code
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "harness:", err)
		return 1
	}
	return code
}

func run(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "rhbin")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := build(dir); err != nil {
		return 0, err
	}
	if err := os.Setenv(programsVar, dir); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become the parent of orphans: %w", err)
	}
	code = m.Run()
	var left Processes
	for _, child := range childrenOf(os.Getpid()) {
		if child.Zombie { // an orphan of a daemon that a test has killed
			_, _ = syscall.Wait4(child.PID, nil, 0, nil)
			continue
		}
		left = append(left, child)
	}
	if len(left) > 0 {
		return 0, fmt.Errorf("processes are left at the end: %s", left)
	}
	return code, nil
}

func build(dir string) error {
	root, err := repository()
	if err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, failing), 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"-o", dir, "-race", "./services/provisioner/cmd/engine-provisioner", "./services/pool-manager/cmd/pool-managerd", "./cmd/roundhouse"},
		{"-o", filepath.Join(dir, failing), "-race", "-tags", "failpoint", "./services/pool-manager/cmd/pool-managerd"},
		{"-o", dir, "./test/fakeengine"}, // it stands for engines, which start fast
	} {
		command := exec.Command("go", append([]string{"build", "-buildvcs=false"}, args...)...)
		command.Dir = root
		if text, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("build the programs: %w\n%s", err, text)
		}
	}
	return nil
}

// repository is the folder with the workspace file.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", errors.New("find the repository: no folder above has a go.work")
		}
		dir = filepath.Dir(dir)
	}
}

// programs is the folder of the programs that Main has built.
func programs(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv(programsVar)
	if dir == "" {
		tb.Fatal("the programs were not built: TestMain must call harness.Main")
	}
	return dir
}

// SharedStore is the store that all tests with real engines share, also with those of other runs, so that what is
// downloaded or built once stays; the demo uses it too. $ROUNDHOUSE_TEST_CACHE overrules where it is.
func SharedStore(tb testing.TB) string {
	tb.Helper()
	if dir := os.Getenv(cacheVar); dir != "" {
		return filepath.Join(dir, "store")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		tb.Fatalf("find the cache of this user: %v", err)
	}
	return filepath.Join(cache, "roundhouse", "store")
}

// Tool is a pinned tool of the repository.
func Tool(tb testing.TB, name string) string {
	tb.Helper()
	root, err := repository()
	if err != nil {
		tb.Fatal(err)
	}
	path := filepath.Join(root, ".bin", name)
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("%s is not installed: run make tool-%s (%v)", name, name, err)
	}
	return path
}
