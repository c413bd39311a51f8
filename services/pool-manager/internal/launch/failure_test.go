// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// attempt is a launch that must fail.
type attempt struct {
	pids   []int
	phases []registry.Phase
	log    string
	err    error
}

// fail launches, expects an error, and audits that nothing is left.
func (w *world) fail(ctx context.Context, t *testing.T, r Request, stage func(Stage)) attempt {
	t.Helper()
	var a attempt
	e, err := w.launcher.Launch(ctx, r, func(s Stage) {
		a.pids, a.phases, a.log = append(a.pids, s.PID), append(a.phases, s.Phase), s.LogPath
		stage(s)
	})
	if err == nil {
		_, stopErr := e.Stop(ctx, Ending{By: "test"})
		t.Fatalf("Launch succeeded; Stop: %v", stopErr)
	}
	a.err = err
	w.audit(t, a.pids...)
	return a
}

// exit returns how the engine of the attempt ended.
func (a attempt) exit(t *testing.T) registry.Exit {
	t.Helper()
	failed, ok := errors.AsType[*Error](a.err)
	if !ok || failed.Exit == nil {
		t.Fatalf("%v is no *Error with an exit", a.err)
	}
	return *failed.Exit
}

func (a attempt) wantMeta(t *testing.T, want map[string]string) {
	t.Helper()
	typed, ok := reason.As(a.err)
	if !ok {
		t.Fatalf("%v has no reason", a.err)
	}
	for key, value := range want {
		if typed.Metadata[key] != value {
			t.Errorf("metadata %s of %v is %q, want %q", key, a.err, typed.Metadata[key], value)
		}
	}
	if typed.Remedy == "" {
		t.Errorf("%v has no remedy", a.err)
	}
}

// wantField fails unless the error names this field of a Preload request.
func (a attempt) wantField(t *testing.T, want string) {
	t.Helper()
	typed, ok := reason.As(a.err)
	if !ok || len(typed.Fields) != 1 || typed.Fields[0].Name != want {
		t.Errorf("%v does not name the field %s", a.err, want)
	}
}

func TestEngineThatEndsByItself(t *testing.T) {
	t.Parallel()
	const class = "EXIT_CLASS_"
	for _, tt := range []struct {
		name   string
		script processtest.Script
		meta   map[string]string
	}{
		{
			"with a code",
			processtest.Script{Lines: []string{"loading", "boom"}, End: &processtest.End{Code: 3}},
			map[string]string{"exit_class": "ERROR", "exit_code": "3", "signal": "", "last_log_line": "boom"},
		},
		{
			"with code 0, mute",
			processtest.Script{End: &processtest.End{}},
			map[string]string{"exit_class": "UNASKED", "exit_code": "0", "last_log_line": ""},
		},
		{
			"of a signal",
			processtest.Script{End: &processtest.End{Signal: syscall.SIGKILL}},
			map[string]string{"exit_class": "SIGNAL", "exit_code": "", "signal": "SIGKILL"},
		},
		{
			"with words that its contract explains",
			processtest.Script{Lines: []string{"error: bad flag -x", "bye"}, End: &processtest.End{Code: 1}},
			map[string]string{"exit_class": "CONFIG", "exit_code": "1", "last_log_line": "bye"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, r := newWorld(t), request(t, tt.script)
			r.Prepared.Contract.ExitPatterns = []*enginev1.ExitPattern{
				{Contains: "bad flag", Class: enginev1.ExitClass_EXIT_CLASS_CONFIG},
			}
			a := w.fail(t.Context(), t, r, ignoreStage)
			wantReason(t, a.err, reason.WorkerStartFailed)
			a.wantMeta(t, tt.meta)
			exit := a.exit(t)
			if got := strings.TrimPrefix(exit.Class.String(), class); got != tt.meta["exit_class"] || exit.Ended.IsZero() || exit.Uptime <= 0 {
				t.Errorf("exit is %+v", exit)
			}
			if len(exit.LastLines) != len(tt.script.Lines) {
				t.Errorf("last lines are %q, want %q", exit.LastLines, tt.script.Lines)
			}
			if !strings.Contains(a.err.Error(), Describe(exit)) {
				t.Errorf("%q does not say %q", a.err, Describe(exit))
			}
			if strings.Contains(a.err.Error(), "it ended before it was ready") {
				t.Errorf("%q says twice that it ended", a.err)
			}
			if _, err := os.Stat(a.log); err != nil {
				t.Errorf("the log is gone: %v", err)
			}
			start := w.onlyStart(t)
			if start.Class != tt.meta["exit_class"] || start.Signal != tt.meta["signal"] || start.EndedBy != "" || start.PID != a.pids[0] ||
				start.Error != a.err.Error() || start.Uptime != exit.Uptime || len(start.LastLines) != len(exit.LastLines) {
				t.Errorf("on record is %+v, want %v", start, tt.meta)
			}
		})
	}
}

