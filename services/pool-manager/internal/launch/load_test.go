// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
)

const modelBytes = 1 << 30

// loads is an engine that has its model in memory after so long, evenly.
func loads(lasts time.Duration) func(time.Duration) process.Vitals {
	return func(since time.Duration) process.Vitals {
		part := float64(min(since, lasts)) / float64(lasts)
		return process.Vitals{RSS: uint64(part * modelBytes), IOBytes: uint64(part * modelBytes)}
	}
}

func TestALoadIsTold(t *testing.T) {
	t.Parallel()
	const lasts = 100 * time.Second
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{vitals: loads(lasts), readyAfter: lasts}
		r := request(t, processtest.Script{})
		r.Prepared.Contract.StartupTimeout = durationpb.New(time.Hour)
		r.ExpectedLoad = 2 * lasts
		var told []registry.LoadProgress
		e, err := w.launcher(t).Launch(t.Context(), r, func(s Stage) {
			if (s.Loading != nil) != (s.Phase == registry.PhaseLoading) || s.PID != 17 {
				t.Errorf("stage is %+v", s)
			}
			if s.Loading != nil {
				told = append(told, *s.Loading)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if first := told[0]; first != (registry.LoadProgress{TotalBytes: modelBytes, Remaining: 2 * lasts}) {
			t.Errorf("first told is %+v", first)
		}
		if n := len(told); n < 90 || n > 110 {
			t.Errorf("told %d times, want once a second, or a hundredth", n)
		}
		for i, p := range told[1:] {
			if p.LoadedBytes < told[i].LoadedBytes || p.TotalBytes != modelBytes || p.Remaining >= told[i].Remaining || !p.StillSince.IsZero() {
				t.Errorf("told %+v after %+v", p, told[i])
			}
		}
		if e.Info().LoadTime != lasts {
			t.Errorf("it took %v, want %v", e.Info().LoadTime, lasts)
		}
		if _, err := e.Stop(t.Context(), Ending{}); err != nil {
			t.Error(err)
		}
	})
}

func TestALoadThatStandsStillIsToldAndEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{vitals: loads(10 * time.Second), readyAfter: time.Hour}
		r := request(t, processtest.Script{})
		r.LoadStallLimit, r.StartupTimeout = 30*time.Second, time.Hour
		var still time.Time
		began := time.Now()
		_, err := w.launcher(t).Launch(t.Context(), r, func(s Stage) { still = s.Loading.StillSince })
		wantReason(t, err, reason.WorkerStartTimeout)
		if failed, ok := reason.As(err); !ok || len(failed.Fields) != 1 || failed.Fields[0].Name != "spec.health.load_stall_limit" {
			t.Errorf("%v does not name the field", err)
		}
		if took := time.Since(began); took < 40*time.Second || took > 42*time.Second {
			t.Errorf("ended after %v, want the limit after it stood still", took)
		}
		if since := still.Sub(began); since < 9*time.Second || since > 11*time.Second {
			t.Errorf("told that it stands still since %v", since)
		}
		if len(w.starts) != 1 || w.starts[0].Class != "STALLED" || w.starts[0].EndedBy != byStall || len(w.records) > 0 {
			t.Errorf("on record are %+v, left %+v", w.starts, w.records)
		}
	})
}

// Longer than any stall limit, and nothing of it but the cap on all can end it.
func TestALoadThatMovesIsNotEndedBeforeItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{vitals: loads(30 * time.Minute), readyAfter: 29 * time.Minute}
		r := request(t, processtest.Script{})
		r.StartupTimeout = 30 * time.Minute
		e, err := w.launcher(t).Launch(t.Context(), r, ignoreStage)
		if err != nil {
			t.Fatal(err)
		}
		e.Release()
	})
}

