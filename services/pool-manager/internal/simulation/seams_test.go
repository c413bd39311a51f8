// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/lifecycle"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/trust"
)

// questionLimit is how long one question to an engine may take, as in package probe.
const questionLimit = time.Second

// machine makes a Launcher what lifecycle asks for.
type machine struct{ *launch.Launcher }

func (m machine) Launch(ctx context.Context, request launch.Request, stage func(launch.Stage)) (lifecycle.Engine, error) {
	return engineOf(m.Launcher.Launch(ctx, request, stage))
}

func (m machine) Adopt(ctx context.Context, leftover launch.Leftover, request launch.Request, stage func(launch.Stage)) (lifecycle.Engine, error) {
	return engineOf(m.Launcher.Adopt(ctx, leftover, request, stage))
}

func engineOf(engine *launch.Engine, err error) (lifecycle.Engine, error) {
	if engine == nil {
		return nil, err
	}
	return engine, err
}

// prober asks the engines of the world.
type prober struct{ by *manager }

func (p prober) Ready(ctx context.Context, wait probe.Wait) (probe.Result, error) {
	held, ok := wait.Engine.(*hold)
	if !ok {
		return probe.Result{}, fmt.Errorf("%T is no process of this world", wait.Engine)
	}
	s, w, began := held.start, p.by.world, time.Now()
	for asked := 1; ; asked++ {
		w.mu.Lock()
		ended, ready, thief := held.over, s.ready && !s.mute, wait.Port != 0 && w.thieves[wait.Port]
		port, changed, exit := s.port, s.changed, held.exit
		w.mu.Unlock()
		switch {
		case ended && thief:
			return probe.Result{}, reason.New(reason.PortInUse, "the port is held by a thief", reason.Cause(&probe.ExitedError{Exit: exit}))
		case ended:
			return probe.Result{}, reason.New(reason.WorkerStartFailed, "wait for engine", reason.Cause(&probe.ExitedError{Exit: exit}))
		case ready:
			if err := p.by.enter(ctx, "ready %s", s.name()); err != nil {
				return probe.Result{}, fmt.Errorf("wait for engine: %w", err)
			}
			return probe.Result{Endpoint: endpointOf(port), Took: time.Since(began), Asked: asked}, nil
		}
		select {
		case <-changed:
		case <-p.by.died:
			return probe.Result{}, errCrashed
		case <-ctx.Done():
			if ctx.Err() == context.DeadlineExceeded {
				return probe.Result{Asked: asked}, reason.New(reason.WorkerStartTimeout, "engine did not get ready")
			}
			return probe.Result{Asked: asked}, fmt.Errorf("wait for engine: %w", context.Cause(ctx))
		}
	}
}

// ask returns the start that answers at an address.
func (p prober) ask(ctx context.Context, what string, at netip.AddrPort) (*start, error) {
	ctx, cancel := context.WithTimeout(ctx, questionLimit)
	defer cancel()
	if err := p.by.enter(ctx, "%s %d", what, at.Port()); err != nil {
		return nil, err
	}
	w := p.by.world
	w.mu.Lock()
	s := w.ports[at.Port()]
	mute := s != nil && s.mute
	w.mu.Unlock()
	switch {
	case s == nil:
		return nil, fmt.Errorf("ask %s: connection refused", at)
	case mute:
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("ask %s: no answer", at)
		case <-p.by.died:
			return nil, errCrashed
		}
	}
	return s, nil
}

func (p prober) Identify(ctx context.Context, at netip.AddrPort, field probe.Field, want string) error {
	s, err := p.ask(ctx, "identify", at)
	if err != nil {
		return err
	}
	p.by.world.mu.Lock()
	defer p.by.world.mu.Unlock()
	if s.model != want {
		return &probe.MismatchError{Field: field, Want: want, Got: s.model}
	}
	return nil
}

func (p prober) Count(ctx context.Context, at netip.AddrPort, _ probe.Field) (int, error) {
	_, err := p.ask(ctx, "count", at)
	return 4, err
}

func (p prober) Activity(ctx context.Context, at netip.AddrPort, _ probe.Activity) (probe.Load, error) {
	s, err := p.ask(ctx, "activity", at)
	if err != nil {
		return probe.Load{}, err
	}
	p.by.world.mu.Lock()
	defer p.by.world.mu.Unlock()
	s.workLocked()
	return probe.Load{InFlight: s.requests, Counters: s.tokens, HasCounters: true}, nil
}

