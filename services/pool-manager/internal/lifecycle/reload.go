// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/launch"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// ReloadOptions say how a pool is reloaded.
type ReloadOptions struct {
	// Proof is what new engines must prove; without a prompt nothing more than in any start.
	Proof launch.Proof
	// AcceptOutage ends the old engines first.
	AcceptOutage bool
	// DrainDeadline is how long the old engines' requests are waited for.
	DrainDeadline time.Duration
	// DryRun only says what would be done.
	DryRun bool
}

// ReloadAction is what a reload does.
type ReloadAction int

// The actions, as roundhouse.pool.v1.ReloadAction describes them.
const (
	ReloadNone ReloadAction = iota + 1
	ReloadLive
	MakeBeforeBreak
	BreakBeforeMake
)

func (a ReloadAction) String() string {
	return [...]string{"unspecified", "none", "live", "make_before_break", "break_before_make"}[a]
}

// ReloadEvent is what a caller of Reload is told on the way: a phase, the provisioner's progress, or the old engines' drain.
type ReloadEvent struct {
	Phase    registry.ReloadPhase
	Progress *enginev1.Progress
	Draining *DrainProgress
}

// ReloadResult is how a reload ended.
type ReloadResult struct {
	Action        ReloadAction
	RestartFields []string
	LiveFields    []string
	Outage        time.Duration
	RequestsCut   int
	Duration      time.Duration
	Pool          *registry.Pool
}

// reload is one reload under way.
type reload struct {
	target  made
	options ReloadOptions
	cancel  context.CancelCauseFunc

	// Guarded by the pool's lock: where it stands, and the replicas that are to take over.
	phase      registry.ReloadPhase
	candidates []*replica

	events *eventLog[ReloadEvent]
	// undone is closed when it is no operation of its pool any more: when it is undone, or the new engines serve. done is
	// closed when result and err are set.
	undone chan struct{}
	done   chan struct{}
	result ReloadResult
	err    error
}

func (l *reload) statusLocked() *registry.ReloadStatus {
	status := &registry.ReloadStatus{Phase: l.phase}
	for _, r := range l.candidates {
		status.Candidates = append(status.Candidates, r.view)
	}
	return status
}

// Reload makes a pool be what spec says without an interruption, or says why it is what it was. Fields that need no other
// engines are changed alone. If ctx ends the call returns and the reload goes on.
func (p *Pools) Reload(ctx context.Context, spec registry.Spec, options ReloadOptions, emit func(ReloadEvent) error) (ReloadResult, error) {
	p.mu.Lock()
	pool, closing := p.pools[spec.ID], p.closing
	p.mu.Unlock()
	switch {
	case closing:
		return ReloadResult{}, cancelError(errClosing, spec.ID)
	case pool == nil:
		return ReloadResult{}, notFound(spec.ID)
	}
	work, result, err := pool.beginReload(spec, options)
	if work == nil {
		return result, err
	}
	if err := work.events.follow(ctx, work.done, emit); err != nil {
		return ReloadResult{}, err
	}
	return work.result, work.err
}

