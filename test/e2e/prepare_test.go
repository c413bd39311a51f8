// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// built is how often a project was compiled.
func built(t *testing.T, path string) int {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(text), "built")
}

// atGate tells of the log line that a project's build prints before it waits.
func atGate(reached chan<- struct{}) func(*provisionerv1.PrepareResponse) {
	return func(message *provisionerv1.PrepareResponse) {
		status := message.GetProgress().GetStatus()
		if status.GetStepId() == "engine/build" {
			select {
			case reached <- struct{}{}:
			default:
			}
		}
	}
}

// The same spec asked for twice at once is built once, and the second caller sees what was done before it came.
func TestPrepareTwiceBuildsOnce(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	project := harness.Project{BuiltLog: node.Path("built"), Gate: node.Path("gate")}
	spec := node.ProjectEngine(t, project)
	ended := make(chan harness.Prepared)
	prepare := func() chan struct{} {
		reached := make(chan struct{}, 1)
		go func() { ended <- node.Prepare(t.Context(), spec, atGate(reached)) }()
		return reached
	}
	harness.Await(t, "the build waits at its gate", prepare())
	harness.Await(t, "the build waits at its gate", prepare())
	if n := built(t, project.BuiltLog); n != 0 {
		t.Fatalf("the project was built %d times before its gate was opened", n)
	}
	writeFile(t, project.Gate)
	first, second := harness.Await(t, "the end of a Prepare", ended), harness.Await(t, "the end of a Prepare", ended)
	if first.Err != nil || second.Err != nil {
		t.Fatalf("Prepare: %v; %v", first.Err, second.Err)
	}
	if n := built(t, project.BuiltLog); n != 1 {
		t.Errorf("the project was built %d times, want once", n)
	}
	for _, prepared := range []harness.Prepared{first, second} {
		assertPercentRises(t, prepared)
		for _, step := range []string{"engine/extract", "engine/build", "engine/probe", "model/inspect"} {
			if got := prepared.Progress.Last[step]; got.GetState() != enginev1.StepState_STEP_STATE_DONE || got.GetCached() {
				t.Errorf("a caller saw step %s as %v, want it done in this call", step, got)
			}
		}
	}
	if first.Engine.GetPreparedId() != second.Engine.GetPreparedId() || first.Engine.GetEngine().GetVersion() != "42 (tiny)" {
		t.Errorf("prepared = %v and %v", first.Engine, second.Engine)
	}
	third := node.Prepare(t.Context(), spec, nil)
	if third.Err != nil || !third.Progress.Cached() {
		t.Errorf("third Prepare = %v, %v; want every step cached", third.Progress.Last, third.Err)
	}
}

// A build that nobody waits for any more is cancelled, leaves no process and nothing half made, and goes on later.
func TestBuildIsAbandoned(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{ProvisionerConfig: "cancel_grace: 10ms\n"})
	node.StartProvisioner(t)
	project := harness.Project{BuiltLog: node.Path("built"), Gate: node.Path("gate")}
	spec := node.ProjectEngine(t, project)
	reached := make(chan struct{}, 1)
	caller, leave := context.WithCancel(t.Context())
	ended := make(chan harness.Prepared)
	go func() { ended <- node.Prepare(caller, spec, atGate(reached)) }()
	harness.Await(t, "the build waits at its gate", reached)
	leave()
	harness.Await(t, "the end of the call", ended)
	testkit.Eventually(t, harness.Patience, "the tools of the build are gone", func() (bool, string) {
		left := node.Provisioner.Descendants()
		return len(left) == 0, left.String()
	})
	if prepared, err := node.Prepares.ListPrepared(t.Context(), &provisionerv1.ListPreparedRequest{}); err != nil || len(prepared.GetPrepared()) != 0 {
		t.Errorf("ListPrepared = %v, %v; want nothing", prepared, err)
	}
	writeFile(t, project.Gate)
	node.MustPrepare(t, spec)
	if n := built(t, project.BuiltLog); n != 1 {
		t.Errorf("the project was built %d times, want once", n)
	}
}

// The compiler's first complaint is in the error, and the next Prepare of a sound source is not held up by it.
func TestBuildFails(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	project := harness.Project{BuiltLog: node.Path("built"), Broken: true}
	load := node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: harness.Pool("broken", node.ProjectEngine(t, project))})
	harness.Want{Code: codes.Internal, Reason: reason.BuildFailed, Metadata: map[string]string{"first_error": ""}}.Check(t, load.Err)
	if e, _ := reason.As(load.Err); !strings.Contains(e.Metadata["first_error"], "no_such_thing") {
		t.Errorf("first_error = %q, want the compiler's", e.Metadata["first_error"])
	}
	if got := load.Progress.Last["engine/build"]; got.GetState() != enginev1.StepState_STEP_STATE_FAILED || got.GetError() == "" {
		t.Errorf("step = %v, want FAILED with its error", got)
	}
	if ids := node.PoolIDs(t); len(ids) != 0 {
		t.Errorf("pools = %v, want none: no engine was started", ids)
	}
	project.Broken = false
	node.MustPrepare(t, node.ProjectEngine(t, project))
}

