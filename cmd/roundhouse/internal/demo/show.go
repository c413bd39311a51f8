// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/preflight"
	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// drainDeadline is how long requests in flight are waited for; the demo leaves none.
const drainDeadline = 10 * time.Second

// show is one run on its stage, told as it goes.
type show struct {
	*Demo

	stage  *stage
	report *Report
	watch  *watch

	mu       sync.Mutex      // guards progress, and the order of lines
	progress render.Progress // while bars are drawn; nil otherwise
}

// tell writes one line of the story; it goes above the bars while there are any.
func (s *show) tell(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	if s.progress != nil {
		s.progress.Note(text)
		return
	}
	_, _ = io.WriteString(s.config.Out, text+"\n") // a story that nobody hears is no failure
}

// play is the story up to the drained pool.
func (s *show) play(ctx context.Context) error {
	s.prologue()
	provisioner, err := s.openServices(ctx)
	if err != nil {
		return err
	}
	defer provisioner.close()
	if err := s.preflight(ctx, provisioner); err != nil {
		return err
	}
	s.watch = beginWatch(ctx, s.stage.pools.client, s.change)
	pool, err := s.preload(ctx)
	if err != nil {
		return err
	}
	if err := s.chat(ctx, pool); err != nil {
		return err
	}
	if err := s.drain(ctx); err != nil {
		return err
	}
	s.report.Changes = s.watch.changes()
	return nil
}

func (s *show) prologue() {
	engine := s.spec.GetEngine()
	from := engine.GetPackage().GetUri() + ", prebuilt, nothing is compiled"
	if build := engine.GetSourceBuild(); build != nil {
		from = build.GetBundle().GetUri() + ", compiled here: minutes at first, seconds after"
	}
	s.tell("Roundhouse demo: one engine, from nothing to a streamed answer and back to nothing.\n")
	s.tell("engine      %s from %s", engine.GetKind(), from)
	s.tell("model       %s from %s", s.spec.GetModel().GetId(), s.spec.GetModel().GetUri())
	s.tell("store       %s, kept for the next run", s.config.CacheDir)
	for _, path := range s.stage.swept {
		s.tell("removed     %s, which a killed demo had left", path)
	}
}

// openServices starts both daemons and returns when both answer.
func (s *show) openServices(ctx context.Context) (*provisionerClient, error) {
	began := time.Now()
	provisionerTarget := "unix://" + s.stage.path(provisionerProgram+".sock")
	poolTarget := "unix://" + s.stage.path(poolManagerProgram+".sock")
	var err error
	if s.stage.keeper, err = startKeeper(); err != nil {
		return nil, err
	}
	s.stage.provisioner, err = s.stage.start(provisionerProgram, s.daemons.provisioner,
		"--listen", provisionerTarget, "--state-dir", s.stage.store)
	if err != nil {
		return nil, err
	}
	s.stage.poolManager, err = s.stage.start(poolManagerProgram, s.daemons.poolManager,
		"--listen", poolTarget, "--state-dir", s.stage.path(stateName),
		"--provisioner", provisionerTarget, "--store-root", s.stage.store)
	if err != nil {
		return nil, err
	}
	provisioner, err := dialProvisioner(ctx, provisionerTarget, s.stage.provisioner)
	if err != nil {
		return nil, err
	}
	s.stage.pools, err = dialPools(ctx, poolTarget, s.stage.poolManager)
	if err != nil {
		provisioner.close()
		return nil, err
	}
	s.report.Timeline.Services = time.Since(began)
	s.tell("services    %s (pid %d) and %s (pid %d) answer after %s", provisionerProgram, s.stage.provisioner.process.Pid,
		poolManagerProgram, s.stage.poolManager.process.Pid, render.Duration(s.report.Timeline.Services))
	return provisioner, nil
}

// preflight asks what the machine has, and fails if the engine needs more.
func (s *show) preflight(ctx context.Context, provisioner *provisionerClient) error {
	report, err := provisioner.client.Preflight(ctx, &provisionerv1.PreflightRequest{})
	if err != nil {
		return fmt.Errorf("ask what this machine has: %w", err)
	}
	if err := preflight.Store(report.GetStore(), "give another folder with --cache DIR"); err != nil {
		return err
	}
	var found []string
	for _, tool := range report.GetTools() {
		if tool.GetPath() != "" {
			found = append(found, strings.TrimSpace(tool.GetName()+" "+tool.GetVersion()))
		}
	}
	s.tell("preflight   found %s; %s free", strings.Join(found, ", "), render.Bytes(report.GetStore().GetFreeBytes()))
	return s.checkTools(report)
}

// checkTools fails with every missing tool's remedy if the shown engine cannot be had on this machine.
func (s *show) checkTools(report *provisionerv1.PreflightResponse) error {
	engine := s.spec.GetEngine()
	mode := enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE
	if engine.GetSourceBuild() != nil {
		mode = enginev1.ProvisioningMode_PROVISIONING_MODE_SOURCE
	}
	for _, check := range report.GetEngines() {
		if check.GetKind() != engine.GetKind() || check.GetMode() != mode || check.GetAvailable() {
			continue
		}
		var remedies []string
		for _, tool := range report.GetTools() {
			if slices.Contains(check.GetMissingTools(), tool.GetName()) {
				s.tell("missing     %s (%s): %s", tool.GetName(), tool.GetNeededFor(), tool.GetRemedy())
				remedies = append(remedies, tool.GetRemedy())
			}
		}
		return reason.New(reason.ToolMissing, "this machine lacks "+strings.Join(check.GetMissingTools(), ", "),
			reason.Remedy(strings.Join(remedies, "; ")))
	}
	return nil
}

