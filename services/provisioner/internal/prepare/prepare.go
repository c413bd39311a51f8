// SPDX-License-Identifier: Apache-2.0

// Package prepare carries plans out: it gets or builds engines, stages models, verifies both and records the result.
//
// The same spec asked for by many callers at once is worked on once, and so are an engine or a model that different specs
// share; everybody sees all progress, whenever they came. A caller that leaves takes nothing from the others; work that
// nobody waits for any more is cancelled after a grace, or at once by Cancel. What was finished stays in the store, and what
// was cut off, by a cancel or by the death of the process, is picked up where it was. Preparing what is there already changes
// nothing and takes a few milliseconds. No engine is ever started, but for short probes of its version and flags.
//
// A Service may be used by several goroutines at once, while Run runs. It stores everything in its store, and several
// processes may use one store.
package prepare

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/build"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/roots"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/source"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

const (
	// defaultGrace outlasts a client that reconnects.
	defaultGrace = 10 * time.Second
	// defaultMaxJobs is far more than one machine can work on; it bounds what a runaway client costs.
	defaultMaxJobs = 64
)

// Fetcher brings files into the store.
type Fetcher interface {
	Fetch(ctx context.Context, request fetch.Request, progress func(done, total int64)) (fetch.Result, error)
	Cached(request fetch.Request) (fetch.Result, bool)
}

// Sources resolves references and checks them out.
type Sources interface {
	ResolveCommit(ctx context.Context, origin source.Origin) (string, error)
	Checkout(ctx context.Context, origin source.Origin, commit, dir string, observer source.Observer) (source.Checkout, error)
}

// Builder builds from source.
type Builder interface {
	Build(ctx context.Context, recipe build.Recipe, observer build.Observer) (build.Result, error)
}

// Tools finds the programs of this machine.
type Tools interface {
	Require(ctx context.Context, names ...toolchain.Name) ([]toolchain.Tool, error)
	Identity(ctx context.Context) (string, error)
}

// Config is what a Service is made of. Fields are required unless they say otherwise.
type Config struct {
	Catalog *engines.Catalog
	Store   *store.Store
	Fetcher Fetcher
	Sources Sources
	Builder Builder
	Tools   Tools
	// Run runs a probe. Nil means runner.Run.
	Run func(context.Context, runner.Command) (runner.Result, error)
	// Roots are where files of this machine may be taken from. Empty means nowhere.
	Roots roots.Roots
	// Host is this machine.
	Host toolchain.Host
	// Grace is how long work goes on after the last caller left; 0 means 10 s.
	Grace time.Duration
	// MaxJobs is how many specs are worked on at once; 0 means 64. One more is LIMIT_EXCEEDED.
	MaxJobs int
	// Log gets what no caller is told. Nil means none.
	Log *zap.Logger
}

// Service prepares. Make it with New.
type Service struct {
	cfg     Config
	planner plan.Planner
	facts   *facts
	tasks   chan func(context.Context)
	stopped chan struct{}

	jobs    *flights[*enginev1.PreparedEngine]
	engines *flights[engine]
	models  *flights[*enginev1.PreparedModel]
}

