// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// patience is far longer than any demo with fakes takes.
const patience = 30 * time.Second

func TestRun(t *testing.T) {
	t.Parallel()
	show := startHost(t, faultNone)
	got := show.end(t)
	if got.Error != "" {
		t.Fatalf("the demo failed: %s\n%s", got.Error, show.told(t))
	}
	if diff := cmp.Diff(Counts{}, got.Report.LeftBehind); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
	if got.Report.Answer != "Once upon" || got.Report.Tokens != 2 {
		t.Errorf("the answer is %q with %d tokens, want %q with 2", got.Report.Answer, got.Report.Tokens, "Once upon")
	}
	if got.Report.Changes < 2 {
		t.Errorf("the watcher was told %d changes, want READY and STOPPED at least", got.Report.Changes)
	}
	for _, want := range []string{
		"preflight   found python3 3.11", "phase     preparing", "watch       demo  READY", "Once upon", "what is true",
		"drain       demo is STOPPED", "timeline\n", "nothing left behind: 0 processes, 0 sockets, 0 temp files",
	} {
		if !strings.Contains(show.told(t), want) {
			t.Errorf("the story lacks %q:\n%s", want, show.told(t))
		}
	}
}

func TestRunFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		fault string
		says  string // in the error
		tells string // in the story
		left  Counts
	}{
		{faultMissing, "apt install python3", "missing     python3 (the engine): apt install python3", Counts{}},
		{faultDies, "pool-managerd has ended by itself", "the state directory is on fire", Counts{}},
		{faultOrphan, "left behind: process", "drain       demo is STOPPED", Counts{Processes: 1}},
		{faultLitter, "/tmp/litter", "drain       demo is STOPPED", Counts{TempFiles: 1}},
		{faultCut, "without its end mark", "last words of pool-managerd", Counts{}},
		{faultForced, "did not end by itself", "requests cut", Counts{}},
	}
	for _, test := range tests {
		t.Run(test.fault, func(t *testing.T) {
			t.Parallel()
			show := startHost(t, test.fault)
			got := show.end(t)
			if !strings.Contains(got.Error, test.says) {
				t.Errorf("the error is %q, want it to say %q", got.Error, test.says)
			}
			if told := show.told(t); !strings.Contains(told, test.tells) {
				t.Errorf("the story lacks %q:\n%s", test.tells, told)
			}
			if diff := cmp.Diff(test.left, got.Report.LeftBehind); diff != "" {
				t.Errorf("left behind (-want +got):\n%s", diff)
			}
		})
	}
}

func TestInterruptClearsUp(t *testing.T) {
	t.Parallel()
	show := startHost(t, faultHangs)
	testkit.Eventually(t, patience, "the engine loads", func() (bool, string) {
		return strings.Contains(show.told(t), "phase     loading"), show.told(t)
	})
	if err := show.command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	got := show.end(t)
	if got.Error == "" {
		t.Error("an interrupted demo succeeded")
	}
	if diff := cmp.Diff(Counts{}, got.Report.LeftBehind); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
	if want := "nothing left behind"; !strings.Contains(show.told(t), want) {
		t.Errorf("the story lacks %q:\n%s", want, show.told(t))
	}
}

func TestHurriedCleanUpKills(t *testing.T) {
	t.Parallel()
	show := startHost(t, faultHurry)
	got := show.end(t)
	for _, want := range []string{"engine-provisioner had to be killed", "pool-managerd had to be killed"} {
		if !strings.Contains(got.Error, want) {
			t.Errorf("the error is %q, want it to say %q", got.Error, want)
		}
	}
}

func TestKilledDemoLeavesNoDaemon(t *testing.T) {
	t.Parallel()
	show := startHost(t, faultWaits)
	testkit.Eventually(t, patience, "the engine loads", func() (bool, string) {
		return strings.Contains(show.told(t), "phase     loading"), show.told(t)
	})
	below := descendants(show.command.Process.Pid)
	if len(below) != 3 {
		t.Errorf("the demo has %d processes below it, want its two daemons and the keeper: %v", len(below), below)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range below {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
	})
	if err := show.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = show.command.Wait() // killed
	awaitEnd(t, below)
	logs, err := filepath.Glob(filepath.Join(show.temp, folderPrefix+"*", "*.log"))
	if err != nil || len(logs) != 2 {
		t.Fatalf("logs are %v, %v, want those of two daemons", logs, err)
	}
	for _, log := range logs {
		if said := strings.Join(tail(log), "\n"); strings.Contains(said, askedTwice) {
			t.Errorf("%s: %s: by that a pool manager leaves its engines behind", log, said)
		}
	}
}

