// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

func TestOrphansAreFoundAndEnded(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), filepath.Join(programs(t), orphanProgram)).Output()
	if got, want := string(out), "1 named, 0 alive, quick: true\n"; err != nil || got != want {
		t.Errorf("the audit says %q (%v), want %q", got, err, want)
	}
}

func TestDescendants(t *testing.T) {
	t.Parallel()
	child := sleeper(t.Context(), programs(t))
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait() // killed
	})
	found := slices.ContainsFunc(descendants(os.Getpid()), func(p process) bool { return p.pid == child.Process.Pid })
	if !found {
		t.Errorf("descendants of %d lack %d", os.Getpid(), child.Process.Pid)
	}
	if below := descendants(child.Process.Pid); len(below) != 0 {
		t.Errorf("descendants of a process without children are %v, want none", below)
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		stat  string
		want  process
		alive bool
	}{
		{"running", "7 (llama-server) S 3 7 7 0", process{7, 3, "llama-server"}, true},
		{"name with brackets and spaces", "7 (a) b (c) R 3 7", process{7, 3, "a) b (c"}, true},
		{"zombie", "7 (x) Z 3 7", process{7, 3, "x"}, false},
		{"empty", "", process{}, false},
		{"torn", "7 (x", process{}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, alive := parseStat(7, test.stat)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(process{})); diff != "" || alive != test.alive {
				t.Errorf("parseStat(%q) is alive: %v, want %v (-want +got):\n%s", test.stat, alive, test.alive, diff)
			}
		})
	}
}

func TestOpenSockets(t *testing.T) {
	t.Parallel()
	s := &stage{folder: folder{path: testkit.ShortDir(t)}}
	config := net.ListenConfig{}
	unixListener, err := config.Listen(t.Context(), "unix", s.path("x.sock"))
	if err != nil {
		t.Fatal(err)
	}
	tcpListener, err := config.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.endpoints = []string{tcpListener.Addr().String()}
	got := strings.Join(s.openSockets(t.Context()), "\n")
	want := "socket " + s.path("x.sock") + "\nlistener " + tcpListener.Addr().String()
	if got != want {
		t.Errorf("openSockets = %q, want %q", got, want)
	}
	unixListener.Close()
	tcpListener.Close()
	if got := s.openSockets(t.Context()); len(got) != 0 {
		t.Errorf("openSockets after the end = %q, want none", got)
	}
}

func TestTempFiles(t *testing.T) {
	t.Parallel()
	dir, store := t.TempDir(), t.TempDir()
	for _, path := range []string{
		filepath.Join(dir, "tmp", "a"), filepath.Join(store, "tmp", "old"), filepath.Join(store, "tmp", "new"),
		filepath.Join(store, "tmp", "others"), filepath.Join(store, "tmp", "others.lock"),
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lock, err := os.Open(filepath.Join(store, "tmp", "others.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	s := &stage{folder: folder{path: dir}, store: store, storeBefore: map[string]struct{}{"old": {}}}
	want := []string{"file " + filepath.Join(dir, "tmp", "a"), "file " + filepath.Join(store, "tmp", "new")}
	slices.Sort(want)
	if diff := cmp.Diff(want, s.tempFiles()); diff != "" {
		t.Errorf("tempFiles (-want +got):\n%s", diff)
	}
}
