// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// families are ways in which an engine's processes may be related to it.
func families() []struct {
	name     string
	children []processtest.Child
	members  int
} {
	leaf := processtest.Script{}
	deaf := processtest.Script{Ignore: []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP}}
	return []struct {
		name     string
		children []processtest.Child
		members  int
	}{
		{"alone", nil, 1},
		{"child", []processtest.Child{{Script: leaf}}, 2},
		{"child of another group", []processtest.Child{{Script: leaf, Detach: processtest.OwnGroup}}, 2},
		{"child of another session", []processtest.Child{{Script: deaf, Detach: processtest.OwnSession}}, 2},
		{"child without environment", []processtest.Child{{Script: deaf, ClearEnv: true}}, 2},
		{"child of another session without environment", []processtest.Child{{Script: leaf, Detach: processtest.OwnSession, ClearEnv: true}}, 2},
		{"daemon", []processtest.Child{{Script: deaf, Detach: processtest.Daemon}}, 2},
		{"daemon without environment", []processtest.Child{{Script: deaf, Detach: processtest.Daemon, ClearEnv: true}}, 2},
		{"grandchildren", []processtest.Child{{
			Script: processtest.Script{Children: []processtest.Child{{Script: leaf}, {Script: deaf, Detach: processtest.OwnSession, ClearEnv: true}}},
			Detach: processtest.OwnSession,
		}}, 4},
	}
}

func TestStopEndsEveryKindOfFamily(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	bystander, _ := play(t, h, processtest.Script{})
	t.Run("families", func(t *testing.T) {
		for _, tt := range families() {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				p, _ := play(t, h, processtest.Script{Children: tt.children})
				tree := treeOf(t, p, tt.members)
				report := stopWithin(t, p, Graceful(300*time.Millisecond, 50*time.Millisecond))
				for _, m := range tree {
					if alive(m) {
						t.Errorf("alive after Stop: %v", m)
					}
				}
				if len(report.Survivors) > 0 || report.Duration <= 0 {
					t.Errorf("report: %+v", report)
				}
				if again := stopWithin(t, p, Graceful(time.Second, time.Second)); len(again.Signals) > 0 {
					t.Errorf("a second Stop sent %+v", again.Signals)
				}
			})
		}
	})
	treeOf(t, bystander, 1)
}

// TestStopEndsWhatADeadRootLeft has no root to start from: what was its session then counts because it was looked at in
// time, or by its nonce.
func TestStopEndsWhatADeadRootLeft(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	for _, tt := range families()[1:] {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, _ := play(t, h, processtest.Script{Children: tt.children})
			tree := treeOf(t, p, tt.members)
			if err := p.fd.signal(unix.SIGKILL, 0); err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			treeOf(t, p, tt.members-1)
			stopWithin(t, p, Policy{})
			for _, m := range tree {
				if alive(m) {
					t.Errorf("alive after Stop: %v", m)
				}
			}
		})
	}
}

// TestTreeIsSeenBeforeTheRootIsCollected never looks at the tree before the root dies by itself.
func TestTreeIsSeenBeforeTheRootIsCollected(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{
		Children: []processtest.Child{{Script: processtest.Script{}, ClearEnv: true}},
		End:      &processtest.End{After: 200 * time.Millisecond, Code: 7},
	})
	<-p.Done()
	treeOf(t, p, 1)
}