// awaitEnd returns when none of the processes is left.
func awaitEnd(t *testing.T, processes []process) {
	t.Helper()
	for _, p := range processes {
		testkit.Eventually(t, patience, "the daemon is gone", func() (bool, string) {
			stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.pid), "stat"))
			_, alive := parseStat(p.pid, string(stat))
			return err != nil || !alive, string(stat)
		})
	}
}

// What a killed demo leaves, the next one removes; what a demo under way has, it does not.
func TestKilledDemoIsClearedUpAfter(t *testing.T) {
	t.Parallel()
	killed := startHost(t, faultWaits)
	loads := func(s *shown) {
		testkit.Eventually(t, patience, "the engine loads", func() (bool, string) {
			return strings.Contains(s.told(t), "phase     preparing"), s.told(t)
		})
	}
	loads(killed)
	second := startHostIn(t, killed.temp, faultWaits)
	loads(second)
	if strings.Contains(second.told(t), "removed ") {
		t.Errorf("a demo removed what another uses:\n%s", second.told(t))
	}
	below := descendants(killed.command.Process.Pid)
	if err := killed.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.command.Wait() // killed
	awaitEnd(t, below)
	third := startHostIn(t, killed.temp, faultNone)
	if err := third.command.Wait(); err != nil {
		t.Errorf("the demo failed: %v\n%s", err, third.told(t))
	}
	if got := strings.Count(third.told(t), "which a killed demo had left"); got != 1 {
		t.Errorf("%d folders were removed, want that of the killed demo:\n%s", got, third.told(t))
	}
	if err := second.command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	second.end(t)
}

func TestNewNamesWhatIsMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	empty := t.TempDir()
	_, err := New(Config{BinDir: empty, CacheDir: empty})
	if reason.Of(err) != reason.ToolMissing {
		t.Fatalf("New = %v, want TOOL_MISSING", err)
	}
	for _, want := range []string{"engine-provisioner and pool-managerd", empty, "make build"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("New = %q, want it to name %q", err, want)
		}
	}
}

func TestNewRefusesAnUnknownEngine(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Engine: "slow", BinDir: programs(t)}); reason.Of(err) != reason.InvalidParams {
		t.Errorf("New = %v, want INVALID_PARAMS", err)
	}
}

func TestPhaseClock(t *testing.T) {
	t.Parallel()
	began := time.Unix(0, 0)
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	tests := []struct {
		name   string
		phases map[poolv1.LoadPhase]time.Time
		want   Timeline
	}{
		{
			"all phases",
			map[poolv1.LoadPhase]time.Time{
				poolv1.LoadPhase_LOAD_PHASE_PREPARING: at(0), poolv1.LoadPhase_LOAD_PHASE_STARTING: at(5),
				poolv1.LoadPhase_LOAD_PHASE_LOADING: at(6), poolv1.LoadPhase_LOAD_PHASE_VERIFYING: at(8),
			},
			Timeline{Prepare: 5 * time.Second, Start: time.Second, Ready: 3 * time.Second},
		},
		{"no phases", nil, Timeline{Prepare: 9 * time.Second}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var got Timeline
			(&phaseClock{began: began, ready: at(9), phases: test.phases}).fill(&got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("timeline (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	report := &Report{Preset: "quick", Answer: "Once", Tokens: 64, TokensPerSecond: 142.13, Timeline: Timeline{
		Services: 40 * time.Millisecond, Prepare: 12300 * time.Millisecond, Start: 4100 * time.Microsecond,
		Ready: 310 * time.Millisecond, FirstToken: 52 * time.Millisecond, Drain: 31 * time.Millisecond, Total: 14 * time.Second,
	}}
	testkit.Golden(t, "timeline.txt", []byte(report.table()))
	var out strings.Builder
	if err := report.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	testkit.Golden(t, "report.json", []byte(out.String()))
	if !json.Valid([]byte(out.String())) {
		t.Errorf("the report is not JSON:\n%s", out.String())
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	lines := strings.Repeat("x\n", tailLines) + "the end\n"
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	got := tail(path)
	if len(got) != tailLines || got[tailLines-1] != "the end" {
		t.Errorf("tail has %d lines and ends with %q, want %d and %q", len(got), got[len(got)-1], tailLines, "the end")
	}
}
