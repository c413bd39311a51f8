// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// next returns the Launcher of a manager that was started after the one of w had died.
func (w *world) next(t testing.TB) *Launcher {
	t.Helper()
	launcher, err := New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	return launcher
}

// find returns what the next manager finds, and that manager's Launcher.
func (w *world) find(t testing.TB) (*Launcher, Found) {
	t.Helper()
	l := w.next(t)
	found, err := l.Leftovers(t.Context())
	if err != nil {
		t.Fatalf("Leftovers: %v", err)
	}
	return l, found
}

// endAll is a next manager that takes nothing over.
func (w *world) endAll(ctx context.Context, t *testing.T) Found {
	t.Helper()
	l, found := w.find(t)
	for _, leftover := range found.Engines {
		if err := l.End(ctx, leftover, "test"); err != nil {
			t.Errorf("End: %v", err)
		}
	}
	return found
}

// leave starts a process that nobody is in charge of, and returns it with the record of its start.
func (w *world) leave(t *testing.T) (*process.Process, state.Record) {
	t.Helper()
	executable, args, err := processtest.Command(processtest.Script{Lines: []string{"up"}})
	if err != nil {
		t.Fatal(err)
	}
	logPath := filepath.Join(t.TempDir(), "log")
	p, err := w.host.Spawn(process.Command{
		Executable: executable, Args: args, Env: w.config.Env, LogPath: logPath, Nonce: process.NewNonce(),
		Manager: w.records.ManagerID(), Pool: "p", Replica: "p-0", Generation: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := p.Stop(context.Background(), process.Policy{}); err != nil {
			t.Error(err)
		}
		p.Release()
	})
	testkit.Eventually(t, testPatience, "the script is up", func() (bool, string) {
		text, err := os.ReadFile(logPath)
		return err == nil && string(text) == "up\n", string(text)
	})
	return p, state.Record{
		PoolID: "p", Generation: 1, Phase: state.Started, Identity: p.Identity(), Executable: executable, LogPath: logPath,
		CreatedAt: time.Now(), StartedAt: time.Now(),
	}
}

func (w *world) save(t *testing.T, records ...state.Record) {
	t.Helper()
	for _, r := range records {
		if err := w.records.Save(r); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) auditRecords(t *testing.T) {
	t.Helper()
	if records := w.loaded(t); len(records) > 0 {
		t.Errorf("records are left: %+v", records)
	}
}

func TestEndEndsAnEngineThatWasLaunched(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, pids := orphans(t, w)
	e.how.stop.Steps[0].Wait = 0 // For the clean-up.
	tree := pids()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // The orphans ignore TERM: do not wait for them.
	defer cancel()
	found := w.endAll(ctx, t)
	want := []Leftover{{Pool: "p", Index: 0, Generation: 1, PreparedID: "sha256:1", SameBoot: true, StartedAt: e.Info().Started}}
	if diff := cmp.Diff(want, found.Engines, cmpopts.IgnoreUnexported(Leftover{}), cmpopts.IgnoreFields(Leftover{}, "ReadyAt")); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	w.audit(t, tree...)
	if got := w.logs.Lines("an engine of an earlier manager was ended"); len(got) != 1 || got[0].Fields["pool_id"] != "p" {
		t.Errorf("logged %v", got)
	}
	if got := w.logs.Lines("an engine of an earlier manager is being ended"); len(got) != 1 || got[0].Fields["pid"] == nil || got[0].Fields["kill_after"] == nil {
		t.Errorf("logged %v, want who is waited for and how long", got)
	}
	start := w.onlyStart(t)
	if start.Class != "KILLED" || start.EndedBy != "test" || start.PID != e.Info().PID || !start.Adopted || start.Uptime <= 0 {
		t.Errorf("on record is %+v", start)
	}
	if again := w.endAll(t.Context(), t); len(again.Engines)+len(again.Strays) > 0 {
		t.Errorf("a second manager found %+v", again)
	}
}

// Of a start that was only intended nothing is known but the nonce.
func TestEndFindsAProcessByItsNonce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	running, record := w.leave(t)
	record.Phase = state.Intended
	record.Identity = process.Identity{BootID: record.Identity.BootID, Nonce: record.Identity.Nonce}
	record.StartedAt = time.Time{}
	other := record
	other.Replica, other.Identity.Nonce = 1, process.NewNonce()
	w.save(t, record, other)
	w.endAll(t.Context(), t)
	w.auditRecords(t)
	awaitDone(t, running)
	if got := running.Exit().Signal; got != syscall.SIGTERM {
		t.Errorf("it died of %v, want TERM first", got)
	}
	starts := w.starts(t)
	if len(starts) != 2 {
		t.Fatalf("on record are %+v, want two", starts)
	}
	for _, start := range starts {
		if start.Class != "UNKNOWN" || start.PID != 0 || start.StartedAt.IsZero() {
			t.Errorf("on record is %+v, want UNKNOWN, of no known process", start)
		}
	}
}