func TestStopSignals(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const short, long = 20 * time.Millisecond, patience
	term, kill := syscall.SIGTERM, syscall.SIGKILL
	for _, tt := range []struct {
		name   string
		script processtest.Script
		policy Policy
		want   []syscall.Signal
		exit   string
	}{
		{"obeys", processtest.Script{}, Graceful(long, long), []syscall.Signal{term}, "signal terminated"},
		{"obeys slowly", processtest.Script{OnTerm: &processtest.End{After: 100 * time.Millisecond, Code: 4}}, Graceful(long, long), []syscall.Signal{term}, "exit 4"},
		{"ignores", processtest.Script{Ignore: []syscall.Signal{term}}, Graceful(short, short), []syscall.Signal{term, term, kill}, "signal killed"},
		{"zero policy", processtest.Script{}, Policy{}, []syscall.Signal{kill}, "signal killed"},
		{"other signal", processtest.Script{}, Policy{Steps: []Step{{Signal: syscall.SIGQUIT, Wait: long}}}, []syscall.Signal{syscall.SIGQUIT}, "exit 2"},
		{
			"only the second is heard", processtest.Script{Ignore: []syscall.Signal{syscall.SIGHUP}},
			Policy{Steps: []Step{{Signal: syscall.SIGHUP, Wait: short}, {Signal: term, Wait: long}}},
			[]syscall.Signal{syscall.SIGHUP, term}, "signal terminated",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, _ := play(t, h, tt.script)
			report := stopWithin(t, p, tt.policy)
			var got []syscall.Signal
			for _, s := range report.Signals {
				got = append(got, s.Signal)
				if len(s.PIDs) != 1 || s.PIDs[0] != p.id.PID || s.At.IsZero() {
					t.Errorf("sent: got %+v, want to pid %d alone", s, p.id.PID)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("signals: got %v, want %v", got, tt.want)
			}
			if killed := !report.KilledAt.IsZero(); killed != slices.Contains(tt.want, kill) {
				t.Errorf("killed at %v", report.KilledAt)
			}
			if got := p.Exit().String(); got != tt.exit {
				t.Errorf("exit: got %q, want %q", got, tt.exit)
			}
		})
	}
}

// TestKillAllReachesTheGroupAtOnce is about kernels that know it (Linux 6.9); Stop does without.
func TestKillAllReachesTheGroupAtOnce(t *testing.T) {
	t.Parallel()
	p, _ := play(t, newHost(t), processtest.Script{Children: []processtest.Child{
		{Script: processtest.Script{}}, {Script: processtest.Script{}, Detach: processtest.OwnSession},
	}})
	treeOf(t, p, 3)
	if err := p.fd.signal(0, signalGroup); errors.Is(err, unix.EINVAL) {
		return
	}
	p.killAll()
	if left := treeOf(t, p, 1); left[0].SID == p.id.PID {
		t.Errorf("left: %v, want the one of another session", left)
	}
}

func TestStopToRootSparesTheRestUntilItIsGone(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{Children: []processtest.Child{{Script: processtest.Script{}}}})
	tree := treeOf(t, p, 2)
	root := Step{Signal: syscall.SIGTERM, Wait: 50 * time.Millisecond, To: ToRoot}
	report := stopWithin(t, p, Policy{Steps: []Step{root, {Signal: syscall.SIGTERM, Wait: patience, To: ToRoot}}})
	if len(report.Signals) != 2 || !slices.Equal(report.Signals[0].PIDs, []int{p.id.PID}) ||
		!slices.Equal(report.Signals[1].PIDs, []int{tree[1].PID}) {
		t.Errorf("signals: got %+v, want TERM to the root, then to %v", report.Signals, tree[1])
	}
}

func TestStopKillsWhateverTheContextSays(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{Ignore: []syscall.Signal{syscall.SIGTERM}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	report, err := p.Stop(ctx, Graceful(time.Hour, time.Hour))
	if err != nil || report.KilledAt.IsZero() {
		t.Errorf("Stop under an ended context: %+v, %v; want killed", report, err)
	}
}

func TestStopKeepsTimeForKill(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{Ignore: []syscall.Signal{syscall.SIGTERM}})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	report, err := p.Stop(ctx, Graceful(time.Hour, time.Hour))
	if err != nil || ctx.Err() != nil || report.KilledAt.IsZero() {
		t.Errorf("Stop: %+v, %v, context %v; want killed in time", report, err, ctx.Err())
	}
}

// ghost is a tree whose one member never goes. Its pid is another process's, who must not be signalled.
type ghost struct{ pid int }

func (g ghost) Tree() ([]Member, error) {
	return []Member{{PID: g.pid, StartTicks: 1, State: 'D', Comm: "stuck"}}, nil
}
func (g ghost) rootPID() int { return g.pid }
func (ghost) killAll()       {}
func (ghost) settle(_ []int) {}

