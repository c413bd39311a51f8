// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// outcome is what one Prepare came to.
type outcome struct {
	prepared *enginev1.PreparedEngine
	events   []*enginev1.Progress
	err      error
}

// begin runs Prepare beside the test and returns when it has said something.
func (f *fixture) begin(ctx context.Context, t *testing.T, spec *enginev1.PrepareSpec) <-chan outcome {
	t.Helper()
	return f.beginFor(ctx, t, spec, nil)
}

func (f *fixture) beginFor(ctx context.Context, t *testing.T, spec *enginev1.PrepareSpec, consumer *enginev1.Consumer) <-chan outcome {
	t.Helper()
	result, said := make(chan outcome, 1), make(chan struct{})
	go func() {
		var o outcome
		o.prepared, o.err = f.Prepare(ctx, spec, consumer, func(event *enginev1.Progress) error {
			if o.events = append(o.events, event); len(o.events) == 1 {
				close(said)
			}
			return nil
		})
		if len(o.events) == 0 {
			close(said)
		}
		result <- o
	}()
	<-said
	return result
}

func TestPrepareTwiceAtOnceRunsOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.hold = make(chan struct{})
	first := f.begin(t.Context(), t, f.externalSpec(modelRef))
	second := f.begin(t.Context(), t, f.externalSpec(modelRef))
	close(f.fetcher.hold)
	a, b := <-first, <-second
	if a.err != nil || b.err != nil {
		t.Fatalf("Prepare: %v and %v", a.err, b.err)
	}
	if a.prepared.GetPreparedId() != b.prepared.GetPreparedId() {
		t.Errorf("ids %s and %s", a.prepared.GetPreparedId(), b.prepared.GetPreparedId())
	}
	if n := f.fetcher.models(); n != 1 {
		t.Errorf("the model was fetched %d times", n)
	}
	for name, o := range map[string]outcome{"first": a, "second": b} {
		steps := ended(o.events)
		for _, id := range []string{plan.EngineProbe, plan.ModelFetch, plan.ModelInspect, plan.Record} {
			if steps[id].GetState() != enginev1.StepState_STEP_STATE_DONE {
				t.Errorf("%s caller: step %s is %v", name, id, steps[id])
			}
		}
	}
}

func TestPrepareAgainDoesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	first, _, err := f.do(t.Context(), f.externalSpec(modelRef, "--threads", "2"))
	if err != nil {
		t.Fatal(err)
	}
	probes := f.probes
	again, events, err := f.do(t.Context(), f.externalSpec(modelRef, "--threads", "2"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, again, protocmp.Transform()); diff != "" {
		t.Errorf("the second answer differs (-first +second):\n%s", diff)
	}
	if n := f.fetcher.models(); n != 1 || f.probes != probes {
		t.Errorf("%d fetches and %d probes, want nothing new", n, f.probes-probes)
	}
	planned, err := f.Plan(f.externalSpec(modelRef, "--threads", "2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range planned.Steps {
		if got := ended(events)[step.ID]; !got.GetCached() || got.GetName() != step.Name {
			t.Errorf("step %s was not cached: %v", step.ID, got)
		}
		if !step.Cached {
			t.Errorf("step %s is not cached in the plan", step.ID)
		}
	}
}

func TestSpecsShareAModel(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.hold = make(chan struct{})
	first := f.begin(t.Context(), t, f.externalSpec(modelRef))
	second := f.begin(t.Context(), t, f.externalSpec(modelRef, "-t", "1"))
	close(f.fetcher.hold)
	a, b := <-first, <-second
	if a.err != nil || b.err != nil {
		t.Fatalf("Prepare: %v and %v", a.err, b.err)
	}
	if a.prepared.GetPreparedId() == b.prepared.GetPreparedId() {
		t.Error("two specs have one id")
	}
	if n := f.fetcher.models(); n != 1 {
		t.Errorf("the model was fetched %d times", n)
	}
	if ended(b.events)[plan.ModelFetch].GetState() != enginev1.StepState_STEP_STATE_DONE {
		t.Error("the second caller did not see the fetch")
	}
}

func TestACallerThatLeavesTakesNothingFromOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.hold = make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	first := f.begin(ctx, t, f.externalSpec(modelRef))
	second := f.begin(t.Context(), t, f.externalSpec(modelRef))
	leave()
	if o := <-first; !errors.Is(o.err, context.Canceled) {
		t.Errorf("the caller that left: %v", o.err)
	}
	close(f.fetcher.hold)
	if o := <-second; o.err != nil {
		t.Errorf("the caller that stayed: %v", o.err)
	}
}

