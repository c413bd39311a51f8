// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// awaitDone waits until a main process has exited.
func awaitDone(t *testing.T, e interface{ Done() <-chan struct{} }) {
	t.Helper()
	select {
	case <-e.Done():
	case <-time.After(testPatience):
		t.Fatal("the engine is not done")
	}
}

func TestStopKillsWhatIgnoresIt(t *testing.T) {
	t.Parallel()
	s := ready()
	s.Ignore = []syscall.Signal{syscall.SIGTERM}
	w, r := newWorld(t), request(t, s)
	r.Prepared.Contract.Stop[0].Wait = durationpb.New(50 * time.Millisecond)
	e := w.mustLaunch(t, r)
	stopped, err := e.Stop(t.Context(), Ending{By: "test"})
	if err != nil || !stopped.Killed || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_KILLED || stopped.Exit.Signal != "SIGKILL" {
		t.Errorf("Stop = %+v, %v, want killed", stopped, err)
	}
	w.audit(t, e.Info().PID)
	if start := w.onlyStart(t); start.Class != "KILLED" || start.EndedBy != "test" || start.Signal != "SIGKILL" || start.ReadyAt.IsZero() || start.Adopted {
		t.Errorf("on record is %+v", start)
	}
}

func TestStopAfterACrashTellsOfTheCrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, pids := orphans(t, w) // Those are told to end.
	e.how.stop.Steps[0].Wait = 50 * time.Millisecond
	tree := pids()
	kill(t, e.Info().PID)
	awaitDone(t, e)
	stopped, err := e.Stop(t.Context(), Ending{By: "test"})
	if err != nil || !stopped.Killed || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_SIGNAL {
		t.Errorf("Stop = %+v, %v, want class SIGNAL", stopped, err)
	}
	w.audit(t, tree...)
	if start := w.onlyStart(t); start.Class != "SIGNAL" || start.EndedBy != "" {
		t.Errorf("on record is %+v, want an end by itself", start)
	}
}

// orphans returns an engine with two processes in sessions of their own, and a function that tells their pids.
func orphans(t *testing.T, w *world) (*Engine, func() []int) {
	t.Helper()
	s := ready()
	for range 2 {
		s.Children = append(s.Children, processtest.Child{
			Detach: processtest.OwnSession, Script: processtest.Script{Ignore: []syscall.Signal{syscall.SIGTERM}, Lines: []string{"child up"}},
		})
	}
	e := w.mustLaunch(t, request(t, s))
	testkit.Eventually(t, testPatience, "the children are up", func() (bool, string) {
		text, err := os.ReadFile(e.Info().LogPath)
		return err == nil && strings.Count(string(text), "child up\n") == 2, string(text)
	})
	return e, func() []int {
		members, err := w.host.Find(e.record.Identity.Nonce)
		if err != nil {
			t.Fatal(err)
		}
		var pids []int
		for _, m := range members {
			pids = append(pids, m.PID)
		}
		return pids
	}
}

func TestBuryEndsTheOrphansOfACrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, pids := orphans(t, w)
	if tree := pids(); len(tree) != 3 {
		t.Fatalf("tree is %v, want three", tree)
	}
	kill(t, e.Info().PID)
	awaitDone(t, e)
	left := pids()
	if len(left) != 2 {
		t.Fatalf("after the crash: %v, want two orphans", left)
	}
	exit, err := e.Bury(t.Context())
	if err != nil || exit.Class != enginev1.ExitClass_EXIT_CLASS_SIGNAL || exit.Signal != "SIGKILL" || exit.Code != 0 || exit.Uptime <= 0 {
		t.Errorf("Bury = %+v, %v", exit, err)
	}
	if len(exit.LastLines) == 0 {
		t.Error("no last words")
	}
	w.audit(t, left...)
	if start := w.onlyStart(t); start.Class != "SIGNAL" || start.EndedBy != "" || len(start.LastLines) == 0 {
		t.Errorf("on record is %+v", start)
	}
	if _, err := e.Bury(t.Context()); err != nil {
		t.Errorf("a second Bury: %v", err)
	}
}

