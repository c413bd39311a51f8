// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

func TestNewRefusesWhatItCannotDoWithout(t *testing.T) {
	t.Parallel()
	whole := newWorld(t).config
	for name, breaks := range map[string]func(*Config){
		"no host":    func(c *Config) { c.Host = nil },
		"no records": func(c *Config) { c.Records = nil },
		"no handoff": func(c *Config) { c.Handoff = nil },
		"no trust":   func(c *Config) { c.Trust = nil },
		"no prober":  func(c *Config) { c.Prober = nil },
		"no logs":    func(c *Config) { c.Logs = nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := whole
			breaks(&config)
			if _, err := New(config); err == nil {
				t.Error("New succeeded")
			}
		})
	}
	if _, err := NewFileLogs("logs"); err == nil {
		t.Error("NewFileLogs succeeded with a relative folder")
	}
}

func TestStartupTimeoutIsOfTheRequestThenOfTheContract(t *testing.T) {
	t.Parallel()
	contract := &enginev1.PreparedEngine{Contract: &enginev1.RunContract{StartupTimeout: durationpb.New(time.Minute)}}
	for _, tt := range []struct {
		name    string
		request Request
		want    time.Duration
	}{
		{"request", Request{StartupTimeout: time.Second, Prepared: contract}, time.Second},
		{"contract", Request{Prepared: contract}, time.Minute},
		{"neither", Request{}, 10 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.request.timeout(); got != tt.want {
				t.Errorf("timeout is %v, want %v", got, tt.want)
			}
		})
	}
}

// The record is there before the process (G1), which is told nobody before it has proven itself (G6).
func TestLaunch(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	var phases []registry.Phase
	var at []state.Record
	e, err := w.launcher.Launch(t.Context(), r, func(s Stage) {
		phases = append(phases, s.Phase)
		at = append(at, w.loaded(t)...)
		if len(w.handoffs(t)) > 0 {
			t.Errorf("offered at %s", s.Phase)
		}
		if !alive(s.PID) || s.Started.IsZero() || !strings.HasSuffix(s.LogPath, "/p/0-1.log") {
			t.Errorf("stage %s is %+v", s.Phase, s)
		}
	})
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	info := e.Info()
	if diff := cmp.Diff([]registry.Phase{registry.PhaseLoading, registry.PhaseVerifying}, phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	if len(at) != 2 || at[0].Phase != state.Intended || at[0].Identity.PID != 0 || len(at[0].Identity.Nonce) != 32 ||
		at[1].Phase != state.Started || at[1].Identity.PID != info.PID || at[1].Identity.Nonce != at[0].Identity.Nonce {
		t.Errorf("records at the stages: %+v", at)
	}
	if info.Slots != 3 || info.Ready.Before(info.Started) || !strings.HasPrefix(info.Endpoint, "http://127.0.0.1:") {
		t.Errorf("info is %+v", info)
	}
	answer, err := http.Get(info.Endpoint + "/health")
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Errorf("the endpoint answers %v, %v", answer, err)
	}
	if got, err := e.Activity(t.Context()); got != (Activity{InFlight: 3}) || err != nil {
		t.Errorf("Activity = %+v, %v, want 3 in flight", got, err)
	}
	wantEnvironment(t, info.PID, "SOME=value", process.NonceVar+"="+at[0].Identity.Nonce,
		process.ManagerVar+"="+w.records.ManagerID(), process.PoolVar+"=p", process.ReplicaVar+"=p-0", process.GenerationVar+"=1")

	stopped, err := e.Stop(t.Context(), Ending{By: "test"})
	if err != nil || stopped.Killed || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_STOPPED || stopped.Exit.Uptime <= 0 {
		t.Errorf("Stop = %+v, %v", stopped, err)
	}
	select {
	case <-e.Done():
	default:
		t.Error("stopped and not done")
	}
	w.audit(t, info.PID)
	if info, err := os.Stat(info.LogPath); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("log: %v, %v, want it kept for its owner", info, err)
	}
	if _, err := e.Stop(t.Context(), Ending{By: "test"}); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
}