func TestEngineThatIsNotWhatWasPrepared(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*processtest.Script, *enginev1.RunContract)
		want   reason.Reason
		says   string
	}{
		{
			"another model", func(s *processtest.Script, _ *enginev1.RunContract) {
				s.Answers["/models"] = `{"data":[{"id":"other"}]}`
			},
			reason.WorkerStartFailed, `is "other", want "m"`,
		},
		{
			"no model", func(s *processtest.Script, _ *enginev1.RunContract) { delete(s.Answers, "/models") },
			reason.WorkerStartFailed, "which model it serves: ask",
		},
		{
			"no number of slots", func(s *processtest.Script, _ *enginev1.RunContract) { s.Answers["/props"] = `{"total_slots":"many"}` },
			reason.WorkerStartFailed, "how many slots",
		},
		{
			"a negative number of slots", func(s *processtest.Script, _ *enginev1.RunContract) { s.Answers["/props"] = `{"total_slots":-1}` },
			reason.WorkerStartFailed, "how many slots",
		},
		{
			"never ready", func(s *processtest.Script, c *enginev1.RunContract) {
				s.ReadyAfter, c.StartupTimeout = processtest.Lasts, durationpb.New(500*time.Millisecond)
			}, reason.WorkerStartTimeout, "did not get ready within",
		},
		{
			"never listens, ignores TERM", func(s *processtest.Script, c *enginev1.RunContract) {
				s.Listen, s.Ignore = "", []syscall.Signal{syscall.SIGTERM}
				c.StartupTimeout, c.Stop[0].Wait = durationpb.New(500*time.Millisecond), durationpb.New(50*time.Millisecond)
			}, reason.WorkerStartTimeout, "does not listen yet",
		},
		{
			"listens elsewhere", func(s *processtest.Script, c *enginev1.RunContract) {
				s.Listen, c.StartupTimeout = "127.0.0.2:0", durationpb.New(time.Second)
			}, reason.WorkerStartTimeout, "listens at 127.0.0.2",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, s := newWorld(t), ready()
			r := request(t, processtest.Script{})
			tt.change(&s, r.Prepared.GetContract())
			r.Prepared.Process = request(t, s).Prepared.GetProcess()
			a := w.fail(t.Context(), t, r, ignoreStage)
			wantReason(t, a.err, tt.want)
			a.wantMeta(t, nil)
			if tt.want == reason.WorkerStartTimeout {
				a.wantField(t, "spec.startup_timeout")
			}
			if !strings.Contains(a.err.Error(), tt.says) {
				t.Errorf("%q does not say %q", a.err, tt.says)
			}
			exit, class, by := a.exit(t), enginev1.ExitClass_EXIT_CLASS_STOPPED, byMistrust
			if len(s.Ignore) > 0 {
				class = enginev1.ExitClass_EXIT_CLASS_KILLED
			}
			if exit.Class != class {
				t.Errorf("exit is %+v, want %s: we ended it", exit, class)
			}
			if tt.want == reason.WorkerStartTimeout {
				by = byTimeout
			}
			if start := w.onlyStart(t); start.EndedBy != by || start.Class != className(class) || !strings.Contains(start.Error, tt.says) {
				t.Errorf("on record is %+v, want ended by %s", start, by)
			}
		})
	}
}

