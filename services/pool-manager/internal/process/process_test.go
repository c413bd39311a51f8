// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// managerMark makes the test binary a manager that is a subreaper and starts one engine.
const managerMark = "process-test-manager"

func TestMain(m *testing.M) {
	processtest.Main()
	if len(os.Args) == 4 && os.Args[1] == managerMark {
		if err := manage(os.Args[2], os.Args[3]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// patience is how long a test waits for what should take milliseconds.
const patience = 20 * time.Second

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); !holds(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// host is the one Host of this program.
var host = sync.OnceValues(New)

func newHost(t testing.TB) *Host {
	t.Helper()
	h, err := host()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// command returns what starts the script, with a log below the test's folder.
func command(t testing.TB, s processtest.Script) Command {
	t.Helper()
	exe, args, err := processtest.Command(s)
	if err != nil {
		t.Fatal(err)
	}
	return Command{
		Executable: exe, Args: args, Env: BaseEnv(os.Environ()), Nonce: NewNonce(),
		LogPath: filepath.Join(t.TempDir(), "engine.log"),
	}
}

// spawn starts a command whose tree is gone when the test ends.
func spawn(t testing.TB, h *Host, c Command) *Process {
	t.Helper()
	p, err := h.Spawn(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := p.Stop(ctx, Policy{}); err != nil {
			t.Error(err)
		}
		p.Release()
	})
	return p
}

// play starts a script and waits until it and all its children have done everything before their end.
func play(t testing.TB, h *Host, s processtest.Script) (*Process, Command) {
	t.Helper()
	s, n := announced(s)
	c := command(t, s)
	p := spawn(t, h, c)
	eventually(t, "the scripts are up", func() bool { return strings.Count(logText(t, c), "up\n") == n })
	return p, c
}

// announced returns a script in which everybody prints "up", and how many they are.
func announced(s processtest.Script) (processtest.Script, int) {
	s.Lines = append(slices.Clone(s.Lines), "up")
	s.Children = slices.Clone(s.Children)
	all := 1
	for i := range s.Children {
		script, n := announced(s.Children[i].Script)
		s.Children[i].Script = script
		all += n
	}
	return s, all
}

func logText(t testing.TB, c Command) string {
	t.Helper()
	text, err := os.ReadFile(c.LogPath)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// treeOf waits until the tree of p has n living members.
func treeOf(t testing.TB, p *Process, n int) []Member {
	t.Helper()
	var tree []Member
	defer func() {
		if len(tree) != n {
			t.Logf("tree: %v, want %d members", tree, n)
		}
	}()
	eventually(t, fmt.Sprintf("%d members", n), func() bool {
		var err error
		if tree, err = p.Tree(); err != nil {
			t.Fatal(err)
		}
		return len(tree) == n
	})
	return tree
}

// alive tells whether the very process that m was is still there and no zombie.
func alive(m Member) bool {
	s, err := readStat(m.PID)
	return err == nil && s.StartTicks == m.StartTicks && !s.dead()
}

func stopWithin(t testing.TB, p *Process, policy Policy) StopReport {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	report, err := p.Stop(ctx, policy)
	if err != nil {
		t.Fatalf("Stop: %v", err)
	}
	return report
}

// manage starts a manager's life: it reports the identity of its engine, does what it is told, and stays.
func manage(dir, what string) error {
	h, err := New()
	if err != nil {
		return err
	}
	if err := SetSubreaper(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reaped := make(chan error, 1)
	go func() { reaped <- h.Run(ctx) }()
	if source, ok := strings.CutPrefix(what, "oom by "); ok {
		return manageOOM(h, dir, source)
	}
	engine := processtest.Script{Lines: []string{"up"}}
	if what == "daemons" {
		engine.Children = []processtest.Child{
			{Detach: processtest.Daemon, Script: processtest.Script{Lines: []string{"daemon"}}},
			{Detach: processtest.Daemon, Script: processtest.Script{Lines: []string{"daemon"}}},
			{Detach: processtest.Daemon, Script: processtest.Script{Lines: []string{"short"}, End: &processtest.End{}}},
		}
	}
	exe, args, err := processtest.Command(engine)
	if err != nil {
		return err
	}
	p, err := h.Spawn(Command{Executable: exe, Args: args, Env: BaseEnv(os.Environ()), Nonce: NewNonce(), LogPath: filepath.Join(dir, "engine.log")})
	if err != nil {
		return err
	}
	text, err := json.Marshal(p.Identity())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "identity.tmp"), text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "identity.tmp"), filepath.Join(dir, "identity")); err != nil {
		return err
	}
	if what != "daemons" {
		<-time.After(processtest.Lasts)
	}
	return manageDaemons(ctx, filepath.Join(dir, "engine.log"), p)
}

// manageDaemons waits for the daemons, stops them, and fails unless every child is collected.
func manageDaemons(ctx context.Context, logPath string, p *Process) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for text := ""; strings.Count(text, "daemon\n") < 2 || !strings.Contains(text, "short\n"); {
		select {
		case <-tick.C:
		case <-limit:
			return fmt.Errorf("daemons are not up: %q", text)
		}
		read, err := os.ReadFile(logPath)
		if err != nil {
			return err
		}
		text = string(read)
	}
	var tree []Member
	for len(tree) != 3 { // The daemons' parents and the short one are gone.
		var err error
		if tree, err = p.Tree(); err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-limit:
			return fmt.Errorf("tree is %v, want 3 members", tree)
		}
	}
	report, err := p.Stop(ctx, Graceful(time.Second, time.Second))
	if err != nil {
		return err
	}
	for left := len(tree); left > 0; {
		all, err := snapshot()
		if err != nil {
			return err
		}
		left = 0
		for _, s := range all {
			if s.PPID == os.Getpid() {
				left++
			}
		}
		select {
		case <-tick.C:
		case <-limit:
			return fmt.Errorf("children left: %d", left)
		}
	}
	fmt.Printf("exit=%v tree=%d killed=%v\n", p.Exit(), len(tree), !report.KilledAt.IsZero())
	return nil
}