func TestASendThatFailsIsACallerThatLeft(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	gone := errors.New("gone")
	if _, err := f.Prepare(t.Context(), f.externalSpec(modelRef), nil, func(*enginev1.Progress) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("Prepare: %v, want %v", err, gone)
	}
}

func TestWorkWithoutCallersIsCancelled(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(c *Config) { c.Grace = time.Millisecond })
	f.fetcher.hold = make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	first := f.begin(ctx, t, f.externalSpec(modelRef))
	leave()
	<-first
	testkit.Eventually(t, 10*time.Second, "no work is left", func() (bool, string) {
		f.jobs.mu.Lock()
		defer f.jobs.mu.Unlock()
		f.models.mu.Lock()
		defer f.models.mu.Unlock()
		return len(f.jobs.flying)+len(f.models.flying) == 0, "still working"
	})
	f.fetcher.mu.Lock()
	f.fetcher.hold = nil
	f.fetcher.mu.Unlock()
	if _, _, err := f.do(t.Context(), f.externalSpec(modelRef)); err != nil {
		t.Errorf("asked again: %v", err)
	}
	if n := f.fetcher.models(); n != 2 {
		t.Errorf("%d fetches, want the one that was cut off and another", n)
	}
}

func TestShutdownCutsWorkOff(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.hold, f.fetcher.begun = make(chan struct{}), make(chan struct{}, 1)
	first := f.begin(t.Context(), t, f.externalSpec(modelRef))
	<-f.fetcher.begun
	f.stop()
	o := <-first
	if reason.Of(o.err) != reason.ShuttingDown {
		t.Errorf("work that was cut off: %v, want SHUTTING_DOWN", o.err)
	}
	if step := ended(o.events)[plan.ModelFetch]; step.GetState() != enginev1.StepState_STEP_STATE_CANCELLED {
		t.Errorf("the step that was cut off: %v, want cancelled", step)
	}
	if _, _, err := f.do(t.Context(), f.externalSpec(otherRef)); reason.Of(err) != reason.ShuttingDown {
		t.Errorf("work that comes later: %v, want SHUTTING_DOWN", err)
	}
}