func wantEnvironment(t *testing.T, pid int, want ...string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	for _, entry := range want {
		if !slices.Contains(env, entry) {
			t.Errorf("the environment lacks %s: %q", entry, env)
		}
	}
}

func TestHandoff(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	e := w.mustLaunch(t, r)
	read := func() (entry handoff.Entry) {
		text, err := os.ReadFile(filepath.Join(w.handoffDir, "p-0.json"))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &entry); err != nil {
			t.Fatal(err)
		}
		return entry
	}
	var flags []string
	for _, arg := range r.Prepared.GetProcess().GetArgs()[:2] {
		flags = append(flags, arg.GetLiteral())
	}
	want := handoff.Entry{
		Engine: "some", EngineVersion: "v7", ProvisioningMode: "package", URL: e.Info().Endpoint, PoolID: "p", ReplicaID: "p-0",
		Model: handoff.Model{ID: "m", Path: "/models/m.gguf"}, Flags: append(flags, "127.0.0.1", "0"),
		SlotsTotal: 3, SlotsFree: 3, PID: e.Info().PID,
	}
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Errorf("handoff (-want +got):\n%s", diff)
	}
	for range 2 {
		if err := e.Withdraw(); err != nil {
			t.Errorf("Withdraw: %v", err)
		}
	}
	if files := w.handoffs(t); len(files) > 0 {
		t.Errorf("withdrawn, and there are %v", files)
	}
	if err := e.Offer(); err != nil {
		t.Errorf("Offer: %v", err)
	}
	if diff := cmp.Diff(want, read()); diff != "" {
		t.Errorf("handoff offered again (-want +got):\n%s", diff)
	}
}

func TestEngineWithoutSlotsAndCount(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	r.Prepared.Contract.Slots, r.Prepared.Contract.Activity, r.Prepared.Model.Files = nil, nil, nil
	e := w.mustLaunch(t, r)
	if got := e.Info().Slots; got != 0 {
		t.Errorf("slots %d, want 0: not known", got)
	}
	if got, err := e.Activity(t.Context()); err == nil {
		t.Errorf("Activity = %+v, want an error: not known is not zero", got)
	}
}

func TestALaunchRemovesTheLogsOfOlderStarts(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	dir := filepath.Join(w.logDir, "p")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"0-1.log", "1-1.log", "1-1.log.1", "1-1.log.1.tmp", "10-2.log"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r.Index, r.Replica, r.Generation = 1, "p-1", 2
	w.mustLaunch(t, r)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if diff := cmp.Diff([]string{"0-1.log", "1-2.log", "10-2.log"}, names); diff != "" {
		t.Errorf("logs (-want +got):\n%s", diff)
	}
}

func TestDeleteLogsLeavesOtherPools(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, pool := range []string{"p", "p2"} {
		if err := os.MkdirAll(filepath.Join(w.logDir, pool, "0-1.log"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := w.launcher.DeleteLogs("p"); err != nil {
			t.Errorf("DeleteLogs: %v", err)
		}
	}
	entries, err := os.ReadDir(w.logDir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "p2" {
		t.Errorf("left: %v, %v, want p2", entries, err)
	}
}

func TestHintComesWithItsLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	e := &Engine{info: Info{LogPath: path}, launcher: &Launcher{config: Config{Logs: &FileLogs{}}}}
	hint, end := e.hint(t.Context(), "is listening")
	if _, err := log.WriteString("loading\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hint:
		t.Error("a hint without its line")
	default:
	}
	if _, err := log.WriteString("srv is listening on 1\nsrv is listening on 2\n"); err != nil { // Nobody takes the second.
		t.Fatal(err)
	}
	select {
	case <-hint:
	case <-time.After(testPatience):
		t.Error("no hint")
	}
	end()

	none, end := e.hint(t.Context(), "")
	end()
	select {
	case <-none:
		t.Error("a hint for no text")
	default:
	}
}