func TestStopReportsSurvivors(t *testing.T) {
	t.Parallel()
	bystander, _ := play(t, newHost(t), processtest.Script{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	report, err := stop(ctx, ghost{bystander.id.PID}, Policy{})
	var survivors *SurvivorsError
	if !errors.As(err, &survivors) || reason.Of(err) != reason.StopFailed || len(report.Survivors) != 1 {
		t.Fatalf("stop: %+v, %v; want StopFailed with one survivor", report, err)
	}
	if got, want := survivors.Error(), fmt.Sprintf("still alive: %d stuck (D)", bystander.id.PID); got != want {
		t.Errorf("error: got %q, want %q", got, want)
	}
	for _, s := range report.Signals {
		if len(s.PIDs) > 0 {
			t.Errorf("a process with another start time was signalled: %+v", s)
		}
	}
	treeOf(t, bystander, 1)
}

func TestSweepEndsAStartWhoseRootIsUnknown(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, c := play(t, h, processtest.Script{Children: []processtest.Child{
		{Script: processtest.Script{}, Detach: processtest.OwnSession},
		{Script: processtest.Script{}, ClearEnv: true},
	}})
	tree := treeOf(t, p, 3)
	found, err := h.Find(c.Nonce)
	if err != nil || len(found) != 3 {
		t.Errorf("Find: %v, %v; want 3", found, err)
	}
	report, err := h.Sweep(t.Context(), c.Nonce, Policy{})
	if err != nil || len(report.Survivors) > 0 {
		t.Errorf("Sweep: %+v, %v", report, err)
	}
	for _, m := range tree {
		if alive(m) {
			t.Errorf("alive after Sweep: %v", m)
		}
	}
	if report, err := h.Sweep(t.Context(), NewNonce(), Policy{}); err != nil || len(report.Signals) > 0 {
		t.Errorf("Sweep of nothing: %+v, %v", report, err)
	}
}

func TestAttachRefusesStrangers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{})
	ended, _ := play(t, h, processtest.Script{End: &processtest.End{}})
	<-ended.Done()
	for _, tt := range []struct {
		name   string
		change func(*Identity)
		want   error
	}{
		{"right", func(*Identity) {}, nil},
		{"another boot", func(id *Identity) { id.BootID = "other" }, ErrGone},
		{"another start time", func(id *Identity) { id.StartTicks++ }, ErrNotOurs},
		{"another program", func(id *Identity) { id.Executable = "/bin/true" }, ErrNotOurs},
		{"another nonce", func(id *Identity) { id.Nonce = NewNonce() }, ErrNotOurs},
		{"no nonce", func(id *Identity) { id.Nonce = "" }, ErrNotOurs},
		{"no pid", func(id *Identity) { id.PID = 0 }, ErrNotOurs},
		{"init", func(id *Identity) { id.PID = 1 }, ErrNotOurs},
		{"ourselves", func(id *Identity) { id.PID = h.self }, ErrNotOurs},
		{"ended", func(id *Identity) { *id = ended.Identity() }, ErrGone},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := p.Identity()
			tt.change(&id)
			got, err := h.Attach(id)
			if !errors.Is(err, tt.want) {
				t.Fatalf("Attach: got %v, want %v", err, tt.want)
			}
			if err == nil {
				got.Release()
			}
		})
	}
	treeOf(t, p, 1)
}

// TestTreeIgnoresAReusedSession has a foreign session under the number that was our root's: without the root, or a
// member that proves it, the number means nothing.
func TestTreeIgnoresAReusedSession(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{})
	id := p.Identity()
	id.Nonce = NewNonce()
	id.StartTicks-- // The one who had this pid before.
	if tree, err := h.tree(id, map[int]uint64{id.PID: id.StartTicks}); err != nil || len(tree) > 0 {
		t.Errorf("tree of the former owner of a pid: %v, %v; want none", tree, err)
	}
}