// A real process that serves its page of readiness and does nothing else. It is asked all the time, which moves it a bit.
func TestAnEngineThatOnlyAnswersIsStalled(t *testing.T) {
	t.Parallel()
	for _, listens := range []bool{true, false} {
		s := ready()
		s.ReadyAfter = processtest.Lasts
		if !listens {
			s.Listen = ""
		}
		w, r := newWorld(t), request(t, s)
		r.LoadStallLimit, r.StartupTimeout = 2*time.Second, time.Minute
		a := w.fail(t.Context(), t, r, ignoreStage)
		wantReason(t, a.err, reason.WorkerStartTimeout)
		a.wantField(t, "spec.health.load_stall_limit")
		a.wantMeta(t, map[string]string{"load_stall_limit": "2s"})
		if exit := a.exit(t); exit.Class != enginev1.ExitClass_EXIT_CLASS_STALLED {
			t.Errorf("exit is %+v, want STALLED", exit)
		}
		if start := w.onlyStart(t); start.Class != "STALLED" || start.EndedBy != byStall {
			t.Errorf("on record is %+v", start)
		}
	}
}

func TestSieveHoldsATrickleBack(t *testing.T) {
	t.Parallel()
	var s sieve
	at := time.Unix(1000, 0)
	first := s.pass(process.Vitals{At: at, IOBytes: 1 << 30, Faults: 2000, RSS: 1 << 30, CPU: time.Second})
	cpu := time.Second
	for _, step := range []struct {
		name  string
		now   process.Vitals
		moved bool
	}{
		{"questions", process.Vitals{IOBytes: 60 << 10, Faults: 60, RSS: 900 << 10}, false},
		{"more of them", process.Vitals{IOBytes: 120 << 10, Faults: 120, RSS: 100 << 10}, false},
		{"reading", process.Vitals{IOBytes: 400 << 10, Faults: 120, RSS: 100 << 10}, true},
		{"questions again", process.Vitals{IOBytes: 410 << 10, Faults: 120, RSS: 100 << 10}, false},
		{"processor time of questions", process.Vitals{IOBytes: 410 << 10, Faults: 120, RSS: 100 << 10, CPU: 90 * time.Millisecond}, false},
		{"processor time", process.Vitals{IOBytes: 410 << 10, Faults: 120, RSS: 100 << 10, CPU: 200 * time.Millisecond}, true},
		{"faults", process.Vitals{IOBytes: 410 << 10, Faults: 2000, RSS: 100 << 10}, true},
		{"memory", process.Vitals{IOBytes: 410 << 10, Faults: 2000, RSS: 2 << 20}, true},
		{"given back", process.Vitals{IOBytes: 410 << 10, Faults: 2000, RSS: 0}, true},
	} {
		at = at.Add(time.Second)
		step.now.At = at
		step.now.IOBytes += 1 << 30
		step.now.Faults += 1000
		step.now.RSS += 1 << 30
		step.now.CPU = max(cpu, step.now.CPU+time.Second)
		cpu = step.now.CPU
		got := s.pass(step.now)
		moved := got.IOBytes != first.IOBytes || got.Faults != first.Faults || got.RSS != first.RSS || got.CPU != first.CPU
		if moved != step.moved {
			t.Errorf("%s: moved is %v, want %v", step.name, moved, step.moved)
		}
		first = got
	}
}

func TestExitClasses(t *testing.T) {
	t.Parallel()
	oom := []*enginev1.ExitPattern{{Contains: "out of memory", Class: enginev1.ExitClass_EXIT_CLASS_OOM_DEVICE}}
	for _, tt := range []struct {
		name     string
		exit     process.ExitStatus
		patterns []*enginev1.ExitPattern
		want     string
		signal   string
	}{
		{"a code", process.ExitStatus{Code: 3}, nil, "ERROR", ""},
		{"a signal", process.ExitStatus{Code: process.CodeUnknown, Signal: syscall.SIGSEGV}, nil, "SIGNAL", "SIGSEGV"},
		{"no memory on the machine", process.ExitStatus{Code: process.CodeUnknown, Signal: syscall.SIGKILL, OOMKilled: true}, oom, "OOM_HOST", "SIGKILL"},
		{"no memory on a device", process.ExitStatus{Code: 1}, oom, "OOM_DEVICE", ""},
		{"nobody knows", process.ExitStatus{Code: process.CodeUnknown}, nil, "UNKNOWN", ""},
		{"nobody knows but its last words", process.ExitStatus{Code: process.CodeUnknown}, oom, "OOM_DEVICE", ""},
		{"code 0", process.ExitStatus{}, oom, "UNASKED", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWorld{readyAfter: time.Second, exit: &tt.exit}
				r := request(t, processtest.Script{})
				r.Prepared.Contract.ExitPatterns = tt.patterns
				_, err := w.launcher(t).Launch(t.Context(), r, ignoreStage)
				wantReason(t, err, reason.WorkerStartFailed)
				if len(w.starts) != 1 || w.starts[0].Class != tt.want || w.starts[0].Signal != tt.signal || w.starts[0].Code < 0 || w.starts[0].Uptime != time.Second {
					t.Errorf("on record are %+v, want %s", w.starts, tt.want)
				}
			})
		})
	}
}