// Its main process has died with the manager, and what it had started lives.
func TestEndEndsWhatADeadEngineHasLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, pids := orphans(t, w)
	e.how.stop.Steps[0].Wait = 0
	kill(t, e.Info().PID)
	awaitDone(t, e)
	left := pids()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	w.endAll(ctx, t)
	w.auditRecords(t)
	for _, pid := range left {
		if alive(pid) {
			t.Errorf("orphan %d is left", pid)
		}
	}
	if start := w.onlyStart(t); start.Class != "UNKNOWN" || start.EndedBy != "" || start.Uptime != 0 {
		t.Errorf("on record is %+v, want UNKNOWN, ended by itself, after nobody knows how long", start)
	}
}

// strangers are changes after which a record names no process of ours.
func strangers() map[string]func(*process.Identity) {
	return map[string]func(*process.Identity){
		"a recycled pid":                        func(id *process.Identity) { id.StartTicks--; id.Nonce = process.NewNonce() },
		"the pid of another executable":         func(id *process.Identity) { id.Executable = "/bin/engine"; id.Nonce = process.NewNonce() },
		"the pid of one without the nonce":      func(id *process.Identity) { id.Nonce = process.NewNonce() },
		"another boot":                          func(id *process.Identity) { id.BootID = "another" },
		"another boot, by nonce":                func(id *process.Identity) { *id = process.Identity{BootID: "another", Nonce: id.Nonce} },
		"ourselves":                             func(id *process.Identity) { id.PID = os.Getpid(); id.Nonce = process.NewNonce() },
		"the first process":                     func(id *process.Identity) { id.PID = 1; id.Nonce = process.NewNonce() },
		"a pid that nobody has had for a while": func(id *process.Identity) { id.PID = 1 << 22; id.Nonce = process.NewNonce() },
	}
}

func TestEndLeavesStrangersAlone(t *testing.T) {
	t.Parallel()
	for name, change := range strangers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			stranger, record := w.leave(t)
			change(&record.Identity)
			w.save(t, record)
			w.endAll(t.Context(), t)
			w.auditRecords(t)
			select {
			case <-stranger.Done():
				t.Errorf("a stranger was ended: %v", stranger.Exit())
			default:
			}
			if got := w.logs.Lines("an engine of an earlier manager was ended"); len(got) > 0 {
				t.Errorf("logged %v", got)
			}
			if start := w.onlyStart(t); start.Class != "UNKNOWN" || start.EndedBy != "" {
				t.Errorf("on record is %+v, want UNKNOWN", start)
			}
		})
	}
}

// The manager that saw it end has died before it could remove the record of the engine.
func TestEndDoesNotOverwriteWhatWasSeen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	record := state.Record{
		PoolID: "p", Generation: 3, Identity: process.Identity{BootID: w.host.BootID(), Nonce: process.NewNonce()}, CreatedAt: time.Now(),
	}
	w.save(t, record)
	seen := state.StartRecord{PoolID: "p", Generation: 3, Class: "OOM_HOST", StartedAt: time.Now(), EndedAt: time.Now()}
	if err := w.records.SaveStart(seen); err != nil {
		t.Fatal(err)
	}
	w.endAll(t.Context(), t)
	w.auditRecords(t)
	if start := w.onlyStart(t); start.Class != "OOM_HOST" {
		t.Errorf("on record is %+v, want what was seen", start)
	}
}