func TestIdentityIsTheEnginesOwn(t *testing.T) {
	t.Parallel()
	w, s := newWorld(t), ready()
	s.Answers["/models"] = `{"data":[{"id":"other"}]}`
	a := w.fail(t.Context(), t, request(t, s), ignoreStage)
	mismatch, ok := errors.AsType[*probe.MismatchError](a.err)
	if !ok || mismatch.Got != "other" || mismatch.Want != "m" {
		t.Errorf("error %v does not hold the mismatch", a.err)
	}
}

func TestEngineThatEndsWhileItIsVerified(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.fail(t.Context(), t, request(t, ready()), func(s Stage) {
		if s.Phase == registry.PhaseVerifying {
			kill(t, s.PID)
		}
	})
	wantReason(t, a.err, reason.WorkerStartFailed)
	a.wantMeta(t, map[string]string{"exit_class": "SIGNAL", "signal": "SIGKILL"})
}

func TestCancelledLaunchLeavesNothing(t *testing.T) {
	t.Parallel()
	enough := errors.New("enough")
	for _, phase := range []registry.Phase{registry.PhaseLoading, registry.PhaseVerifying} {
		t.Run(phase.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := ready()
			s.Children = []processtest.Child{{Detach: processtest.OwnSession}}
			r := request(t, s)
			r.Prepared.Contract.Stop[0].Wait = durationpb.New(200 * time.Millisecond) // The child may come after the signal.
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			a := w.fail(ctx, t, r, func(s Stage) {
				if s.Phase == phase {
					cancel(enough)
				}
			})
			if !errors.Is(a.err, enough) || a.phases[len(a.phases)-1] != phase {
				t.Errorf("Launch = %v after %v, want the cause", a.err, a.phases)
			}
			if exit := a.exit(t); exit.Class != enginev1.ExitClass_EXIT_CLASS_STOPPED {
				t.Errorf("exit is %+v, want STOPPED", exit)
			}
			if start := w.onlyStart(t); start.Class != "STOPPED" || start.EndedBy != byCancel || !strings.Contains(start.Error, "enough") {
				t.Errorf("on record is %+v, want cancelled", start)
			}
		})
	}
}

// A process whose record cannot be completed is ended; if the disk is back at the next start, the record that was left
// goes with it.
func TestProcessThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	folder := filepath.Join(w.stateDir, "replicas")
	var pid int
	_, err := w.launcher.Launch(t.Context(), request(t, ready()), func(s Stage) {
		pid = s.PID
		if err := os.Rename(folder, folder+".away"); err != nil {
			t.Fatal(err)
		}
	})
	wantReason(t, err, reason.StorageFailed)
	if failed, ok := errors.AsType[*Error](err); !ok || failed.Exit == nil {
		t.Errorf("%v does not tell how the process ended", err)
	}
	if alive(pid) {
		t.Errorf("process %d is left", pid)
	}
	if err := os.Rename(folder+".away", folder); err != nil {
		t.Fatal(err)
	}
	if records := w.loaded(t); len(records) != 1 {
		t.Errorf("records: %+v, want the one that could not be removed", records)
	}
	w.endAll(t.Context(), t)
	w.audit(t, pid)
}

func TestEngineThatCannotBeOffered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	must := request(t, ready())
	must.MustOffer = true
	a := w.fail(t.Context(), t, must, func(Stage) {
		if err := os.RemoveAll(w.handoffDir); err != nil {
			t.Fatal(err)
		}
	})
	wantReason(t, a.err, reason.StorageFailed)
	if exit := a.exit(t); exit.Class != enginev1.ExitClass_EXIT_CLASS_STOPPED {
		t.Errorf("exit is %+v, want STOPPED", exit)
	}
}