// An engine's connections break a moment before its end is seen: the end is what is told, and nobody asked for it.
func TestEngineThatDiesWhileItIsAsked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{readyAfter: time.Second, dying: 10 * time.Millisecond}
		_, err := w.launcher(t).Launch(t.Context(), request(t, processtest.Script{}), ignoreStage)
		wantReason(t, err, reason.WorkerStartFailed)
		if len(w.starts) != 1 || w.starts[0].Class != "SIGNAL" || w.starts[0].Signal != "SIGKILL" {
			t.Errorf("on record are %+v, want SIGKILL", w.starts)
		}
	})
}

// Nobody waits for the disk before an engine may be used; but what is on its way there is awaited before the record goes.
func TestReadyIsSavedBehindItsBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := &fakeWorld{readyAfter: time.Second, saves: make(chan struct{})}
		l, r := w.launcher(t), request(t, processtest.Script{})
		e, err := l.Launch(t.Context(), r, ignoreStage)
		if err != nil {
			t.Fatal(err)
		}
		stopped := make(chan error, 1)
		go func() {
			_, err := e.Stop(t.Context(), Ending{})
			stopped <- err
		}()
		synctest.Wait()
		select {
		case err := <-stopped:
			t.Errorf("Stop returned %v before the record was saved", err)
		default:
		}
		w.saves <- struct{}{}
		if err := <-stopped; err != nil {
			t.Error(err)
		}
		if len(w.records) > 0 {
			t.Errorf("left are %+v", w.records)
		}
	})
}

// The time of a load counts from its start, not from its adoption, and an engine has some seconds in any case.
func TestAdoptedLoadsHaveTheirTime(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		began time.Duration // before now.
		want  time.Duration
	}{
		{"in its time", 10 * time.Minute, 20 * time.Minute},
		{"at its end", 30*time.Minute - time.Second, adoptLimit},
		{"long after", 1000 * time.Hour, adoptLimit},
		{"a clock that was set back", -time.Hour, 30 * time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := &fakeWorld{vitals: loads(time.Hour), readyAfter: 10000 * time.Hour}
				l, r := w.launcher(t), request(t, processtest.Script{})
				r.StartupTimeout = 30 * time.Minute
				running, err := fakeHost{w}.Spawn(process.Command{Nonce: "n"})
				if err != nil {
					t.Fatal(err)
				}
				now := time.Now()
				if err := w.Save(state.Record{PoolID: "p", Generation: 1, Phase: state.Started, Identity: running.Identity(), StartedAt: now.Add(-tt.began)}); err != nil {
					t.Fatal(err)
				}
				found, err := l.Leftovers(t.Context())
				if err != nil || len(found.Engines) != 1 {
					t.Fatalf("Leftovers = %+v, %v", found, err)
				}
				if _, err := l.Adopt(t.Context(), found.Engines[0], r, ignoreStage); err == nil {
					t.Error("Adopt succeeded")
				}
				if took := time.Since(now); took != tt.want {
					t.Errorf("it was ended after %v, want %v", took, tt.want)
				}
			})
		})
	}
}
