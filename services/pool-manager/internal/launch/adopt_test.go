// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

// abandon launches an engine as a manager does that then dies: nobody of it holds the engine any more.
func (w *world) abandon(t *testing.T, r Request) Info {
	t.Helper()
	e := w.mustLaunch(t, r)
	e.saving.Wait() // What a manager that lives for some milliseconds has on disk.
	return e.Info()
}

// adopt has the next manager take over the one engine that there is.
func (w *world) adopt(ctx context.Context, t *testing.T, r Request, stage func(Stage)) (*Engine, error) {
	t.Helper()
	l, found := w.find(t)
	if len(found.Engines) != 1 {
		t.Fatalf("found %+v, want one engine", found)
	}
	e, err := l.Adopt(ctx, found.Engines[0], r, stage)
	if e != nil {
		t.Cleanup(func() {
			if _, err := e.Stop(context.Background(), Ending{By: "test"}); err != nil {
				t.Errorf("Stop at the end: %v", err)
			}
		})
	}
	return e, err
}

func TestAdoptTakesOverWhatServes(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	r.Edition, r.StartedBy = 7, "preload"
	before := w.abandon(t, r)
	var phases []registry.Phase
	e, err := w.adopt(t.Context(), t, r, func(s Stage) { phases = append(phases, s.Phase) })
	if err != nil {
		t.Fatalf("Adopt: %v", err)
	}
	info := e.Info()
	if !info.Adopted || info.PID != before.PID || info.Endpoint != before.Endpoint || info.Slots != 3 || info.LogPath != before.LogPath ||
		!info.Started.Equal(before.Started) || !info.Ready.Equal(before.Ready) || info.LoadTime <= 0 {
		t.Errorf("info is %+v, want as before: %+v", info, before)
	}
	if diff := cmp.Diff([]registry.Phase{registry.PhaseVerifying}, phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"p-0.json"}, w.handoffs(t)); diff != "" {
		t.Errorf("handoff files (-want +got):\n%s", diff)
	}
	e.saving.Wait()
	if got := w.loaded(t); len(got) != 1 || !got[0].Adopted || got[0].Phase != state.Ready || got[0].Edition != 7 || got[0].StartedBy != "preload" {
		t.Errorf("records are %+v", got)
	}
	stopped, err := e.Stop(t.Context(), Ending{By: "drain", RequestsCut: 2})
	if err != nil || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_STOPPED || stopped.Exit.RequestsCut != 2 {
		t.Errorf("Stop = %+v, %v", stopped, err)
	}
	if lived := time.Since(before.Started); stopped.Exit.Uptime <= before.LoadTime || stopped.Exit.Uptime > lived {
		t.Errorf("uptime is %v of %v", stopped.Exit.Uptime, lived)
	}
	w.audit(t, info.PID)
	start := w.onlyStart(t)
	if start.Class != "STOPPED" || start.EndedBy != "drain" || start.RequestsCut != 2 || !start.Adopted || start.Edition != 7 ||
		start.StartedBy != "preload" || !start.ReadyAt.Equal(before.Ready) || start.Error != "" {
		t.Errorf("on record is %+v", start)
	}
}