// preload makes the pool ready and times the way there.
func (s *show) preload(ctx context.Context) (*poolv1.Pool, error) {
	s.tell("")
	s.setProgress(render.NewProgress(render.ProgressConfig{Out: s.config.Out, Style: s.config.Style}))
	defer s.endProgress()
	stream, err := s.stage.pools.client.Preload(ctx, &poolv1.PreloadRequest{Spec: &poolv1.PoolSpec{
		PoolId: poolID, Workload: &poolv1.PoolSpec_Prepare{Prepare: s.spec},
	}})
	if err != nil {
		return nil, fmt.Errorf("preload: %w", err)
	}
	s.stage.pools.used = true
	clock := phaseClock{began: time.Now(), phases: map[poolv1.LoadPhase]time.Time{}}
	var pool *poolv1.Pool
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("preload: %w", err)
		}
		switch event := message.GetEvent().(type) {
		case *poolv1.PreloadResponse_Phase:
			clock.enter(event.Phase)
			s.progress.Phase(render.Phase(event.Phase))
		case *poolv1.PreloadResponse_Progress:
			s.progress.Event(event.Progress)
		case *poolv1.PreloadResponse_Pool:
			pool = event.Pool
		}
	}
	clock.ready = time.Now()
	clock.fill(&s.report.Timeline)
	return pool, s.checkReady(pool)
}

// checkReady takes from the pool what the report tells, and fails if the pool does not serve.
func (s *show) checkReady(pool *poolv1.Pool) error {
	replicas := pool.GetReplicas()
	if pool.GetState() != poolv1.PoolState_POOL_STATE_READY || len(replicas) == 0 || replicas[0].GetEndpoint() == "" {
		return reason.New(reason.Internal, "the preload ended well, but the pool is "+render.State(pool.GetState()),
			reason.Remedy("this is a defect of Roundhouse: please report it"))
	}
	s.report.PreparedID = pool.GetPreparedId()
	s.report.Engine = strings.TrimSpace(pool.GetEngine().GetKind() + " " + pool.GetEngine().GetVersion())
	s.report.Model = pool.GetModel().GetId()
	s.report.Endpoint = replicas[0].GetEndpoint()
	for _, replica := range replicas {
		endpoint, err := url.Parse(replica.GetEndpoint())
		if err != nil {
			return fmt.Errorf("read endpoint %q: %w", replica.GetEndpoint(), err)
		}
		s.stage.endpoints = append(s.stage.endpoints, endpoint.Host)
	}
	return nil
}

// chat asks the engine and prints what it says as it says it.
func (s *show) chat(ctx context.Context, pool *poolv1.Pool) error {
	if err := s.watch.wait(ctx, poolv1.PoolState_POOL_STATE_READY); err != nil {
		return err
	}
	replica := pool.GetReplicas()[0]
	s.tell("\nready       %s serves %s at %s (pid %d, %d slot)", s.report.Engine, s.report.Model, s.report.Endpoint,
		replica.GetPid(), replica.GetSlotsTotal())
	s.tell("ask         %s", s.config.Prompt)
	s.tell("            (the model has 135 million parameters: its words show that tokens stream, not what is true)\n")
	got, err := ask(ctx, s.report.Endpoint, s.report.Model, s.config.Prompt, func(token string) {
		_, _ = io.WriteString(s.config.Out, token) // as in tell
	})
	s.tell("\n")
	s.report.Answer, s.report.Tokens, s.report.TokensPerSecond = got.text, got.tokens, got.tokensPerSecond
	s.report.Timeline.FirstToken = got.firstToken
	return err
}

// drain stops the pool and fails unless it ended in order.
func (s *show) drain(ctx context.Context) error {
	began := time.Now()
	result, err := s.stage.pools.drain(ctx, durationpb.New(drainDeadline))
	if err != nil {
		return fmt.Errorf("drain: %w", err)
	}
	s.report.Timeline.Drain = time.Since(began)
	if err := s.watch.wait(ctx, poolv1.PoolState_POOL_STATE_STOPPED); err != nil {
		return err
	}
	s.tell("drain       %s", render.DrainResult(result))
	if result.GetForced() || result.GetKilled() || result.GetGaveUp() {
		return reason.New(reason.StopFailed, "the engine did not end by itself, though nothing was in flight",
			reason.Remedy("this is a defect of Roundhouse: please report it"))
	}
	return nil
}

// change tells of one change of the pool that the watcher saw.
func (s *show) change(text string) { s.tell("%-12s%s", "watch", text) }

func (s *show) setProgress(progress render.Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.progress = progress
}

func (s *show) endProgress() {
	s.progress.Close()
	s.setProgress(nil)
}

func (s *show) endWatch() {
	if s.watch != nil {
		s.watch.end()
	}
}

// epilogue is the timeline and the audit's words.
func (s *show) epilogue(err error, left leftovers) {
	if err == nil {
		s.tell("\ntimeline\n%s", s.report.table())
	}
	count := left.count()
	if left.err() == nil {
		s.tell("nothing left behind: %d processes, %d sockets, %d temp files", count.Processes, count.Sockets, count.TempFiles)
	}
}
