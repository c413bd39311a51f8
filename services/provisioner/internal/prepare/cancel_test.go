// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/build"
)

// slowBuilder builds until it is cut off, and then takes its time, as compilers do that have to be killed.
type slowBuilder struct {
	begun, ending, ended chan struct{}
}

func newSlowBuilder() *slowBuilder {
	return &slowBuilder{begun: make(chan struct{}), ending: make(chan struct{}), ended: make(chan struct{})}
}

func (b *slowBuilder) Build(ctx context.Context, _ build.Recipe, _ build.Observer) (build.Result, error) {
	defer close(b.ended)
	close(b.begun)
	<-ctx.Done()
	<-b.ending
	return build.Result{}, context.Cause(ctx)
}

func consumer(pool string) *enginev1.Consumer { return &enginev1.Consumer{PoolId: pool} }

func TestCancelReturnsWhenNothingRuns(t *testing.T) {
	t.Parallel()
	builder := newSlowBuilder()
	f := newFixture(t, func(c *Config) { c.Builder, c.Grace = builder, time.Hour })
	running := f.beginFor(t.Context(), t, sourceSpec("v1"), consumer("a"))
	<-builder.begun
	for _, other := range []struct {
		spec *enginev1.PrepareSpec
		who  *enginev1.Consumer
	}{{sourceSpec("v1"), consumer("b")}, {sourceSpec("v2"), consumer("a")}, {sourceSpec("v1"), &enginev1.Consumer{PoolId: "a", RequestId: "1"}}, {sourceSpec("v1"), nil}} {
		if cancelled, err := f.Cancel(t.Context(), other.spec, other.who); cancelled || err != nil {
			t.Errorf("Cancel for %v = %t, %v, want nothing", other.who, cancelled, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if cancelled, err := f.Cancel(ctx, sourceSpec("v1"), consumer("a")); !cancelled || !errors.Is(err, context.Canceled) {
		t.Errorf("Cancel = %t, %v while the build still ends, want the end of its context", cancelled, err)
	}
	if o := <-running; reason.Of(o.err) != reason.Cancelled {
		t.Errorf("Prepare: %v, want CANCELLED", o.err)
	}
	again := make(chan error, 1)
	go func() {
		_, err := f.Cancel(t.Context(), sourceSpec("v1"), consumer("a"))
		select {
		case <-builder.ended:
		default:
			t.Error("Cancel returned while the build ran")
		}
		again <- err
	}()
	close(builder.ending)
	if err := <-again; err != nil {
		t.Errorf("Cancel again: %v", err)
	}
	if cancelled, err := f.Cancel(t.Context(), sourceSpec("v1"), consumer("a")); cancelled || err != nil {
		t.Errorf("Cancel when nothing is left = %t, %v", cancelled, err)
	}
}

func TestCancelAfterTheCallerHasGone(t *testing.T) {
	t.Parallel()
	f := newFixture(t, func(c *Config) { c.Grace = time.Hour })
	f.fetcher.hold = make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	running := f.beginFor(ctx, t, f.externalSpec(modelRef), consumer("a"))
	leave()
	<-running
	if cancelled, err := f.Cancel(t.Context(), f.externalSpec(modelRef), consumer("a")); !cancelled || err != nil {
		t.Errorf("Cancel = %t, %v", cancelled, err)
	}
	if n := len(f.jobs.flying) + len(f.models.flying) + len(f.engines.flying); n != 0 {
		t.Errorf("%d flights are left", n)
	}
}

func TestCancelTakesNothingFromOthers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.hold = make(chan struct{})
	mine := f.beginFor(t.Context(), t, f.externalSpec(modelRef), consumer("a"))
	same := f.beginFor(t.Context(), t, f.externalSpec(modelRef), consumer("b"))
	shared := f.beginFor(t.Context(), t, f.externalSpec(modelRef, "-t", "1"), consumer("a"))
	if cancelled, err := f.Cancel(t.Context(), f.externalSpec(modelRef), consumer("a")); !cancelled || err != nil {
		t.Errorf("Cancel = %t, %v", cancelled, err)
	}
	if o := <-mine; !errors.Is(o.err, errWithdrawn) {
		t.Errorf("the one that is cancelled: %v", o.err)
	}
	close(f.fetcher.hold)
	if a, b := <-same, <-shared; a.err != nil || b.err != nil {
		t.Errorf("those who stay: %v and %v", a.err, b.err)
	}
	if n := f.fetcher.models(); n != 1 {
		t.Errorf("the model was fetched %d times", n)
	}
}