// A model that is fetched for two callers is fetched once.
func TestFetchedOnce(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartProvisioner(t)
	files := harness.ServeFiles(t)
	release := files.Hold()
	spec := fetchedModel(t, node, files, "once.gguf")
	ended := make(chan harness.Prepared)
	joined := make(chan struct{}, 2)
	for range 2 {
		go func() {
			var once sync.Once // The step tells more than once how far it is.
			ended <- node.Prepare(t.Context(), spec, func(message *provisionerv1.PrepareResponse) {
				if message.GetProgress().GetStatus().GetStepId() == "model/fetch" {
					once.Do(func() { joined <- struct{}{} })
				}
			})
		}()
	}
	for range 2 {
		harness.Await(t, "a call sees the fetch", joined)
	}
	harness.Await(t, "the file is asked for", files.Asked)
	release()
	for range 2 {
		if prepared := harness.Await(t, "the end of the call", ended); prepared.Err != nil {
			t.Errorf("Prepare: %v", prepared.Err)
		}
	}
	if n := len(files.Asked); n != 0 {
		t.Errorf("the file was asked for %d more times, want none", n)
	}
}

// fetchedModel is the scripted engine with a model of some size from an address.
func fetchedModel(t *testing.T, node *harness.Node, files *harness.Files, name string) *enginev1.PrepareSpec {
	t.Helper()
	data := append(harness.TinyGGUF(name), make([]byte, 1<<20)...)
	spec := node.FakeEngine(t)
	spec.Model = &enginev1.ModelSpec{Uri: files.Add(name, data), Sha256: harness.SHA256(data)}
	return spec
}

// A Preload that is cancelled while its model is being fetched: the fetch ends too, and a later one goes on with it.
func TestPreloadIsCancelledWhilePreparing(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{ProvisionerConfig: "cancel_grace: 10ms\n"})
	files := harness.ServeFiles(t)
	release := files.Hold()
	spec := harness.Pool("brief", fetchedModel(t, node, files, "cut.gguf"))
	watcher := node.Watch(t)
	ended := make(chan error)
	go func() { ended <- node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}).Err }()
	harness.Await(t, "the file is asked for", files.Asked)
	cancelled := time.Now()
	if err := cancelPreload(t.Context(), node); err != nil {
		t.Errorf("CancelPreload: %v", err)
	}
	harness.Want{Code: codes.Canceled, Reason: reason.Cancelled}.Check(t, harness.Await(t, "the end of the call", ended))
	watcher.UntilDeleted(t, "brief")
	harness.Await(t, "the fetch is given up", files.Left)
	if took := time.Since(cancelled); took > 15*time.Second { // after 30 s it would be given up because nothing comes
		t.Errorf("the fetch was given up %v after the Preload was cancelled", took)
	}
	node.AssertNothingRuns(t)
	if ids := node.PoolIDs(t); len(ids) != 0 {
		t.Errorf("pools = %v, want none", ids)
	}
	release()
	node.MustPreload(t, spec)
}

// A provisioner that is killed in the middle of a build takes its tools with it; the next one goes on.
func TestProvisionerIsKilled(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	project := harness.Project{BuiltLog: node.Path("built"), Gate: node.Path("gate")}
	spec := node.ProjectEngine(t, project)
	reached := make(chan struct{}, 1)
	go func() { _ = node.Prepare(t.Context(), spec, atGate(reached)) }() // its connection ends with the provisioner
	harness.Await(t, "the build waits at its gate", reached)
	tools := node.Provisioner.Descendants()
	node.Provisioner.Kill()
	harness.Want{Code: codes.Unavailable, Reason: reason.ProvisionerUnavailable, Metadata: map[string]string{"target": node.ProvisionerAddress()}}.
		Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: harness.Pool("early", spec)}).Err)
	if ids := node.PoolIDs(t); len(ids) != 0 {
		t.Errorf("pools = %v, want none", ids)
	}
	harness.AwaitEnd(t, tools)
	writeFile(t, project.Gate)
	node.StartProvisioner(t)
	node.MustPrepare(t, spec)
	if n := built(t, project.BuiltLog); n != 1 {
		t.Errorf("the project was built %d times, want once", n)
	}
}