func TestSubreaperStopsAndCollectsDaemons(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	manager := startManager(t, dir, out, "daemons")
	<-manager.Done()
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	want := "exit=signal terminated tree=3 killed=false\n"
	if exit := manager.Exit(); exit.String() != "exit 0" || string(text) != want {
		t.Errorf("manager: %v, said %q, want %q", exit, text, want)
	}
}

// startManager runs this binary as a manager. An engine that outlives it is for the test to end.
func startManager(t *testing.T, dir, out, what string) *Process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return spawn(t, newHost(t), Command{
		Executable: exe, Args: []string{managerMark, dir, what}, Env: os.Environ(), Nonce: NewNonce(), LogPath: out,
	})
}

func readIdentity(t *testing.T, dir string) Identity {
	t.Helper()
	var id Identity
	eventually(t, "the manager reports its engine", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "identity"))
		return err == nil && json.Unmarshal(text, &id) == nil
	})
	return id
}

func TestEngineSurvivesManagerAndIsAttached(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	manager := startManager(t, dir, filepath.Join(dir, "out"), "wait")
	id := readIdentity(t, dir)
	if err := manager.fd.signal(unix.SIGKILL, 0); err != nil {
		t.Fatal(err)
	}
	<-manager.Done()
	p, err := newHost(t).Attach(id)
	if err != nil {
		t.Fatalf("Attach(%+v): %v", id, err)
	}
	defer p.Release()
	select {
	case <-p.Done():
		t.Fatal("engine died with its manager")
	default:
	}
	report := stopWithin(t, p, Graceful(patience, patience))
	eventually(t, "the exit of an attached engine is seen", func() bool {
		select {
		case <-p.Done():
			return true
		default:
			return false
		}
	})
	if len(report.Signals) != 1 || report.Signals[0].Signal != unix.SIGTERM {
		t.Errorf("signals: got %+v, want one TERM", report.Signals)
	}
	if got := p.Exit(); got.Code != CodeUnknown || got.Signal != 0 || got.String() != "exit unknown" {
		t.Errorf("exit of an attached engine: got %+v, want unknown", got)
	}
}

func TestNewHidesInheritedDescriptors(t *testing.T) {
	t.Parallel()
	inherited, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	if _, err := unix.FcntlInt(inherited.Fd(), unix.F_SETFD, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := New(); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.FcntlInt(inherited.Fd(), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor %s after New: flags %#x, %v; want close-on-exec", strconv.Itoa(int(inherited.Fd())), flags, err)
	}
}
