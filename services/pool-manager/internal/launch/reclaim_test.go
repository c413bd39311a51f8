// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// next returns the Launcher of a manager that was started after the one of w had died.
func (w *world) next(t *testing.T) *Launcher {
	t.Helper()
	launcher, err := New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	return launcher
}

// leave starts a process that nobody is in charge of, and returns it with the record of its start.
func (w *world) leave(t *testing.T) (*process.Process, state.Record) {
	t.Helper()
	executable, args, err := processtest.Command(processtest.Script{Lines: []string{"up"}})
	if err != nil {
		t.Fatal(err)
	}
	logPath := filepath.Join(t.TempDir(), "log")
	p, err := w.config.Host.Spawn(process.Command{
		Executable: executable, Args: args, Env: w.config.Env, LogPath: logPath, Nonce: process.NewNonce(),
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
		PoolID: "p", Generation: 1, Phase: state.Started, Identity: p.Identity(), Executable: executable,
	}
}

func (w *world) save(t *testing.T, records ...state.Record) {
	t.Helper()
	for _, r := range records {
		if err := w.config.Records.Save(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReclaimEndsAnEngineThatWasLaunched(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, pids := orphans(t, w)
	e.how.stop.Steps[0].Wait = 0 // For the clean-up.
	tree := pids()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second) // The orphans ignore TERM: do not wait for them.
	defer cancel()
	if err := w.next(t).Reclaim(ctx); err != nil {
		t.Errorf("Reclaim: %v", err)
	}
	w.auditRecords(t)
	for _, pid := range tree {
		if alive(pid) {
			t.Errorf("process %d is left", pid)
		}
	}
	if got := w.logs.Lines("an engine of an earlier manager was ended"); len(got) != 1 || got[0].Fields["pool_id"] != "p" {
		t.Errorf("logged %v", got)
	}
	if err := w.next(t).Reclaim(t.Context()); err != nil {
		t.Errorf("a second Reclaim: %v", err)
	}
	waits := w.logs.Lines("waiting for engines of an earlier manager to end")
	if len(waits) != 1 {
		t.Fatalf("logged %v, want one line before the end", waits)
	}
	said := fmt.Sprint(waits[0].Fields["pids"])
	for _, pid := range tree {
		if !strings.Contains(said, strconv.Itoa(pid)) {
			t.Errorf("%v does not name process %d", waits[0], pid)
		}
	}
	if waits[0].Fields["engines"] == nil || waits[0].Fields["deadline"] == nil {
		t.Errorf("%v does not say how many it waits for, and how long", waits[0])
	}
}

func (w *world) auditRecords(t *testing.T) {
	t.Helper()
	if records := w.loaded(t); len(records) > 0 {
		t.Errorf("records are left: %+v", records)
	}
}

// Of a start that was only intended nothing is known but the nonce.
func TestReclaimFindsAProcessByItsNonce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	running, record := w.leave(t)
	pid := record.Identity.PID
	record.Phase = state.Intended
	record.Identity = process.Identity{BootID: record.Identity.BootID, Nonce: record.Identity.Nonce}
	other := record
	other.Replica, other.Identity.Nonce = 1, process.NewNonce()
	w.save(t, record, other)
	if err := w.next(t).Reclaim(t.Context()); err != nil {
		t.Errorf("Reclaim: %v", err)
	}
	w.auditRecords(t)
	if alive(pid) {
		t.Errorf("process %d is left", pid)
	}
	awaitDone(t, running)
	if got := running.Exit().Signal; got != syscall.SIGTERM {
		t.Errorf("it died of %v, want TERM first", got)
	}
	if got := w.logs.Lines("record of an earlier manager was removed"); len(got) != 2 {
		t.Errorf("logged %v, want two", got)
	}
}

// Its main process has died with the manager, and what it had started lives.
func TestReclaimEndsWhatADeadEngineHasLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, pids := orphans(t, w)
	e.how.stop.Steps[0].Wait = 0
	kill(t, e.Info().PID)
	awaitDone(t, e)
	left := pids()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := w.next(t).Reclaim(ctx); err != nil {
		t.Errorf("Reclaim: %v", err)
	}
	w.auditRecords(t)
	for _, pid := range left {
		if alive(pid) {
			t.Errorf("orphan %d is left", pid)
		}
	}
}

func TestReclaimLeavesStrangersAlone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*process.Identity)
	}{
		{"a recycled pid", func(id *process.Identity) { id.StartTicks--; id.Nonce = process.NewNonce() }},
		{"the pid of another executable", func(id *process.Identity) { id.Executable = "/bin/engine"; id.Nonce = process.NewNonce() }},
		{"the pid of a process without the nonce", func(id *process.Identity) { id.Nonce = process.NewNonce() }},
		{"another boot", func(id *process.Identity) { id.BootID = "another" }},
		{"another boot, by nonce", func(id *process.Identity) { *id = process.Identity{BootID: "another", Nonce: id.Nonce} }},
		{"ourselves", func(id *process.Identity) { id.PID = os.Getpid(); id.Nonce = process.NewNonce() }},
		{"the first process", func(id *process.Identity) { id.PID = 1; id.Nonce = process.NewNonce() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			stranger, record := w.leave(t)
			tt.change(&record.Identity)
			w.save(t, record)
			if err := w.next(t).Reclaim(t.Context()); err != nil {
				t.Errorf("Reclaim: %v", err)
			}
			w.auditRecords(t)
			select {
			case <-stranger.Done():
				t.Errorf("a stranger was ended: %v", stranger.Exit())
			default:
			}
			if got := w.logs.Lines("an engine of an earlier manager was ended"); len(got) > 0 {
				t.Errorf("logged %v", got)
			}
		})
	}
}

func TestReclaimPutsBadRecordsAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	leftover, record := w.leave(t)
	w.save(t, record)
	if err := os.WriteFile(filepath.Join(w.stateDir, "replicas", "bad-0-g1.json"), []byte(`{"schema":1`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.next(t).Reclaim(t.Context()); err != nil {
		t.Errorf("Reclaim: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.stateDir, "quarantine", "bad-0-g1.json")); err != nil {
		t.Errorf("the bad record is not in quarantine: %v", err)
	}
	if got := w.logs.Lines("record was put aside"); len(got) != 1 || got[0].Fields["file"] != "bad-0-g1.json" {
		t.Errorf("logged %v", got)
	}
	awaitDone(t, leftover) // A bad record holds up no good one.
	w.auditRecords(t)
}

func TestReclaimWithoutRecordsFolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := os.RemoveAll(filepath.Join(w.stateDir, "replicas")); err != nil {
		t.Fatal(err)
	}
	if err := w.launcher.Reclaim(t.Context()); err == nil {
		t.Error("Reclaim succeeded without being able to look")
	}
}