// beginReload finds what there is to do and starts it; without anything to do it returns no reload.
func (p *pool) beginReload(spec registry.Spec, options ReloadOptions) (*reload, ReloadResult, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.reloadableLocked(); err != nil {
		return nil, ReloadResult{}, err
	}
	result := ReloadResult{Pool: p.snapshotLocked()}
	result.RestartFields, result.LiveFields = differences(p.spec, spec)
	onlyScale := slices.Equal(result.RestartFields, []string{"replicas"})
	switch {
	case len(result.RestartFields) == 0 && len(result.LiveFields) == 0:
		result.Action = ReloadNone
	case len(result.RestartFields) == 0:
		result.Action = ReloadLive
	case options.AcceptOutage && !onlyScale:
		result.Action = BreakBeforeMake
	case spec.Port != 0 && spec.Port == p.spec.Port:
		return nil, ReloadResult{}, reason.New(reason.OutageNotAccepted,
			fmt.Sprintf("pool %s keeps port %d, which old and new engines cannot have at once", p.id, spec.Port),
			reason.Field("accept_outage"), reason.Meta("port", fmt.Sprint(spec.Port)),
			reason.Remedy("leave the port at 0 or give another one, or accept the outage"))
	default:
		result.Action = MakeBeforeBreak
	}
	if options.DryRun || result.Action == ReloadNone {
		return nil, result, nil
	}
	work, cancel := context.WithCancelCause(p.pools.base)
	l := &reload{
		target:  made{spec: spec, edition: p.edition + 1, wanted: true},
		options: options, cancel: cancel, phase: registry.ReloadPreparing, result: result,
		events: newEventLog[ReloadEvent](), undone: make(chan struct{}), done: make(chan struct{}),
	}
	if onlyScale || result.Action == ReloadLive {
		l.target.edition, l.target.prepared = p.edition, p.prepared
	}
	p.reloading = l
	p.publishLocked()
	p.pools.work.Go(func() {
		defer cancel(nil)
		p.reload(work, l)
	})
	return l, result, nil
}

// reloadableLocked returns why a pool cannot be reloaded now.
func (p *pool) reloadableLocked() error {
	switch {
	case p.gone:
		return notFound(p.id)
	case p.draining != nil:
		return p.beingDrained()
	case p.loading != nil:
		return p.busy("is being loaded", "wait for it, or cancel it", time.Second)
	case p.reloading != nil:
		return p.busy("is being reloaded", "wait for it, or cancel it", time.Second)
	case !p.wanted:
		return reason.New(reason.PoolUnready, fmt.Sprintf("pool %s is %s: there is nothing to reload", p.id, p.state),
			reason.Meta("pool_id", string(p.id)), reason.Remedy("preload it"))
	}
	return nil
}

// enter tells everybody that a phase began.
func (p *pool) enter(l *reload, phase registry.ReloadPhase) {
	l.events.add(ReloadEvent{Phase: phase})
	p.update(func() { l.phase = phase })
}

// reload runs one reload from its begin to its end.
func (p *pool) reload(ctx context.Context, l *reload) {
	began := p.pools.config.Now()
	err := p.replace(ctx, l)
	if err != nil && ctx.Err() != nil && reason.Of(err) != reason.StopFailed {
		err = cancelError(context.Cause(ctx), p.id)
	}
	if err != nil { // Whatever had been made of it is gone; nobody is to see its end before that.
		p.update(func() {
			if p.reloading == l { // Else the new engines have taken over, and old ones could not be stopped.
				p.reloading = nil
				p.fillLocked()
			}
		})
	}
	l.result.Pool, l.result.Duration = p.current(), p.pools.config.Now().Sub(began)
	l.err = err
	close(l.done)
	if err != nil && !isClosed(l.undone) {
		close(l.undone)
	}
	p.pools.config.Observer.ReloadEnded(reason.Of(err), l.result.Action.String(), l.result.Duration)
	p.pools.log.Info("reload ended", zap.String("pool_id", string(p.id)), zap.Stringer("reason", reason.Of(err)),
		zap.Stringer("action", l.result.Action), zap.Duration("outage", l.result.Outage), zap.Int("requests_cut", l.result.RequestsCut),
		zap.Duration("duration", l.result.Duration), zap.Error(err))
}