func TestStopEndsTheWholeTree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, pids := orphans(t, w)
	e.how.stop.Steps[0].Wait = 50 * time.Millisecond
	tree := pids()
	stopped, err := e.Stop(t.Context(), Ending{By: "test"})
	if err != nil || !stopped.Killed {
		t.Errorf("Stop = %+v, %v, want killed: the children ignore TERM", stopped, err)
	}
	w.audit(t, tree...)
}

// A stop that cannot remove the record says so, and does so when it is called again.
func TestStopAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.mustLaunch(t, request(t, ready()))
	folder := filepath.Join(w.stateDir, "replicas")
	if err := os.Rename(folder, folder+".away"); err != nil {
		t.Fatal(err)
	}
	if stopped, err := e.Stop(t.Context(), Ending{By: "test"}); err == nil {
		t.Errorf("Stop = %+v and no error, without the folder of records", stopped)
	}
	if err := os.Rename(folder+".away", folder); err != nil {
		t.Fatal(err)
	}
	stopped, err := e.Stop(t.Context(), Ending{By: "test"})
	if err != nil || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_STOPPED {
		t.Errorf("a second Stop = %+v, %v", stopped, err)
	}
	w.audit(t, e.Info().PID)
}

// A contract without steps has it killed at once, and that is its end as asked for.
func TestStopWithoutSteps(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	r.Prepared.Contract.Stop = nil
	e := w.mustLaunch(t, r)
	stopped, err := e.Stop(t.Context(), Ending{By: "drain", RequestsCut: 4})
	if err != nil || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_KILLED || stopped.Exit.RequestsCut != 4 {
		t.Errorf("Stop = %+v, %v, want KILLED", stopped, err)
	}
	if start := w.onlyStart(t); start.EndedBy != "drain" || start.RequestsCut != 4 {
		t.Errorf("on record is %+v", start)
	}
}

func TestStopByOneKillOfTheGroup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{kills: true}
		e, err := w.launcher(t).Launch(t.Context(), request(t, processtest.Script{}), ignoreStage)
		if err != nil {
			t.Fatal(err)
		}
		stopped, err := e.Stop(t.Context(), Ending{By: "drain"})
		if err != nil || !stopped.Killed || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_KILLED || w.starts[0].EndedBy != "drain" {
			t.Errorf("Stop = %+v, %v, on record %+v", stopped, err, w.starts)
		}
	})
}

func TestStopOfWhatHangs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.mustLaunch(t, request(t, ready()))
	stopped, err := e.Stop(t.Context(), Ending{By: "hung", Hung: true, Cause: "nothing moved for 60 s"})
	if err != nil || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_HUNG {
		t.Errorf("Stop = %+v, %v, want HUNG", stopped, err)
	}
	if start := w.onlyStart(t); start.Class != "HUNG" || start.EndedBy != "hung" || start.Error != "nothing moved for 60 s" {
		t.Errorf("on record is %+v", start)
	}
}

// A disk that is full must not keep an engine from ending.
func TestStopThatCannotBePutOnRecord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.mustLaunch(t, request(t, ready()))
	e.saving.Wait()
	if err := os.RemoveAll(filepath.Join(w.stateDir, "starts")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.stateDir, "starts"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if stopped, err := e.Stop(t.Context(), Ending{By: "drain"}); err != nil || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_STOPPED {
		t.Errorf("Stop = %+v, %v", stopped, err)
	}
	w.audit(t, e.Info().PID)
	if got := w.logs.Lines("how a start ended is not on record"); len(got) != 1 || got[0].Fields["pool_id"] != "p" {
		t.Errorf("logged %v", got)
	}
}