// New returns a Service that does nothing before Run.
func New(cfg Config) (*Service, error) {
	if cfg.Catalog == nil || cfg.Store == nil || cfg.Fetcher == nil || cfg.Sources == nil || cfg.Builder == nil || cfg.Tools == nil {
		return nil, errors.New("make preparer: a part is missing")
	}
	if cfg.Run == nil {
		cfg.Run = runner.Run
	}
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	if cfg.MaxJobs == 0 {
		cfg.MaxJobs = defaultMaxJobs
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Service{cfg: cfg, tasks: make(chan func(context.Context)), stopped: make(chan struct{})}
	s.facts = newFacts(cfg)
	s.planner = plan.Planner{
		Catalog: cfg.Catalog, Facts: s.facts, Roots: cfg.Roots, Platform: cfg.Host.Arch, Processor: cfg.Host.CPUFingerprint,
	}
	s.jobs = newFlights[*enginev1.PreparedEngine](s.start, cfg.Grace, cfg.MaxJobs)
	// The work that jobs share has no grace of its own: its jobs had theirs.
	s.engines = newFlights[engine](s.start, 0, 0)
	s.models = newFlights[*enginev1.PreparedModel](s.start, 0, 0)
	return s, nil
}

// Plan returns the plan of spec. It changes nothing, and uses neither network nor programs.
func (s *Service) Plan(spec *enginev1.PrepareSpec) (*plan.Plan, error) { return s.planner.Plan(spec) }

// Prepare returns the prepared engine of spec for consumer, who may be nil. It blocks until it is there, the work has failed
// or ctx ends; send gets all progress, from its beginning, one event at a time, and a send that fails is a caller that has
// left. Repeating it is safe. Every error but the end of ctx and that of send has a reason.
func (s *Service) Prepare(ctx context.Context, spec *enginev1.PrepareSpec, consumer *enginev1.Consumer, send func(*enginev1.Progress) error) (*enginev1.PreparedEngine, error) {
	planned, err := s.planner.Plan(spec)
	if err != nil {
		return nil, err
	}
	ctx, dismiss := context.WithCancelCause(ctx)
	defer dismiss(nil)
	who := &guest{dismiss: dismiss}
	if who.name, err = callerName(spec, consumer); err != nil {
		return nil, err
	}
	flight, err := s.jobs.join(ctx, planned.Key, who, func(ctx context.Context, t *track) (*enginev1.PreparedEngine, error) {
		return s.prepare(ctx, planned, t)
	})
	if err != nil {
		return nil, err
	}
	defer s.jobs.leave(flight, who)
	return flight.follow(ctx, send)
}

// Cancel ends every Prepare of the same spec and consumer, just as they were given to it, with CANCELLED, and the work that
// only they waited for, which includes work that goes on in the grace since the last of them left. It returns when none of
// that runs any more, or ctx ends; what it began goes on then. It is false if there was nothing to cancel.
func (s *Service) Cancel(ctx context.Context, spec *enginev1.PrepareSpec, consumer *enginev1.Consumer) (bool, error) {
	name, err := callerName(spec, consumer)
	if err != nil || name == "" {
		return false, err
	}
	found, ended := s.jobs.withdraw(name)
	for _, end := range ended {
		select {
		case <-end:
		case <-ctx.Done():
			return true, fmt.Errorf("wait for cancelled work to end: %w", context.Cause(ctx))
		}
	}
	return found, nil
}

// callerName is equal for callers that cannot be told apart, and empty for one that does not say who it is.
func callerName(spec *enginev1.PrepareSpec, consumer *enginev1.Consumer) (string, error) {
	if proto.Size(consumer) == 0 {
		return "", nil
	}
	what, err := messageKey(spec)
	if err != nil {
		return "", err
	}
	who, err := messageKey(consumer)
	return what + " " + who, err
}

// prepare is one job: the engine and the model at once, then the record.
func (s *Service) prepare(ctx context.Context, planned *plan.Plan, t *track) (*enginev1.PreparedEngine, error) {
	engineKey, err := messageKey(planned.Spec.GetEngine())
	if err != nil {
		return nil, err
	}
	modelKey := planned.Spec.GetModel().GetUri() + " " + planned.Spec.GetModel().GetSha256()
	var made engine
	var staged *enginev1.PreparedModel
	err = both(ctx, func(ctx context.Context) (err error) {
		made, err = through(ctx, s.engines, engineKey, t, func(ctx context.Context, t *track) (engine, error) {
			return s.engine(ctx, planned, t)
		})
		if err == nil {
			_, err = engines.CheckFlags(planned.Spec.GetLaunch().GetFlags(), planned.Kind.Traits().Owned, made.probe.Flags)
		}
		return err
	}, func(ctx context.Context) (err error) {
		staged, err = through(ctx, s.models, modelKey, t, func(ctx context.Context, t *track) (*enginev1.PreparedModel, error) {
			return s.model(ctx, planned, t)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.record(ctx, planned, made, staged, t)
}

// through joins a flight that jobs share, forwards its progress into t, and returns its result. If ctx ends and no other job
// waits for the flight, it returns after the flight has ended.
func through[T any](ctx context.Context, shared *flights[T], key string, t *track, work func(context.Context, *track) (T, error)) (T, error) {
	who := &guest{}
	flight, err := shared.join(ctx, key, who, work)
	if err != nil {
		var none T
		return none, err
	}
	defer func() {
		shared.leave(flight, who)
		shared.landed(flight)
	}()
	return flight.follow(ctx, func(event *enginev1.Progress) error {
		t.hub.Publish(event)
		return nil
	})
}

// messageKey is equal for equal messages.
func messageKey(m proto.Message) (string, error) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// follow sends all progress of the flight and returns its result when it has ended.
func (f *flight[T]) follow(ctx context.Context, send func(*enginev1.Progress) error) (T, error) {
	var none T
	reader := f.track.hub.Reader()
	for {
		events, err := reader.Next(ctx)
		if errors.Is(err, io.EOF) {
			return f.result(ctx)
		}
		if err != nil {
			return none, fmt.Errorf("wait for the work: %w", err)
		}
		for _, event := range events {
			if err := send(event); err != nil {
				return none, fmt.Errorf("send progress: %w", err)
			}
		}
	}
}