func (p prober) Complete(ctx context.Context, at netip.AddrPort, _ probe.Completion, _ string, maxTokens int) (probe.Answer, error) {
	s, err := p.ask(ctx, "complete", at)
	if err != nil {
		return probe.Answer{}, err
	}
	w := p.by.world
	took := 300 * time.Millisecond
	answered := time.NewTimer(took)
	defer answered.Stop()
	for {
		w.mu.Lock()
		hung, alive, changed := s.hung, s.alive, s.changed
		w.mu.Unlock()
		if !alive {
			return probe.Answer{}, fmt.Errorf("ask %s: connection reset", at)
		}
		over := answered.C
		if hung {
			over = nil
		}
		select {
		case <-over:
			w.mu.Lock()
			s.tokens += float64(maxTokens)
			s.computed += took
			text := "golden words"
			if s.how.wrongWords {
				text = "other words"
			}
			w.mu.Unlock()
			return probe.Answer{Text: text, Tokens: maxTokens, Took: took}, nil
		case <-changed:
		case <-p.by.died:
			return probe.Answer{}, errCrashed
		case <-ctx.Done():
			return probe.Answer{}, context.Cause(ctx)
		}
	}
}

// records is the state directory, each use of which is a call into the world.
type records struct {
	*state.Store
	by *manager
}

// use lets one use of the store happen.
func (r records) use(what string, use func() error) error {
	if err := r.by.enter(r.by.life, "%s", what); err != nil {
		return nil //nolint:nilerr // Of a manager that has died nothing more is written, and its goroutines are to end.
	}
	err := use()
	if r.by.isDead() {
		return nil
	}
	return err
}

func (r records) Save(record state.Record) error {
	return r.use(fmt.Sprintf("save %s-%d g%d %s", record.PoolID, record.Replica, record.Generation, record.Phase),
		func() error { return r.Store.Save(record) })
}

func (r records) Remove(key state.Key) error {
	return r.use(fmt.Sprintf("remove %s-%d g%d", key.PoolID, key.Replica, key.Generation), func() error { return r.Store.Remove(key) })
}

func (r records) Load() (loaded state.Loaded, err error) {
	err = r.use("load", func() error { loaded, err = r.Store.Load(); return err })
	return loaded, err
}

func (r records) SaveStart(record state.StartRecord) error {
	return r.use(fmt.Sprintf("save start %s-%d g%d %s", record.PoolID, record.Replica, record.Generation, record.Class),
		func() error { return r.Store.SaveStart(record) })
}

func (r records) Starts(pool string) (starts []state.StartRecord, err error) {
	err = r.use("starts "+pool, func() error { starts, err = r.Store.Starts(pool); return err })
	return starts, err
}

func (r records) Generations(pool string) (highest map[int]uint64, err error) {
	err = r.use("generations "+pool, func() error { highest, err = r.Store.Generations(pool); return err })
	return highest, err
}

func (r records) SavePool(record state.PoolRecord) error {
	return r.use(fmt.Sprintf("save pool %s %v %s", record.PoolID, record.Wanted, record.Reason), func() error { return r.Store.SavePool(record) })
}

func (r records) RemovePool(id string) error {
	return r.use("remove pool "+id, func() error { return r.Store.RemovePool(id) })
}

func (r records) LoadPools() (loaded state.LoadedPools, err error) {
	err = r.use("load pools", func() error { loaded, err = r.Store.LoadPools(); return err })
	return loaded, err
}

func (r records) RemoveStarts(pool string) error {
	return r.use("remove starts "+pool, func() error { return r.Store.RemoveStarts(pool) })
}

// files are the handoff files.
type files struct{ by *manager }

func (f files) Publish(entry handoff.Entry) (string, error) {
	if err := f.by.enter(f.by.life, "publish %s", entry.ReplicaID); err != nil {
		return "", nil // As in records.use.
	}
	f.by.world.mu.Lock()
	defer f.by.world.mu.Unlock()
	if f.by.world.disk.full {
		return "", reason.New(reason.DiskFull, "write handoff file")
	}
	f.by.world.handoffs[entry.ReplicaID] = entry
	return "/handoff/" + entry.ReplicaID, nil
}

func (f files) Withdraw(replica string) error {
	if err := f.by.enter(f.by.life, "withdraw %s", replica); err != nil {
		return nil // As in records.use.
	}
	f.by.world.mu.Lock()
	defer f.by.world.mu.Unlock()
	delete(f.by.world.handoffs, replica)
	return nil
}

func (f files) Keep(wanted func(handoff.Entry) bool) error {
	if err := f.by.enter(f.by.life, "keep handoff files"); err != nil {
		return nil // As in records.use.
	}
	f.by.world.mu.Lock()
	defer f.by.world.mu.Unlock()
	for _, replica := range slices.Sorted(maps.Keys(f.by.world.handoffs)) {
		if !wanted(f.by.world.handoffs[replica]) {
			delete(f.by.world.handoffs, replica)
		}
	}
	return nil
}

// verifier finds every file to be what was prepared, unless a fault says otherwise.
type verifier struct{ by *manager }

func (v verifier) Check(context.Context, trust.File) error {
	if v.by.isDead() {
		return errCrashed
	}
	return nil
}

// logs are the logs of engines.
type logs struct{ by *manager }

func (l logs) Begin(pool registry.PoolID, index int, generation uint64) (string, error) {
	l.by.world.mu.Lock()
	defer l.by.world.mu.Unlock()
	if l.by.world.disk.full && !l.by.dead {
		return "", reason.New(reason.DiskFull, "make the folder for logs")
	}
	if !l.by.dead {
		l.by.world.logs[pool] = true
	}
	return fmt.Sprintf("/logs/%s/%d-%d.log", pool, index, generation), nil
}

