// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// watcher is a Watch and the token of its last message.
type watcher struct {
	stream poolv1.PoolManagerService_WatchClient
	token  string
}

// watch begins a Watch that ends with the test.
func (n *node) watch(t *testing.T, token string, ids ...string) *watcher {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	t.Cleanup(cancel)
	stream, err := n.Watch(ctx, &poolv1.WatchRequest{ResumeToken: token, PoolIds: ids})
	if err != nil {
		t.Fatal(err)
	}
	return &watcher{stream: stream}
}

// next returns the next message in a few words, such as "+a READY", "-a" or "synced".
func (w *watcher) next(t *testing.T) string {
	t.Helper()
	m, err := w.stream.Recv()
	if err != nil {
		t.Fatalf("Watch: %v", err)
	}
	if m.GetResumeToken() == "" {
		t.Errorf("message %v has no token", m)
	}
	w.token = m.GetResumeToken()
	switch e := m.GetEvent().(type) {
	case *poolv1.WatchResponse_Upsert:
		return "+" + e.Upsert.GetPoolId() + " " + strings.TrimPrefix(e.Upsert.GetState().String(), "POOL_STATE_")
	case *poolv1.WatchResponse_Deleted:
		return "-" + e.Deleted.GetPoolId()
	case *poolv1.WatchResponse_Synced:
		return "synced"
	case *poolv1.WatchResponse_Reset_:
		return "reset"
	case *poolv1.WatchResponse_Heartbeat:
		return "heartbeat"
	default:
		t.Errorf("message %v is none", m)
		return ""
	}
}

func (w *watcher) want(t *testing.T, want ...string) {
	t.Helper()
	got := make([]string, len(want))
	for i := range want {
		got[i] = w.next(t)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("messages (-want +got):\n%s", diff)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.put(t, "a:READY", "b:LOADING")
	w := n.watch(t, "")
	w.want(t, "+a READY", "+b LOADING", "synced")
	n.put(t, "b:READY")
	w.want(t, "+b READY")
	n.registry.Delete("a")
	w.want(t, "-a")

	n.put(t, "c:FAILED")
	resumed := n.watch(t, w.token)
	resumed.want(t, "+c FAILED", "synced")
	n.put(t, "d:READY")
	resumed.want(t, "+d READY")
}

func TestWatchSeesAPoolLiveAndDie(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	w := n.watch(t, "", "a")
	w.want(t, "synced")
	n.mustPreload(t, validSpec("other"))
	n.mustPreload(t, validSpec("a"))
	for m := w.next(t); m != "+a READY"; m = w.next(t) {
		if m != "+a LOADING" {
			t.Errorf("message %q on the way to READY", m)
		}
	}
	stream, err := n.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "a"})
	if _, err := all(t, stream, err); err != nil {
		t.Fatal(err)
	}
	for m := w.next(t); m != "+a STOPPED"; m = w.next(t) {
		if m != "+a DRAINING" {
			t.Errorf("message %q on the way to STOPPED", m)
		}
	}
	if _, err := n.DeletePool(t.Context(), &poolv1.DeletePoolRequest{PoolId: "a"}); err != nil {
		t.Fatal(err)
	}
	w.want(t, "-a")
}

func TestWatchWithAWorthlessToken(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.put(t, "a:READY")
	n.watch(t, "of another life").want(t, "reset", "+a READY", "synced")
}

func TestWatchOfSomePools(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.put(t, "a:READY", "b:READY")
	w := n.watch(t, "", "b", "c")
	w.want(t, "+b READY", "synced")
	n.put(t, "a:FAILED", "c:LOADING")
	n.registry.Delete("b")
	first, second := w.next(t), w.next(t)
	if first != "+c LOADING" || second != "-b" {
		t.Errorf("messages %q, %q", first, second)
	}
}

// Heartbeats come when nothing happens, and what happens to other pools is nothing; they move the token on.
func TestWatchHeartbeats(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{Heartbeat: 10 * time.Millisecond})
	w := n.watch(t, "", "a")
	w.want(t, "synced", "heartbeat")
	n.put(t, "b:READY")
	w.want(t, "heartbeat", "heartbeat")
	resumed := n.watch(t, w.token)
	if first := resumed.next(t); first != "synced" {
		t.Errorf("resumed from a heartbeat: %q, want nothing before synced", first)
	}
	n.put(t, "a:READY")
	for m := w.next(t); m != "+a READY"; m = w.next(t) {
		if m != "heartbeat" {
			t.Errorf("message %q", m)
		}
	}
}

func TestWatchEndsWithTheService(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	w := n.watch(t, "")
	w.want(t, "synced")
	n.stop()
	_, err := w.stream.Recv()
	if typed := typedError(t, err, reason.ShuttingDown); typed.RetryAfter == 0 {
		t.Errorf("error %+v does not say when to come again", typed)
	}
}

// putLarge makes a pool known whose snapshot is larger than what is under way at once.
func (n *node) putLarge(id string) {
	n.registry.Put(registry.Pool{State: registry.StateReady, Spec: registry.Spec{ID: registry.PoolID(id), Prepare: &enginev1.PrepareSpec{
		Launch: &enginev1.LaunchSpec{Flags: strings.Split(strings.Repeat(strings.Repeat("x", 4000)+",", 100), ",")},
	}}})
}

// wantStalled reads on after the watch was ended and wants it to have been ended for that.
func (w *watcher) wantStalled(t *testing.T) {
	t.Helper()
	var err error
	for err == nil {
		_, err = w.stream.Recv()
	}
	typed := typedError(t, err, reason.LimitExceeded)
	if typed.Metadata["limit"] != "100ms" || typed.Remedy == "" {
		t.Errorf("error %+v, want limit and remedy", typed)
	}
}

func TestWatchEndsAReaderThatStalls(t *testing.T) {
	t.Parallel()
	ended := func(n *node) func() (bool, string) {
		return func() (bool, string) { return len(n.logs.Lines("request")) > 0, "it goes on" }
	}
	t.Run("in the first part", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, Config{Stall: 100 * time.Millisecond})
		for _, id := range strings.Fields("a b c d e f g h") {
			n.putLarge(id)
		}
		w := n.watch(t, "")
		w.want(t, "+a READY", "+b READY")
		testkit.Eventually(t, testPatience, "the watch is ended", ended(n))
		w.wantStalled(t)
	})
	t.Run("among changes", func(t *testing.T) {
		t.Parallel()
		n := newNode(t, Config{Stall: 100 * time.Millisecond})
		w := n.watch(t, "")
		w.want(t, "synced")
		over := ended(n)
		testkit.Eventually(t, testPatience, "the watch is ended", func() (bool, string) {
			n.putLarge("a")
			return over()
		})
		w.wantStalled(t)
	})
}

// Who is slow and reads on is never ended, however long all of it takes.
func TestWatchKeepsAReaderThatIsSlow(t *testing.T) {
	t.Parallel()
	const stall = time.Second
	n := newNode(t, Config{Stall: stall})
	ids := strings.Fields("a b c d e f g h i j k l")
	for _, id := range ids {
		n.putLarge(id)
	}
	w := n.watch(t, "")
	pace := time.NewTicker(stall / 8)
	defer pace.Stop()
	for _, id := range ids {
		<-pace.C
		w.want(t, "+"+id+" READY")
	}
	w.want(t, "synced")
}