func TestFailuresAreTyped(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*fixture) *enginev1.PrepareSpec
		want   reason.Reason
		field  string
		failed string
	}{
		{name: "no such model", change: func(f *fixture) *enginev1.PrepareSpec { return f.externalSpec("npm:models@1.0.0/gone.gguf") },
			want: reason.ModelNotFound, field: "spec.model.uri", failed: plan.ModelFetch},
		{name: "not a model", change: func(f *fixture) *enginev1.PrepareSpec { return f.externalSpec(brokenRef) },
			want: reason.InvalidParams, field: "spec.model.uri", failed: plan.ModelInspect},
		{name: "an unknown flag", change: func(f *fixture) *enginev1.PrepareSpec { return f.externalSpec(modelRef, "--thread", "1") },
			want: reason.InvalidParams, field: "spec.launch.flags[0]"},
		{name: "the engine does not run", change: func(f *fixture) *enginev1.PrepareSpec {
			f.probeErr = errors.New("signal illegal instruction")
			return f.externalSpec(modelRef)
		}, want: reason.EngineNotFound, field: "spec.engine", failed: plan.EngineProbe},
		{name: "another engine", change: func(f *fixture) *enginev1.PrepareSpec {
			spec := f.externalSpec(modelRef)
			spec.GetEngine().GetExternal().Sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
			return spec
		}, want: reason.DigestMismatch, field: "spec.engine.external.sha256", failed: plan.EngineProbe},
		{name: "a tool is missing", change: func(f *fixture) *enginev1.PrepareSpec {
			f.tools.lose(toolchain.Ninja)
			return sourceSpec("v1")
		}, want: reason.ToolMissing, field: "spec.engine.source_build", failed: plan.EngineCheckout},
		{name: "a repository that is not there", change: func(f *fixture) *enginev1.PrepareSpec {
			f.sources.err = reason.New(reason.FetchFailed, "no network", reason.Field("engine.source_build.git.url"), reason.Remedy("mend it"))
			return sourceSpec("v1")
		}, want: reason.FetchFailed, field: "spec.engine.source_build.git.url", failed: plan.EngineCheckout},
		{name: "a build that fails", change: func(f *fixture) *enginev1.PrepareSpec {
			f.builder.err = reason.New(reason.BuildFailed, "it does not compile", reason.Remedy("mend it"))
			return sourceSpec("v1")
		}, want: reason.BuildFailed, field: "spec.engine.source_build", failed: plan.EngineBuild},
		{name: "a build without a result", change: func(f *fixture) *enginev1.PrepareSpec {
			f.builder.output = "bin/another"
			return sourceSpec("v1")
		}, want: reason.BuildFailed, field: "spec.engine.source_build", failed: plan.EngineBuild},
		{name: "a folder as engine", change: func(f *fixture) *enginev1.PrepareSpec {
			spec := f.externalSpec(modelRef)
			spec.GetEngine().GetExternal().Path = f.root
			return spec
		}, want: reason.InvalidParams, field: "spec.engine.external.path", failed: plan.EngineProbe},
		{name: "an engine that is not executable", change: func(f *fixture) *enginev1.PrepareSpec {
			spec := f.externalSpec(modelRef)
			spec.GetEngine().GetExternal().Path = f.fetcher.files[modelRef]
			return spec
		}, want: reason.InvalidParams, field: "spec.engine.external.path", failed: plan.EngineProbe},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			prepared, events, err := f.do(t.Context(), tt.change(f))
			found, ok := reason.As(err)
			if !ok || found.Reason != tt.want {
				t.Fatalf("Prepare = %v, %v, want %v", prepared, err, tt.want)
			}
			if len(found.Fields) != 1 || found.Fields[0].Name != tt.field || found.Remedy == "" {
				t.Errorf("%v (fields %v), want field %s and a remedy", err, found.Fields, tt.field)
			}
			if step := ended(events)[tt.failed]; tt.failed != "" && (step.GetState() != enginev1.StepState_STEP_STATE_FAILED || step.GetError() == "") {
				t.Errorf("step %s: %v, want failed", tt.failed, step)
			}
			for id, step := range ended(events) {
				if step.GetState() == enginev1.StepState_STEP_STATE_RUNNING {
					t.Errorf("step %s was left running", id)
				}
				if step.GetState() == enginev1.StepState_STEP_STATE_FAILED && id != tt.failed {
					t.Errorf("step %s failed because of another: %s", id, step.GetError())
				}
			}
			if page, _, err := f.List(t.Context(), 0, ""); err != nil || len(page) != 0 {
				t.Errorf("a failure left %d records, %v", len(page), err)
			}
		})
	}
}

func TestWhatAFailureCutsOffIsCancelled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.hold = make(chan struct{})
	f.fetcher.begun = make(chan struct{}, 1)
	f.builder.after = f.fetcher.begun // so that there is something to cut off
	f.builder.err = reason.New(reason.BuildFailed, "it does not compile")
	_, events, err := f.do(t.Context(), sourceSpec("v1"))
	if reason.Of(err) != reason.BuildFailed {
		t.Fatalf("Prepare: %v, want BUILD_FAILED", err)
	}
	steps := ended(events)
	if step := steps[plan.ModelFetch]; step.GetState() != enginev1.StepState_STEP_STATE_CANCELLED || step.GetError() != "" {
		t.Errorf("the model's step: %v, want cancelled", step)
	}
	if step := steps[plan.EngineBuild]; step.GetState() != enginev1.StepState_STEP_STATE_FAILED || !strings.Contains(step.GetError(), "does not compile") {
		t.Errorf("the build's step: %v, want failed with its error", step)
	}
}

func TestAFailureCanBeRepeated(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.err = reason.New(reason.FetchFailed, "no network")
	if _, _, err := f.do(t.Context(), f.externalSpec(modelRef)); reason.Of(err) != reason.FetchFailed {
		t.Fatalf("Prepare: %v, want FETCH_FAILED", err)
	}
	f.fetcher.err = nil
	if _, _, err := f.do(t.Context(), f.externalSpec(modelRef)); err != nil {
		t.Errorf("Prepare again: %v", err)
	}
}

func TestMaxJobs(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(c *Config) { c.MaxJobs = 1 })
	f.fetcher.hold = make(chan struct{})
	first := f.begin(t.Context(), t, f.externalSpec(modelRef))
	if _, _, err := f.do(t.Context(), f.externalSpec(otherRef)); reason.Of(err) != reason.LimitExceeded {
		t.Errorf("one spec too many: %v, want LIMIT_EXCEEDED", err)
	}
	close(f.fetcher.hold)
	if o := <-first; o.err != nil {
		t.Error(o.err)
	}
}