func TestLeftoversOfABadRecordIsAStray(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lost, record := w.leave(t)
	if err := os.WriteFile(filepath.Join(w.stateDir, "replicas", "bad-0-g1.json"), []byte(`{"schema":1`), 0o600); err != nil {
		t.Fatal(err)
	}
	l, found := w.find(t)
	if diff := cmp.Diff([]registry.PoolID{"bad"}, found.Unreadable); diff != "" {
		t.Errorf("unreadable (-want +got):\n%s", diff)
	}
	if got := w.logs.Lines("record was put aside"); len(got) != 1 || got[0].Fields["file"] != "bad-0-g1.json" {
		t.Errorf("logged %v", got)
	}
	want := []Stray{{Pool: "p", Replica: "p-0", PIDs: []int{record.Identity.PID}, Nonce: record.Identity.Nonce}}
	if diff := cmp.Diff(want, found.Strays); diff != "" {
		t.Fatalf("strays (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := l.EndStray(t.Context(), found.Strays[0]); err != nil {
			t.Errorf("EndStray: %v", err)
		}
	}
	awaitDone(t, lost)
	if _, found := w.find(t); len(found.Strays) > 0 {
		t.Errorf("strays are left: %+v", found.Strays)
	}
}

func TestLeftoversKeepsOnlyHandoffsOfItsEngines(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, record := w.leave(t)
	other := record
	other.Replica, other.Identity = 1, process.Identity{BootID: w.host.BootID(), PID: 1 << 22, Nonce: process.NewNonce()}
	w.save(t, record, other)
	for _, entry := range []handoff.Entry{
		{PoolID: "p", ReplicaID: "p-0", URL: "http://127.0.0.1:1", PID: record.Identity.PID},
		{PoolID: "p", ReplicaID: "p-1", URL: "http://127.0.0.1:2", PID: record.Identity.PID},
		{PoolID: "q", ReplicaID: "q-0", URL: "http://127.0.0.1:3", PID: 17},
	} {
		if _, err := w.config.Handoff.Publish(entry); err != nil {
			t.Fatal(err)
		}
	}
	l, found := w.find(t)
	if diff := cmp.Diff([]string{"p-0.json"}, w.handoffs(t)); diff != "" {
		t.Errorf("handoff files (-want +got):\n%s", diff)
	}
	for _, leftover := range found.Engines {
		if err := l.End(t.Context(), leftover, "test"); err != nil {
			t.Errorf("End: %v", err)
		}
	}
	w.audit(t, record.Identity.PID)
}

func TestLeftoversWithoutRecordsFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := os.RemoveAll(filepath.Join(w.stateDir, "replicas")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.launcher.Leftovers(t.Context()); err == nil {
		t.Error("Leftovers succeeded without being able to look")
	}
}

func TestKeepOnlyRemovesTheLogsOfForgottenPools(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.launcher.KeepOnly(nil) // A first start: there is no folder of logs.
	for _, pool := range []string{"p", "q", "r"} {
		if err := os.MkdirAll(filepath.Join(w.logDir, pool, "0-1.log"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.launcher.KeepOnly(map[registry.PoolID]bool{"q": true, "s": true})
	entries, err := os.ReadDir(w.logDir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "q" {
		t.Errorf("left are %v, %v, want q", entries, err)
	}
	if got := w.logs.Lines("logs of forgotten pools were not removed"); len(got) > 0 {
		t.Errorf("logged %v", got)
	}
}

func TestDescribeOfUnknownEnds(t *testing.T) {
	t.Parallel()
	exit := registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_UNKNOWN}
	if got, want := Describe(exit), "nobody knows how (UNKNOWN)"; got != want {
		t.Errorf("Describe = %q, want %q", got, want)
	}
}