func TestAdoptGoesOnWithALoad(t *testing.T) {
	t.Parallel()
	s := ready()
	s.ReadyAfter = 400 * time.Millisecond
	w, r := newWorld(t), request(t, s)
	started := w.leaveLoading(t, r)
	var phases []registry.Phase
	e, err := w.adopt(t.Context(), t, r, func(s Stage) {
		if len(phases) == 0 || phases[len(phases)-1] != s.Phase {
			phases = append(phases, s.Phase)
		}
	})
	if err != nil {
		t.Fatalf("Adopt: %v", err)
	}
	if diff := cmp.Diff([]registry.Phase{registry.PhaseLoading, registry.PhaseVerifying}, phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	if info := e.Info(); info.PID != started.PID || info.LoadTime < s.ReadyAfter/2 || info.Ready.Sub(info.Started) < s.ReadyAfter/2 {
		t.Errorf("info is %+v", info)
	}
	if files := w.handoffs(t); len(files) != 1 {
		t.Errorf("handoff files: %v", files)
	}
}

// leaveLoading launches an engine as a manager does that ends and leaves it while it loads.
func (w *world) leaveLoading(t *testing.T, r Request) Stage {
	t.Helper()
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	var at Stage
	e, err := w.launcher.Launch(ctx, r, func(s Stage) {
		at = s
		cancel(ErrLeave)
	})
	if e != nil || !errors.Is(err, ErrLeave) {
		t.Fatalf("Launch = %v, %v, want ErrLeave", e, err)
	}
	if _, isError := errors.AsType[*Error](err); isError {
		t.Errorf("%v says that it has ended", err)
	}
	if records := w.loaded(t); len(records) != 1 || records[0].Phase != state.Started || !alive(at.PID) {
		t.Errorf("left are %+v, alive: %v", records, alive(at.PID))
	}
	if starts := w.starts(t); len(starts) > 0 {
		t.Errorf("on record are %+v, and it goes on", starts)
	}
	t.Cleanup(func() {
		if alive(at.PID) {
			kill(t, at.PID)
		}
	})
	return at
}

func TestAdoptCanLeaveToo(t *testing.T) {
	t.Parallel()
	s := ready()
	s.ReadyAfter = processtest.Lasts
	w, r := newWorld(t), request(t, s)
	at := w.leaveLoading(t, r)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	if e, err := w.adopt(ctx, t, r, func(Stage) { cancel(ErrLeave) }); e != nil || !errors.Is(err, ErrLeave) {
		t.Errorf("Adopt = %v, %v, want ErrLeave", e, err)
	}
	if records := w.loaded(t); len(records) != 1 || !alive(at.PID) {
		t.Errorf("left are %+v, alive: %v", records, alive(at.PID))
	}
	enough := errors.New("enough")
	stopping, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	_, err := w.adopt(stopping, t, r, func(Stage) { stop(enough) })
	if failed, ok := errors.AsType[*Error](err); !ok || failed.Exit == nil || !errors.Is(err, enough) {
		t.Errorf("Adopt = %v, want the cause and how it ended", err)
	}
	w.audit(t, at.PID)
	if start := w.onlyStart(t); start.Class != "STOPPED" || start.EndedBy != byCancel || start.Error == "" {
		t.Errorf("on record is %+v", start)
	}
}

func TestAdoptOfWhatIsGone(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	r.Prepared.Contract.ExitPatterns = []*enginev1.ExitPattern{{Contains: "never said", Class: enginev1.ExitClass_EXIT_CLASS_OOM_DEVICE}}
	before := w.abandon(t, r)
	kill(t, before.PID)
	_, err := w.adopt(t.Context(), t, r, func(s Stage) { t.Errorf("stage %+v of what is gone", s) })
	wantReason(t, err, reason.EngineExited)
	failed, ok := errors.AsType[*Error](err)
	if !ok || failed.Exit == nil || failed.Exit.Class != enginev1.ExitClass_EXIT_CLASS_UNKNOWN || len(failed.Exit.LastLines) == 0 {
		t.Errorf("%v tells of %+v, want UNKNOWN and its last words", err, failed)
	}
	w.audit(t, before.PID)
	if start := w.onlyStart(t); start.Class != "UNKNOWN" || start.EndedBy != "" || start.PID != before.PID || !start.ReadyAt.Equal(before.Ready) {
		t.Errorf("on record is %+v", start)
	}
}

func TestAdoptOfWhatIsGoneReadsItsLastWords(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	r.Prepared.Contract.ExitPatterns = []*enginev1.ExitPattern{{Contains: "listening on", Class: enginev1.ExitClass_EXIT_CLASS_GPU_FAULT}}
	before := w.abandon(t, r)
	kill(t, before.PID)
	_, err := w.adopt(t.Context(), t, r, ignoreStage)
	if failed, ok := errors.AsType[*Error](err); !ok || failed.Exit == nil || failed.Exit.Class != enginev1.ExitClass_EXIT_CLASS_GPU_FAULT {
		t.Errorf("Adopt = %v, want what its log says", err)
	}
}

func TestAdoptLeavesStrangersAlone(t *testing.T) {
	t.Parallel()
	for name, change := range strangers() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, r := newWorld(t), request(t, ready())
			stranger, record := w.leave(t)
			change(&record.Identity)
			w.save(t, record)
			_, err := w.adopt(t.Context(), t, r, func(s Stage) { t.Errorf("stage %+v of a stranger", s) })
			wantReason(t, err, reason.WorkerStartFailed)
			if failed, ok := errors.AsType[*Error](err); !ok || failed.Exit == nil || failed.Exit.Class != enginev1.ExitClass_EXIT_CLASS_UNKNOWN {
				t.Errorf("Adopt = %v, want an end of class UNKNOWN", err)
			}
			select {
			case <-stranger.Done():
				t.Errorf("a stranger was ended: %v", stranger.Exit())
			default:
			}
			w.audit(t)
		})
	}
}

