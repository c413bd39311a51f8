// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// leaveStale leaves a socket behind as a killed process does.
func leaveStale(t *testing.T, path string) {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
}

//nolint:paralleltest // the umask belongs to the process
func TestSocketIsPrivateWhateverTheUmask(t *testing.T) {
	before := syscall.Umask(0)
	defer syscall.Umask(before)
	path := filepath.Join(testkit.ShortDir(t), "made", "s.sock")
	listener, err := openSocket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for name, want := range map[string]fs.FileMode{path: fs.ModeSocket | 0o600, filepath.Dir(path): fs.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("mode of %s = %v (%v), want %v", name, info.Mode(), err, want)
		}
	}
}

func TestOpenSocketReplacesADeadOne(t *testing.T) {
	t.Parallel()
	path := filepath.Join(testkit.ShortDir(t), "s.sock")
	leaveStale(t, path)
	listener, err := openSocket(t.Context(), path)
	if err != nil {
		t.Fatalf("open where a dead socket is: %v", err)
	}
	defer listener.Close()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("connect to the new socket: %v", err)
	}
	_ = conn.Close()
}

func TestOpenSocketRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		setUp func(t *testing.T, path string)
		want  reason.Reason
	}{
		{"a live socket", func(t *testing.T, path string) {
			t.Helper()
			listener, err := openSocket(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = listener.Close() })
		}, reason.PortInUse},
		{"a file", func(t *testing.T, path string) {
			t.Helper()
			if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, reason.InvalidParams},
		{"a folder", func(t *testing.T, path string) {
			t.Helper()
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, reason.InvalidParams},
		{"a link to a file", func(t *testing.T, path string) {
			t.Helper()
			if err := os.Symlink("/etc/passwd", path); err != nil {
				t.Fatal(err)
			}
		}, reason.InvalidParams},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(testkit.ShortDir(t), "s.sock")
			tt.setUp(t, path)
			before, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			listener, err := openSocket(t.Context(), path)
			if e, ok := reason.As(err); !ok || e.Reason != tt.want || e.Remedy == "" {
				t.Errorf("openSocket = %v, %v; want %v with a remedy", listener, err, tt.want)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("what was there is changed: %v, %v", after, err)
			}
		})
	}
}

func TestOneOfManyWinsADeadSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(testkit.ShortDir(t), "s.sock")
	leaveStale(t, path)
	const racers = 8
	listeners := make([]net.Listener, racers)
	errs := make([]error, racers)
	var group sync.WaitGroup
	for i := range racers {
		group.Go(func() { listeners[i], errs[i] = openSocket(t.Context(), path) })
	}
	group.Wait()
	winners := 0
	for i, err := range errs {
		if err == nil {
			winners++
			t.Cleanup(func() { _ = listeners[i].Close() })
		} else if reason.Of(err) != reason.PortInUse {
			t.Errorf("a loser got %v, want PORT_IN_USE", err)
		}
	}
	if winners != 1 {
		t.Errorf("%d of %d got the socket, want 1", winners, racers)
	}
}

// The folder's lock is what makes the race above come out right every time, so it is looked at by itself.
func TestOpenAndCloseWaitForTheFolder(t *testing.T) {
	t.Parallel()
	folder := testkit.ShortDir(t)
	info, err := os.Stat(folder)
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		t.Fatalf("no inode in %T", info.Sys())
	}
	waiting := func() (bool, string) {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "-> FLOCK") && strings.Contains(line, fmt.Sprintf(":%d ", stat.Ino)) {
				return true, ""
			}
		}
		return false, "no waiter in /proc/locks"
	}
	whileLocked := func(what string, do func() error) {
		t.Helper()
		unlock, err := lockFolder(folder)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- do() }()
		testkit.Eventually(t, 20*time.Second, what+" waits for the lock", waiting)
		if err := unlock(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	var listener net.Listener
	whileLocked("open", func() (err error) {
		listener, err = openSocket(t.Context(), filepath.Join(folder, "s.sock"))
		return err
	})
	whileLocked("close", func() error { return listener.Close() })
}

func TestCloseRemovesOnlyItsOwnSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(testkit.ShortDir(t), "s.sock")
	first, err := openSocket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	second, err := openSocket(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("close the first: %v", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the second's socket is gone: %v", err)
	}
	for range 2 {
		if err := second.Close(); err != nil {
			t.Errorf("close the second: %v", err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the second's socket is left: %v", err)
	}
}

func TestCheckFolder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		mode fs.FileMode
		uid  int
		want reason.Reason
	}{
		{"ours alone", 0o700, os.Geteuid(), reason.Unspecified},
		{"ours, others may read", 0o755, os.Geteuid(), reason.Unspecified},
		{"ours, others may write", 0o777, os.Geteuid(), reason.UntrustedArtifact},
		{"ours, the group may write", 0o770, os.Geteuid(), reason.UntrustedArtifact},
		{"ours, shared as /tmp is", 0o777 | fs.ModeSticky, os.Geteuid(), reason.Unspecified},
		{"root's, as seen by a user", 0o755, 4711, reason.Unspecified},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			folder := t.TempDir()
			if err := os.Chmod(folder, tt.mode); err != nil {
				t.Fatal(err)
			}
			if os.Geteuid() != 0 && tt.uid != os.Geteuid() {
				tt.want = reason.UntrustedArtifact
			}
			if err := checkFolder(folder, tt.uid); (err == nil) != (tt.want == reason.Unspecified) || err != nil && reason.Of(err) != tt.want {
				t.Errorf("checkFolder(mode %s) = %v, want %s", tt.mode, err, tt.want)
			}
		})
	}
}

func TestCheckFolderOfAnother(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if os.Geteuid() == 0 { // Only root can give a folder away, and root owns what anybody may use.
		if err := os.Chown(folder, 4711, -1); err != nil {
			t.Fatal(err)
		}
		if err := checkFolder(folder, 4712); reason.Of(err) != reason.UntrustedArtifact {
			t.Errorf("checkFolder = %v, want UNTRUSTED_ARTIFACT", err)
		}
		return
	}
	if err := checkFolder(folder, os.Geteuid()+1); reason.Of(err) != reason.UntrustedArtifact {
		t.Errorf("checkFolder = %v, want UNTRUSTED_ARTIFACT", err)
	}
}