func (l logs) Remove(string) error                         { return nil }
func (l logs) Settle(string, int, func(string) bool) error { return nil }

func (l logs) Pools() ([]registry.PoolID, error) {
	l.by.world.mu.Lock()
	defer l.by.world.mu.Unlock()
	return slices.Sorted(maps.Keys(l.by.world.logs)), nil
}

func (l logs) RemovePool(pool registry.PoolID) error {
	if err := l.by.enter(l.by.life, "remove logs %s", pool); err != nil {
		return nil // As in records.use.
	}
	l.by.world.mu.Lock()
	defer l.by.world.mu.Unlock()
	delete(l.by.world.logs, pool)
	return nil
}

func (l logs) Tail(path string, _ int) ([]string, error) {
	l.by.world.mu.Lock()
	defer l.by.world.mu.Unlock()
	for _, s := range slices.Backward(l.by.world.starts) {
		if s.command.LogPath == path && s.lastLine != "" {
			return []string{s.lastLine}, nil
		}
	}
	return nil, nil
}

func (l logs) Size(string) (int64, error)                                 { return 0, nil }
func (l logs) Follow(ctx context.Context, _ string, _ func(string)) error { return ended(ctx) }
func (l logs) Keep(ctx context.Context, _ string) error                   { return ended(ctx) }

func ended(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// preparer is the provisioner.
type preparer struct{ by *manager }

func (p preparer) Prepare(
	ctx context.Context, spec *enginev1.PrepareSpec, pool registry.PoolID, _ func(*enginev1.Progress),
) (*enginev1.PreparedEngine, error) {
	if err := p.by.enter(ctx, "prepare %s", pool); err != nil {
		return nil, err
	}
	w := p.by.world
	w.mu.Lock()
	fails, takes := w.faults.prepareFails, time.Duration(w.nature.IntN(int(3*time.Second)))
	if w.faults.prepareSlow {
		takes += time.Minute
	}
	w.mu.Unlock()
	if fails {
		return nil, reason.New(reason.ProvisionerUnavailable, "the provisioner does not answer")
	}
	timer := time.NewTimer(takes)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.by.died:
		return nil, errCrashed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := p.by.enter(ctx, "prepared %s", pool); err != nil {
		return nil, err
	}
	return prepared(spec), nil
}

func (p preparer) Prepared(context.Context, string) (*enginev1.PreparedEngine, error) {
	return nil, reason.New(reason.PreparedNotFound, "nothing was prepared before")
}

// prepared is an engine of this world that serves the model of the spec.
func prepared(spec *enginev1.PrepareSpec) *enginev1.PreparedEngine {
	model := spec.GetModel().GetId()
	literal := func(text string) *enginev1.Argument {
		return &enginev1.Argument{Value: &enginev1.Argument_Literal{Literal: text}}
	}
	return &enginev1.PreparedEngine{
		PreparedId: "prepared-" + model, Spec: spec,
		Engine: &enginev1.EngineIdentity{Kind: "some", Version: "1", Mode: enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE},
		Model:  &enginev1.PreparedModel{Id: model, Files: []*enginev1.ModelFile{{Path: "/models/" + model, SizeBytes: 1 << 30}}},
		Process: &enginev1.ProcessLaunch{
			Executable: "/engines/some", Files: []*enginev1.ExecutedFile{{Path: "/engines/some"}},
			Args: []*enginev1.Argument{
				literal("--model"), literal(model), literal("--port"),
				{Value: &enginev1.Argument_Placeholder{Placeholder: enginev1.Placeholder_PLACEHOLDER_PORT}},
			},
		},
		Contract: &enginev1.RunContract{
			Ready:      &enginev1.HttpProbe{Path: "/health", Status: 200},
			Identity:   &enginev1.IdentityCheck{Field: &enginev1.JsonField{Path: "/models", Field: "id"}, Expected: model},
			Slots:      &enginev1.JsonField{Path: "/props", Field: "slots"},
			Activity:   &enginev1.ActivitySource{Path: "/metrics", Gauges: []string{"running"}, Counters: []string{"tokens"}},
			Completion: &enginev1.Completion{Path: "/completion", PromptField: "prompt", TextField: "content"},
			Stop: []*enginev1.StopStep{
				{Signal: "SIGTERM", Wait: durationpb.New(5 * time.Second)}, {Signal: "SIGTERM", Wait: durationpb.New(2 * time.Second)},
			},
			StartupTimeout: durationpb.New(5 * time.Minute),
			ExitPatterns: []*enginev1.ExitPattern{
				{Contains: "out of memory", Class: enginev1.ExitClass_EXIT_CLASS_OOM_DEVICE},
				{Contains: "illegal instruction", Class: enginev1.ExitClass_EXIT_CLASS_GPU_FAULT},
				{Contains: "invalid argument", Class: enginev1.ExitClass_EXIT_CLASS_CONFIG},
			},
		},
	}
}