// freeze stops every thread of a process, and returns when they are.
func freeze(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, testPatience, "the process stands still", func() (bool, string) {
		stats, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "stat"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range stats {
			text, err := os.ReadFile(path)
			if _, after, _ := strings.Cut(string(text), ") "); err == nil && !strings.HasPrefix(after, "T") {
				return false, string(text)
			}
		}
		return true, ""
	})
}

// It was ready, and now neither answers nor moves.
func TestAdoptEndsWhatHangs(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	r.Prepared.Contract.Stop[0].Wait.Seconds = 0
	before := w.abandon(t, r)
	freeze(t, before.PID)
	began := time.Now()
	_, err := w.adopt(t.Context(), t, r, ignoreStage)
	wantReason(t, err, reason.WorkerStartTimeout)
	failed, ok := errors.AsType[*Error](err)
	if !ok || failed.Exit == nil || failed.Exit.Class != enginev1.ExitClass_EXIT_CLASS_HUNG {
		t.Errorf("Adopt = %v, want HUNG", err)
	}
	if took := time.Since(began); took < adoptLimit || took > testPatience {
		t.Errorf("it took %v", took)
	}
	w.audit(t, before.PID)
	if start := w.onlyStart(t); start.Class != "HUNG" || start.EndedBy != byHang {
		t.Errorf("on record is %+v", start)
	}
}

// An engine at the recorded place that names another model is not the one that was prepared.
func TestAdoptEndsWhatIsNotWhatWasPrepared(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	before := w.abandon(t, r)
	r.Prepared.Contract.Identity.Expected = "other"
	began := time.Now()
	_, err := w.adopt(t.Context(), t, r, ignoreStage)
	wantReason(t, err, reason.WorkerStartFailed)
	if took := time.Since(began); took >= adoptLimit {
		t.Errorf("it took %v, and the answer will not change", took)
	}
	w.audit(t, before.PID)
	if start := w.onlyStart(t); start.Class != "STOPPED" || start.EndedBy != byMistrust {
		t.Errorf("on record is %+v", start)
	}
}

func TestAdoptEndsWhatItDoesNotUnderstand(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	before := w.abandon(t, r)
	r.Prepared.Contract.Ready = nil
	_, err := w.adopt(t.Context(), t, r, ignoreStage)
	wantReason(t, err, reason.WorkerStartFailed)
	if _, ok := errors.AsType[*Error](err); !ok {
		t.Errorf("%v does not say how it ended", err)
	}
	w.audit(t, before.PID)
}

// The files of an engine that runs are not executed again.
func TestAdoptDoesNotAskForItsFiles(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	w.abandon(t, r)
	r.Prepared.Process.Files[0].Sha256 = "00"
	if _, err := w.adopt(t.Context(), t, r, ignoreStage); err != nil {
		t.Errorf("Adopt: %v", err)
	}
}

func TestAdoptServesWithoutAHandoffFile(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	before := w.abandon(t, r)
	l, found := w.find(t)
	if err := os.RemoveAll(w.handoffDir); err != nil {
		t.Fatal(err)
	}
	r.Prepared.Engine.Version = "v8" // Else there would be nothing to be written.
	e, err := l.Adopt(t.Context(), found.Engines[0], r, ignoreStage)
	if err != nil {
		t.Fatalf("Adopt: %v, and the engine serves", err)
	}
	defer e.Release()
	if got := w.logs.Lines("handoff file was not written"); len(got) != 1 {
		t.Errorf("logged %v", got)
	}
	answer, err := http.Get(before.Endpoint + "/health")
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("the endpoint answers %v, %v", answer, err)
	}
	_ = answer.Body.Close()
}

func TestReleaseLeavesAll(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	e, err := w.launcher.Launch(t.Context(), r, ignoreStage)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		e.Release()
	}
	if got := w.loaded(t); len(got) != 1 || got[0].Phase != state.Ready || got[0].ReadyAt.IsZero() || got[0].Endpoint != e.Info().Endpoint {
		t.Errorf("records are %+v, want one that is ready", got)
	}
	if _, err := os.Stat(e.Info().LogPath); err != nil || len(w.handoffs(t)) != 1 || !alive(e.Info().PID) {
		t.Errorf("log: %v, handoff files: %v, alive: %v", err, w.handoffs(t), alive(e.Info().PID))
	}
	if _, err := w.adopt(t.Context(), t, r, ignoreStage); err != nil {
		t.Errorf("Adopt after Release: %v", err)
	}
}

