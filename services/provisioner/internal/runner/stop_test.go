// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// fifo is a named pipe that processes hold open for writing. It tells who came, and ends when the last has gone.
type fifo struct {
	path  string
	lines *bufio.Scanner
	hold  *os.File // keeps it from ending before the first process came
}

func newFIFO(t *testing.T) *fifo {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	hold, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(hold.Close(), r.Close()) })
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return &fifo{path: path, lines: bufio.NewScanner(r), hold: hold}
}

// await blocks until these modes have come.
func (f *fifo) await(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	for len(got) < len(want) && f.lines.Scan() {
		got = append(got, f.lines.Text())
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("processes started (-want +got), %v:\n%s", f.lines.Err(), diff)
	}
}

// awaitEnd blocks until no process holds the pipe.
func (f *fifo) awaitEnd(t *testing.T) {
	t.Helper()
	_ = f.hold.Close()
	for f.lines.Scan() {
		t.Errorf("late process %s", f.lines.Text())
	}
	if err := f.lines.Err(); err != nil {
		t.Fatalf("a process is still there: %v", err)
	}
}

func TestCancelLeavesNoProcess(t *testing.T) {
	t.Parallel()
	f := newFIFO(t)
	cause := errors.New("caller left")
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	c := command("parent", "FIFO="+f.path)
	c.Grace = 200 * time.Millisecond
	go func() {
		_, err := Run(ctx, c)
		done <- err
	}()
	f.await(t, "parent", "stubborn", "wait")
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("error is %v, want the cause", err)
	}
	// Run has returned, so the end must be there without waiting.
	now, err := os.OpenFile(f.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	_ = f.hold.Close()
	if n, err := now.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("pipe has a writer after Run: %d, %v", n, err)
	}
}

func TestStubbornProgramIsKilledAfterGrace(t *testing.T) {
	t.Parallel()
	f := newFIFO(t)
	c := command("stubborn", "FIFO="+f.path)
	c.Timeout, c.Grace = 300*time.Millisecond, 50*time.Millisecond
	if _, err := Run(t.Context(), c); !errors.Is(err, ErrTimeout) {
		t.Errorf("error is %v, want ErrTimeout", err)
	}
	f.await(t, "stubborn")
	f.awaitEnd(t)
}

func TestEndLeavesNoProcess(t *testing.T) {
	t.Parallel()
	f := newFIFO(t)
	// The program ends at once and leaves two children behind, before or after they have said so.
	if _, err := Run(t.Context(), command("leaver", "FIFO="+f.path)); err != nil {
		t.Fatal(err)
	}
	_ = f.hold.Close()
	for f.lines.Scan() {
		continue
	}
	if err := f.lines.Err(); err != nil {
		t.Errorf("a child is still there: %v", err)
	}
}

func TestDeathOfProvisioner(t *testing.T) {
	t.Parallel()
	f := newFIFO(t)
	owner := t.TempDir()
	prov, err := os.StartProcess(os.Args[0], os.Args[:1], &os.ProcAttr{
		Env: []string{"FIFO=" + f.path, "OWNER=" + owner, modeVariable + "provisioner"},
	})
	if err != nil {
		t.Fatal(err)
	}
	f.await(t, "parent", "provisioner", "stubborn", "wait")
	pid := programOf(t, owner)
	if err := prov.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := prov.Wait(); err != nil {
		t.Fatal(err)
	}
	// The program itself gets its DeathSignal ...
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		defer func() { _ = unix.Close(fd) }()
		if awaitAll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, time.Now().Add(10*time.Second)) {
			t.Error("the program outlived the provisioner")
		}
	}
	// ... and the next one with the same owner ends what is left.
	c := command("exit3")
	c.Owner = owner
	var exit *ExitError
	if _, err := Run(t.Context(), c); !errors.As(err, &exit) {
		t.Fatalf("error is %v, want the tool's own", err)
	}
	f.awaitEnd(t)
}

// programOf gives the process that leads the session of owner's Run.
func programOf(t *testing.T, owner string) int {
	t.Helper()
	pick := ownedBy(owner)
	for _, pid := range processes() {
		if s, ok := readStat(pid); ok && s.session == pid && pick(s) {
			return pid
		}
	}
	t.Fatal("no process of the owner")
	return 0
}
