// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// playing returns the living process that plays the script and has lost its parents, once there is one.
func playing(t *testing.T, s processtest.Script) Member {
	t.Helper()
	exe, args, err := processtest.Command(s)
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Join(append([]string{exe}, args...), "\x00") + "\x00"
	var found Member
	eventually(t, "the daemon is alone", func() bool {
		all, err := snapshot()
		if err != nil {
			t.Fatal(err)
		}
		for pid := range all {
			if line, _ := os.ReadFile(procPath(pid, "cmdline")); string(line) != want {
				continue
			}
			s, err := readStat(pid) // The census may have seen it before it became what it is.
			parent, _ := os.ReadFile(procPath(s.PPID, "cmdline"))
			if err == nil && !strings.Contains(string(parent), args[0]) {
				found = s.Member
				return true
			}
		}
		return false
	})
	t.Cleanup(func() { send(unix.SIGKILL, []Member{found}) })
	return found
}

// TestStopFindsADaemonThatKeptNothing has nothing to know it by but the mark: no parent, session, environment or file of
// its engine, and nobody looked at the tree while it still had one.
func TestStopFindsADaemonThatKeptNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	start := func(t *testing.T) (*Process, Command, Member) {
		t.Helper()
		daemon := processtest.Script{Lines: []string{NewNonce()}, Ignore: []syscall.Signal{syscall.SIGTERM}}
		c := command(t, processtest.Script{Children: []processtest.Child{
			{Script: daemon, Detach: processtest.Daemon, ClearEnv: true, NoFiles: true},
		}})
		return spawn(t, h, c), c, playing(t, daemon)
	}
	for _, tt := range []struct {
		name string
		stop func(ctx context.Context, p *Process, c Command) (StopReport, error)
	}{
		{"stopped with its engine", func(ctx context.Context, p *Process, _ Command) (StopReport, error) {
			return p.Stop(ctx, Policy{})
		}},
		{"stopped after its engine died", func(ctx context.Context, p *Process, _ Command) (StopReport, error) {
			if err := p.fd.signal(unix.SIGKILL, 0); err != nil {
				return StopReport{}, err
			}
			<-p.Done()
			return p.Stop(ctx, Policy{})
		}},
		{"swept by one who knows the nonce", func(ctx context.Context, _ *Process, c Command) (StopReport, error) {
			return h.Sweep(ctx, c.Nonce, Policy{})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, _, others := start(t)
			p, c, daemon := start(t)
			if carriesNonce(daemon.PID, c.Nonce) || daemon.SID == p.id.PID || daemon.PPID == p.id.PID {
				t.Fatalf("daemon %+v is not on its own", daemon)
			}
			report, err := tt.stop(t.Context(), p, c)
			if err != nil || len(report.Survivors) > 0 {
				t.Errorf("stop: %+v, %v", report, err)
			}
			if alive(daemon) {
				t.Errorf("the daemon is left: %v", daemon)
			}
			if !alive(others) {
				t.Error("the daemon of another engine was ended")
			}
		})
	}
}

// TestSpawnGivesEachItsMark starts several at once, which must not get each other's.
func TestSpawnGivesEachItsMark(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const n = 6
	type started struct {
		p   *Process
		c   Command
		err error
	}
	all := make(chan started, n)
	for range n {
		c := command(t, processtest.Script{})
		go func() {
			p, err := h.Spawn(c)
			all <- started{p, c, err}
		}()
	}
	var marks []uint64
	for range n {
		s := <-all
		if s.err != nil {
			t.Errorf("Spawn: %v", s.err)
			continue
		}
		var limit unix.Rlimit
		if err := unix.Prlimit(s.p.id.PID, unix.RLIMIT_LOCKS, nil, &limit); err != nil {
			t.Error(err)
		}
		if want := markOf(s.c.Nonce); limit.Cur != want || slices.Contains(marks, limit.Cur) {
			t.Errorf("mark of %d: got %d, want %d; before: %d", s.p.id.PID, limit.Cur, want, marks)
		}
		marks = append(marks, limit.Cur)
		stopWithin(t, s.p, Policy{})
	}
	h.fork.Lock()
	defer h.fork.Unlock()
	if slices.ContainsFunc(marks, func(mark uint64) bool { return limitOf(os.Getpid()) == mark }) {
		t.Error("the program kept a mark that it gave")
	}
}

func TestMarks(t *testing.T) {
	t.Parallel()
	seen := map[uint64]bool{}
	for range 1000 {
		nonce := NewNonce()
		mark := markOf(nonce)
		if seen[mark] || mark != markOf(nonce) || mark < 1<<61 || mark >= 1<<62 {
			t.Fatalf("mark of %s is %d, seen before: %t", nonce, mark, seen[mark])
		}
		seen[mark] = true
	}
	if err := markable(unix.Rlimit{Cur: 1, Max: unix.RLIM_INFINITY}); err != nil {
		t.Errorf("a program without a hard limit: %v", err)
	}
	if err := markable(unix.Rlimit{Cur: 1, Max: 1 << 40}); err == nil {
		t.Error("a program that cannot give every mark is accepted")
	}
}