// A process that cannot be held may have its memory still: nothing may be started in its place.
func TestAdoptOfWhatCannotBeHeld(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	before := w.abandon(t, r)
	refusing := &refusingHost{Host: w.config.Host, refuses: true}
	w.config.Host = refusing
	e, err := w.adopt(t.Context(), t, r, ignoreStage)
	failed, ok := errors.AsType[*Error](err)
	if e == nil || !ok || failed.Exit != nil {
		t.Fatalf("Adopt = %v, %v, want the engine and no exit", e, err)
	}
	wantReason(t, err, reason.StopFailed)
	if _, err := e.Stop(t.Context(), Ending{By: "drain"}); err == nil || !alive(before.PID) || len(w.loaded(t)) != 1 {
		t.Errorf("Stop = %v, alive: %v", err, alive(before.PID))
	}
	refusing.refuses = false
	if stopped, err := e.Stop(t.Context(), Ending{By: "drain"}); err != nil || stopped.Exit.Class != enginev1.ExitClass_EXIT_CLASS_STOPPED {
		t.Errorf("a second Stop = %+v, %v", stopped, err)
	}
	w.audit(t, before.PID)
}

type refusingHost struct {
	Host
	refuses bool
}

func (h *refusingHost) Attach(id process.Identity) (Process, error) {
	if h.refuses {
		return nil, syscall.EMFILE
	}
	return h.Host.Attach(id)
}

// A process that is on its way out may be swept up with what it leaves; that is not how it ended.
func TestAdoptOfWhatIsAboutToBeGone(t *testing.T) {
	t.Parallel()
	w := &fakeWorld{}
	w.launcher(t)
	l, err := New(Config{
		Host: dyingHost{fakeHost{w}}, Records: w, Handoff: fakeHandoff{}, Trust: fakeTrust{}, Prober: fakeProber{w}, Logs: fakeLogs{},
	})
	if err != nil {
		t.Fatal(err)
	}
	id := process.Identity{BootID: "boot", PID: 17, Nonce: "n"}
	if err := w.Save(state.Record{PoolID: "p", Generation: 1, Phase: state.Ready, Identity: id}); err != nil {
		t.Fatal(err)
	}
	found, err := l.Leftovers(t.Context())
	if err != nil || len(found.Engines) != 1 {
		t.Fatalf("Leftovers = %+v, %v", found, err)
	}
	_, err = l.Adopt(t.Context(), found.Engines[0], request(t, processtest.Script{}), ignoreStage)
	wantReason(t, err, reason.EngineExited)
	if len(w.starts) != 1 || w.starts[0].Class != "UNKNOWN" || w.starts[0].EndedBy != "" {
		t.Errorf("on record are %+v, want UNKNOWN", w.starts)
	}
}

// dyingHost has a process that is gone when it is to be held, and is signalled when what it left is swept up.
type dyingHost struct{ fakeHost }

func (dyingHost) Attach(process.Identity) (Process, error) { return nil, process.ErrGone }

func (dyingHost) Sweep(context.Context, string, process.Policy) (process.StopReport, error) {
	return process.StopReport{Signals: []process.Sent{{Signal: syscall.SIGTERM, PIDs: []int{17}}}}, nil
}

func TestLaunchThatLeavesBeforeThereIsAProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrLeave)
	if _, err := w.launcher.Launch(ctx, request(t, ready()), ignoreStage); !errors.Is(err, ErrLeave) {
		t.Errorf("Launch = %v, want ErrLeave", err)
	}
	w.audit(t)
	if starts := w.starts(t); len(starts) > 0 {
		t.Errorf("on record are %+v", starts)
	}
}

// An engine that has ended while it was to be left is cleared away by whoever has seen it.
func TestLaunchDoesNotLeaveTheDead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{readyAfter: time.Hour}
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		_, err := w.launcher(t).Launch(ctx, request(t, processtest.Script{}), func(Stage) {
			w.running.end(process.ExitStatus{Code: 4})
			cancel(ErrLeave)
		})
		wantReason(t, err, reason.WorkerStartFailed)
		if failed, ok := errors.AsType[*Error](err); !ok || failed.Exit == nil || failed.Exit.Code != 4 {
			t.Errorf("Launch = %v, want how it ended", err)
		}
		if len(w.records) > 0 || len(w.starts) != 1 || w.starts[0].Class != "ERROR" || w.starts[0].EndedBy != "" {
			t.Errorf("left are %+v, on record %+v", w.records, w.starts)
		}
	})
}