func isClosed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// replace returns nil when the new engines serve and nothing of the old ones is left, or why the old ones serve on.
func (p *pool) replace(ctx context.Context, l *reload) error {
	if l.result.Action == ReloadLive {
		_, err := p.switchOver(l, nil)
		return err
	}
	l.events.add(ReloadEvent{Phase: registry.ReloadPreparing})
	if l.target.prepared == nil {
		prepared, err := p.pools.prepare(ctx, l.target.spec, func(event *enginev1.Progress) {
			l.events.add(ReloadEvent{Progress: event})
		})
		if err != nil {
			return err
		}
		l.target.prepared = prepared
	}
	failpoint.Hit(failpoint.ReloadPrepared)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var stoppedAt time.Time
	if l.result.Action == BreakBeforeMake {
		stoppedAt = p.pools.config.Now()
		if err := p.stopOld(ctx, l); err != nil {
			return p.rollBack(l, err, stoppedAt)
		}
		failpoint.Hit(failpoint.ReloadOldStopped)
	}
	old, err := p.makeNew(ctx, l)
	if err != nil && l.result.Action == BreakBeforeMake {
		return p.rollBack(l, err, stoppedAt)
	}
	if err != nil {
		return err
	}
	if !stoppedAt.IsZero() {
		l.result.Outage = p.pools.config.Now().Sub(stoppedAt)
	}
	return p.retire(l, old)
}

// makeNew starts the new engines, has them prove themselves, and makes them the pool's. It returns the replicas that they have
// replaced, or why nothing of the new ones is left.
func (p *pool) makeNew(ctx context.Context, l *reload) ([]*replica, error) {
	p.enter(l, registry.ReloadStarting)
	candidates := p.addCandidates(l)
	bound := bind(ctx, candidates)
	err := awaitReady(candidates)
	failpoint.Hit(failpoint.ReloadStarted)
	if err == nil && l.options.Proof.Prompt != "" {
		p.enter(l, registry.ReloadProving)
		err = proveAll(ctx, candidates, l.options.Proof)
		failpoint.Hit(failpoint.ReloadProven)
	}
	if !bound() && err == nil {
		err = context.Cause(ctx)
	}
	var old []*replica
	if err == nil {
		old, err = p.switchOver(l, candidates)
	}
	if err != nil {
		err = undo(candidates, err)
		for _, r := range candidates {
			if !isClosed(r.gone) { // It could not be stopped: what is to be in its place waits until it is gone.
				p.pools.setAside(r)
			}
		}
		p.update(func() { l.candidates = nil })
		return nil, err
	}
	return old, nil
}

// addCandidates starts a replica for each place of the target that the crew does not fill as it should.
func (p *pool) addCandidates(l *reload) []*replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	for index := range l.target.spec.Replicas {
		if _, there := p.crew[index]; there && l.target.edition == p.edition {
			continue
		}
		r := p.newReplica(index, l.target, "reload")
		r.quiet = true
		l.candidates = append(l.candidates, r)
		p.pools.work.Go(r.run)
	}
	p.publishLocked()
	return slices.Clone(l.candidates)
}

// proveAll returns nil when every engine has passed the proof.
func proveAll(ctx context.Context, replicas []*replica, proof launch.Proof) error {
	failed := make(chan error, len(replicas))
	for _, r := range replicas {
		go func() {
			engine := r.serving()
			if engine == nil {
				failed <- reason.New(reason.WorkerStartFailed, fmt.Sprintf("the new engine of replica %s has ended", r.pool.id.Replica(r.index)),
					reason.Remedy("see the starts of the pool"))
				return
			}
			failed <- engine.Prove(ctx, proof)
		}()
	}
	var err error
	for range replicas {
		if failure := <-failed; err == nil {
			err = failure
		}
	}
	return err
}