// While one engine takes the place of another they share the replica's file, and each has its log.
func TestTheEndOfAnOldGenerationLeavesTheNewOne(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	older := w.mustLaunch(t, r)
	r.Generation, r.Quiet = 2, true
	newer := w.mustLaunch(t, r)
	offered := func() int {
		text, err := os.ReadFile(filepath.Join(w.handoffDir, "p-0.json"))
		if errors.Is(err, fs.ErrNotExist) {
			return 0
		}
		var entry handoff.Entry
		if err := errors.Join(err, json.Unmarshal(text, &entry)); err != nil {
			t.Fatal(err)
		}
		return entry.PID
	}
	if got := offered(); got != older.Info().PID {
		t.Errorf("offered is %d before the switch, want the old one, %d", got, older.Info().PID)
	}
	if _, err := os.Stat(older.Info().LogPath); err != nil {
		t.Errorf("the log of an engine that runs is gone: %v", err)
	}
	if err := newer.Withdraw(); err != nil || offered() != older.Info().PID {
		t.Errorf("Withdraw = %v of what was not offered: offered is %d", err, offered())
	}
	if err := newer.Offer(); err != nil {
		t.Fatal(err)
	}
	if err := older.Offer(); err != nil || offered() != newer.Info().PID { // As when it gets ready after it was replaced.
		t.Errorf("Offer = %v of what was replaced: offered is %d", err, offered())
	}
	if err := older.Withdraw(); err != nil {
		t.Error(err)
	}
	if _, err := older.Stop(t.Context(), Ending{By: "reload"}); err != nil {
		t.Error(err)
	}
	if got := offered(); got != newer.Info().PID {
		t.Errorf("offered is %d after the old one has ended, want the new one, %d", got, newer.Info().PID)
	}
	if _, err := newer.Stop(t.Context(), Ending{By: "drain"}); err != nil || offered() != 0 {
		t.Errorf("Stop = %v, offered is %d", err, offered())
	}
	if n := len(w.launcher.offers.of); n > 0 {
		t.Errorf("%d offers are remembered of no engine", n)
	}
}

func TestLastLines(t *testing.T) {
	t.Parallel()
	var short []string
	for i := range 60 {
		short = append(short, "line "+strconv.Itoa(i))
	}
	kilobytes := make([]string, 20)
	for i := range kilobytes {
		kilobytes[i] = strings.Repeat(strconv.Itoa(i%10), 1024)
	}
	for _, tt := range []struct {
		name string
		log  string
		want []string
	}{
		{"none", "", nil},
		{"short ones", strings.Join(short, "\n") + "\n", short[10:]},
		{"without the last newline", "a\nb", []string{"a", "b"}},
		{"long ones", strings.Join(kilobytes, "\n"), kilobytes[4:]},
		{"one that fills all", "before\n" + strings.Repeat("x", lastBytes), []string{strings.Repeat("x", lastBytes)}},
		{"broken text", "a\xffb\n\xfe", []string{"a\uFFFDb", "\uFFFD"}},
		{"broken text that grows, at the end", strings.Repeat("a\xff", 5000), []string{strings.Repeat("a\uFFFD", lastBytes/4)}},
		{"broken text that grows", strings.Repeat("\xff\n", 40) + strings.Repeat("a\xff", 5000) + "\nlast\n", []string{"last"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "log")
			if err := os.WriteFile(path, []byte(tt.log), 0o600); err != nil {
				t.Fatal(err)
			}
			got, size := lastWords(&FileLogs{}, path), 0
			for _, line := range got {
				size += len(line)
				if !utf8.ValidString(line) {
					t.Errorf("line %q is no text", line)
				}
			}
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") || len(got) != len(tt.want) || size > lastBytes {
				t.Errorf("%d lines of %d bytes: %.200q, want %d: %.200q", len(got), size, got, len(tt.want), tt.want)
			}
		})
	}
	if got := lastWords(&FileLogs{}, "/nonexistent"); got != nil {
		t.Errorf("lines of no log: %q", got)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		exit registry.Exit
		want string
	}{
		{
			registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_ERROR, Code: 3, Uptime: 1234567 * time.Microsecond, LastLines: []string{"a", "b"}},
			"exit code 3 (ERROR) after 1.235s; last line: b",
		},
		{registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_SIGNAL, Signal: "SIGSEGV", Uptime: time.Second}, "killed by SIGSEGV (SIGNAL) after 1s"},
		{registry.Exit{Class: enginev1.ExitClass_EXIT_CLASS_UNASKED}, "exit code 0 (UNASKED) after 0s"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			if got := Describe(tt.exit); got != tt.want {
				t.Errorf("Describe(%+v) = %q, want %q", tt.exit, got, tt.want)
			}
		})
	}
}

func TestModesHaveTheNamesOfTheHandoffFormat(t *testing.T) {
	t.Parallel()
	want := map[int32]string{0: "unspecified", 1: "external", 2: "source", 3: "package"}
	got := map[int32]string{}
	for value := range enginev1.ProvisioningMode_name {
		got[value] = modeName(enginev1.ProvisioningMode(value))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
}
