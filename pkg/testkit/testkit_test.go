// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func TestEventually(t *testing.T) {
	t.Parallel()
	looks := 0
	good := new(recorder)
	if failures := good.run(func() {
		Eventually(good, time.Minute, "three looks", func() (bool, string) { looks++; return looks == 3, "" })
	}); failures != nil || looks != 3 {
		t.Errorf("a condition that came true at look 3: %d looks, failures %v", looks, failures)
	}
	bad := new(recorder)
	failures := bad.run(func() {
		Eventually(bad, 5*time.Millisecond, "the moon", func() (bool, string) { return false, "still dark" })
	})
	if len(failures) != 1 || !strings.Contains(failures[0], "the moon: still dark") {
		t.Errorf("a condition that never came true: failures %q", failures)
	}
}

// These read and write the working directory and a flag, so they run one after another and alone.
func TestGolden(t *testing.T) {
	t.Chdir(t.TempDir())
	compare := func(got string) []string {
		r := new(recorder)
		return r.run(func() { Golden(r, "a/b.txt", []byte(got)) })
	}
	if failures := compare("one\n"); len(failures) != 1 || !strings.Contains(failures[0], "-update") {
		t.Errorf("without a file: %q", failures)
	}
	if err := flag.Set("update", "true"); err != nil {
		t.Fatal(err)
	}
	written := compare("one\n")
	if err := flag.Set("update", "false"); err != nil {
		t.Fatal(err)
	}
	if written != nil {
		t.Errorf("with -update: %q", written)
	}
	if failures := compare("one\n"); failures != nil {
		t.Errorf("with an equal file: %q", failures)
	}
	if failures := compare("two\n"); len(failures) != 1 || !strings.Contains(failures[0], "one") || !strings.Contains(failures[0], "two") {
		t.Errorf("with another file: %q", failures)
	}
}

func TestLogCapture(t *testing.T) {
	t.Parallel()
	logs := NewLogCapture(t)
	logs.Logger.Info("a", zap.Int("n", 1))
	logs.Logger.Debug("b")
	got := logs.Lines("a")
	if len(got) != 1 || got[0].Level != zapcore.InfoLevel || got[0].Fields["n"] != int64(1) {
		t.Errorf("lines of a = %v", got)
	}
	if all := logs.Lines(""); len(all) != 2 {
		t.Errorf("all lines = %v", all)
	}
}

func TestRepoRoot(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat(filepath.Join(RepoRoot(t), "pkg", "testkit")); err != nil {
		t.Error(err)
	}
}

func TestShortDirHoldsSocketsAndGoes(t *testing.T) {
	t.Parallel()
	r := new(recorder)
	dir := ""
	failures := r.run(func() {
		dir = ShortDir(r)
		listener, err := net.Listen("unix", filepath.Join(dir, strings.Repeat("s", 40)))
		if err != nil {
			t.Fatalf("listen in %s: %v", dir, err)
		}
		_ = listener.Close()
	})
	if _, err := os.Stat(dir); failures != nil || !os.IsNotExist(err) {
		t.Errorf("after the test: %v, failures %q", err, failures)
	}
}