// switchOver makes it durable that the new engines are the pool's, and then makes them so for everybody in one change. On error
// nothing has changed.
func (p *pool) switchOver(l *reload, candidates []*replica) ([]*replica, error) {
	p.mu.Lock()
	for _, r := range candidates {
		if r.view.State != registry.ReplicaReady {
			failure := p.exited(r.view)
			p.mu.Unlock()
			return nil, reason.New(reason.WorkerStartFailed, failure.Message, reason.Remedy("see the starts of the pool"))
		}
	}
	before, durable := p.made, p.keeper.durable
	views := make([]registry.Replica, l.target.spec.Replicas)
	copy(views, p.views)
	p.made = made{spec: l.target.spec, prepared: l.target.prepared, edition: l.target.edition, wanted: true, views: views}
	saved := p.commitLocked()
	p.made = before // It counts when it is on disk.
	p.mu.Unlock()
	if err := <-saved; err != nil {
		p.mu.Lock()
		p.keeper.durable = durable
		p.saveLocked()
		p.mu.Unlock()
		return nil, err
	}

	failpoint.Hit(failpoint.ReloadCommitted)
	p.mu.Lock()
	replaced := p.takeOverLocked(l, candidates, views)
	p.mu.Unlock()
	failpoint.Hit(failpoint.ReloadSwitched)
	for _, r := range candidates {
		if engine := r.serving(); engine != nil {
			if err := engine.Offer(); err != nil {
				p.pools.log.Warn("handoff was not written", r.fields(zap.Error(err))...)
			}
		}
	}
	failpoint.Hit(failpoint.ReloadOffered)
	close(l.undone)
	return replaced, nil
}

// takeOverLocked makes the candidates the crew, and has the replicas retire that they replace, which it returns.
func (p *pool) takeOverLocked(l *reload, candidates []*replica, views []registry.Replica) []*replica {
	p.made = made{spec: l.target.spec, prepared: l.target.prepared, edition: l.target.edition, wanted: true, views: views}
	var old []*replica
	for index, r := range p.crew {
		replaced := slices.ContainsFunc(candidates, func(c *replica) bool { return c.index == index })
		if !replaced && index < len(views) {
			continue
		}
		r.supervised = false
		if r.view.State == registry.ReplicaReady {
			r.view.State = registry.ReplicaDraining
		}
		if r.engine == nil { // It has no request to end, and is not to be started any more.
			r.halt(errReplaced)
		}
		old = append(old, r)
		p.retiring = append(p.retiring, r)
		delete(p.crew, index)
	}
	for _, r := range candidates {
		r.supervised, r.quiet = true, false
		p.crew[r.index] = r
		views[r.index] = r.view
	}
	p.reloading = nil
	p.publishLocked()
	return old
}

// retire drains replicas that have been replaced and ends them.
func (p *pool) retire(l *reload, old []*replica) error {
	l.events.add(ReloadEvent{Phase: registry.ReloadDrainingOld})
	for _, r := range old {
		if engine := r.serving(); engine != nil && r.index >= l.target.spec.Replicas {
			if err := engine.Withdraw(); err != nil {
				p.pools.log.Warn("handoff was not withdrawn", r.fields(zap.Error(err))...)
			}
		}
	}
	grace := min(switchGrace, l.options.DrainDeadline)
	select {
	case <-time.After(grace):
	case <-p.pools.ending:
	}
	counts := l.drain(p.pools.base, old, l.options.DrainDeadline-grace)
	failpoint.Hit(failpoint.ReloadDrained)
	l.result.RequestsCut += total(counts)
	err := shutAll(old, "reload", counts, errReplaced)
	failpoint.Hit(failpoint.ReloadRetired)
	return err
}

// switchGrace is how long engines that have been replaced serve on at least, if their deadline allows: who has read the old
// endpoint a moment ago is still to send its request, and the engine does not know of it.
const switchGrace = time.Second

var errReplaced = errors.New("it was replaced by a reload")

// drain waits until replicas have no request in flight, at most so long, and returns their last counts.
func (l *reload) drain(ctx context.Context, replicas []*replica, limit time.Duration) map[*replica]count {
	deadline := time.Now().Add(limit)
	waiting, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	counts, _ := awaitIdle(waiting, func() []*replica { return replicas }, func(counts map[*replica]count) {
		l.events.add(ReloadEvent{Draining: &DrainProgress{
			InFlight: total(counts), Known: allKnown(counts), Remaining: max(time.Until(deadline), 0),
		}})
	})
	return counts
}

// stopOld drains the old engines and ends them, for an outage that was accepted.
func (p *pool) stopOld(ctx context.Context, l *reload) error {
	p.enter(l, registry.ReloadStoppingOld)
	p.withdraw()
	p.mu.Lock()
	old := p.crewLocked()
	p.mu.Unlock()
	counts := l.drain(p.pools.base, old, l.options.DrainDeadline)
	l.result.RequestsCut += total(counts)
	if err := shutAll(old, "reload", counts, errReplaced); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// rollBack starts the old engines again, waits until they serve or have failed, and returns why with how that went.
func (p *pool) rollBack(l *reload, cause error, stoppedAt time.Time) error {
	p.enter(l, registry.ReloadRollingBack)
	failpoint.Hit(failpoint.ReloadRollingBack)
	var replicas []*replica
	p.update(func() {
		for index := range p.views {
			if left, ok := p.crew[index]; ok { // It could not be stopped.
				p.pools.work.Go(func() { p.refill(left) })
				continue
			}
			r := p.newReplica(index, p.made, "rollback")
			r.supervised = true
			p.hireLocked(r)
			replicas = append(replicas, r)
		}
	})
	var failed error
	for _, r := range replicas {
		<-r.tried
		failed = errors.Join(failed, r.tryErr)
	}
	l.result.Outage = p.pools.config.Now().Sub(stoppedAt)
	if failed != nil {
		return fmt.Errorf("%w; the old engines do not serve either, and are tried again: %w", cause, failed)
	}
	return fmt.Errorf("rolled back after an outage of %s: %w", l.result.Outage.Round(time.Millisecond), cause)
}

// refill waits until a replica is gone that could not be stopped for a reload, and has its place filled again.
func (p *pool) refill(left *replica) {
	select {
	case <-left.gone:
		p.update(p.fillLocked)
	case <-p.pools.ending:
	}
}

// fillLocked hires replicas for the places of a pool that is to serve which nobody fills, but for those that were given up. While
// an operation works on the pool it does nothing; what ends one calls it.
func (p *pool) fillLocked() {
	if !p.wanted || p.gone || p.leaving || p.loading != nil || p.draining != nil || p.reloading != nil {
		return
	}
	for index := range p.views {
		if _, filled := p.crew[index]; filled || p.tracks[index].GaveUp {
			continue
		}
		r := p.newReplica(index, p.made, "rollback")
		r.supervised = true
		p.hireLocked(r)
	}
}

// CancelReload cancels the reload of a pool and returns when the old engines serve alone. It says whether there was one to
// cancel.
func (p *Pools) CancelReload(ctx context.Context, id registry.PoolID) (bool, error) {
	pool := p.pool(id)
	if pool == nil {
		return false, notFound(id)
	}
	pool.mu.Lock()
	work := pool.reloading
	pool.mu.Unlock()
	if work == nil {
		return false, nil
	}
	work.cancel(errCancelled)
	if err := await(ctx, work.undone); err != nil {
		return false, err
	}
	select {
	case <-work.done:
		if reason.Of(work.err) == reason.StopFailed {
			return false, work.err
		}
		return work.err != nil, nil
	default: // The new engines had taken over.
		return false, nil
	}
}

// eventLog keeps what callers are to be told, for those too who come later.
type eventLog[E any] struct {
	mu      sync.Mutex // mu guards what follows.
	events  []E
	changed chan struct{}
}

func newEventLog[E any]() *eventLog[E] { return &eventLog[E]{changed: make(chan struct{})} }

func (l *eventLog[E]) add(event E) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event)
	close(l.changed)
	l.changed = make(chan struct{})
}

// follow tells emit every event until done is closed and all are told. If emit fails or ctx ends it returns that.
func (l *eventLog[E]) follow(ctx context.Context, done <-chan struct{}, emit func(E) error) error {
	told := 0
	for ended := false; ; {
		l.mu.Lock()
		fresh, changed := l.events[told:], l.changed
		l.mu.Unlock()
		for _, event := range fresh {
			if err := emit(event); err != nil {
				return err
			}
		}
		told += len(fresh)
		if ended {
			return nil
		}
		select {
		case <-changed:
		case <-done:
			ended = true
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
