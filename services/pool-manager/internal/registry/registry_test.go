// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newRegistry(t *testing.T, config Config) *Registry {
	t.Helper()
	r, err := New(config)
	if err != nil {
		t.Fatalf("New(%+v): %v", config, err)
	}
	return r
}

func pool(id PoolID, state State) Pool {
	return Pool{Spec: Spec{ID: id}, State: state}
}

func next(t *testing.T, w *Watcher) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	events, err := w.Next(ctx)
	if err != nil {
		t.Fatalf("Next: %v", err)
	}
	return events
}

// told renders events as "upsert a READY", one a line.
func told(events []Event) []string {
	var lines []string
	for _, e := range events {
		switch e.Kind {
		case EventUpsert:
			lines = append(lines, fmt.Sprintf("upsert %s %s", e.ID, e.Pool.State))
		case EventDelete:
			lines = append(lines, fmt.Sprintf("delete %s", e.ID))
		case EventSynced:
			lines = append(lines, "synced")
		case EventReset:
			lines = append(lines, "reset")
		}
	}
	return lines
}

func wantTold(t *testing.T, events []Event, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, told(events)); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
}

func TestNewRefusesNegativeHistory(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Tombstones: -1}); err == nil {
		t.Error("New with Tombstones -1 succeeded")
	}
}

func TestGetAndListGiveTheNewestSnapshot(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{})
	r.Put(pool("b", StateLoading))
	r.Put(pool("a", StateReady))
	first, _ := r.Get("b")
	r.Put(pool("b", StateReady))
	if first.State != StateLoading {
		t.Errorf("an old snapshot changed to %s", first.State)
	}
	got, ok := r.Get("b")
	if !ok || got.State != StateReady || got.Revision != 3 {
		t.Errorf("Get(b) = %+v, %t, want READY at revision 3", got, ok)
	}
	var ids []PoolID
	for _, p := range r.List() {
		ids = append(ids, p.Spec.ID)
	}
	if diff := cmp.Diff([]PoolID{"a", "b"}, ids); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	if r.Delete("nobody") {
		t.Error("Delete of an unknown pool says true")
	}
}

func TestWatchBeginsWithEverythingAndGoesOn(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{})
	r.Put(pool("a", StateReady))
	r.Put(pool("gone", StateReady))
	r.Delete("gone")
	w := r.Watch("", nil)
	wantTold(t, next(t, w), "upsert a READY", "synced")
	r.Put(pool("a", StateDraining))
	wantTold(t, next(t, w), "upsert a DRAINING")
	r.Delete("a")
	r.Put(pool("a", StateLoading))
	wantTold(t, next(t, w), "delete a", "upsert a LOADING")
}

func TestSlowWatcherGetsTheNewestStateOnly(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{})
	w := r.Watch("", nil)
	wantTold(t, next(t, w), "synced")
	for _, state := range []State{StateLoading, StateReady, StateDraining, StateStopped} {
		r.Put(pool("a", state))
	}
	wantTold(t, next(t, w), "upsert a STOPPED")
}

func TestFilterHidesOtherPools(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{})
	r.Put(pool("a", StateReady))
	r.Put(pool("b", StateReady))
	w := r.Watch("", []PoolID{"b"})
	wantTold(t, next(t, w), "upsert b READY", "synced")
	r.Put(pool("a", StateDraining))
	r.Delete("b")
	wantTold(t, next(t, w), "delete b")
}

func TestResume(t *testing.T) {
	t.Parallel()
	r := newRegistry(t, Config{Tombstones: 1})
	r.Put(pool("a", StateReady))
	token := func() string {
		w := r.Watch("", nil)
		next(t, w)
		return w.Token()
	}
	begin := token()
	r.Put(pool("b", StateReady))
	r.Delete("b")
	wantTold(t, next(t, r.Watch(begin, nil)), "delete b", "synced")
	wantTold(t, next(t, r.Watch(token(), nil)), "synced")

	r.Put(pool("c", StateReady))
	r.Delete("c")
	wantTold(t, next(t, r.Watch(begin, nil)), "reset", "upsert a READY", "synced")
	other := newRegistry(t, Config{})
	for name, worthless := range map[string]string{
		"garbage":           "not a token",
		"of another epoch":  other.token(0),
		"of the future":     r.token(1 << 40),
		"without a number":  other.token(0)[:4],
		"negative revision": r.token(0)[:8],
	} {
		t.Run(name, func(t *testing.T) {
			wantTold(t, next(t, r.Watch(worthless, nil)), "reset", "upsert a READY", "synced")
		})
	}
}

func TestDeletesAreForgottenWithTime(t *testing.T) {
	t.Parallel()
	now := time.Unix(1_700_000_000, 0)
	r := newRegistry(t, Config{TombstoneAge: time.Minute, Now: func() time.Time { return now }})
	w := r.Watch("", nil)
	next(t, w)
	r.Put(pool("a", StateReady))
	r.Delete("a")
	now = now.Add(2 * time.Minute)
	r.Put(pool("b", StateReady))
	r.Delete("b")
	wantTold(t, next(t, r.Watch(w.Token(), nil)), "reset", "synced")
}

func TestNextWaitsUntilCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRegistry(t, Config{})
		w := r.Watch("", []PoolID{"a"})
		next(t, w)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, fmt.Errorf("enough"))
		defer cancel()
		r.Put(pool("b", StateReady)) // Not in the filter: no event.
		if events, err := w.Next(ctx); err == nil || err.Error() != "enough" {
			t.Errorf("Next = %v, %v, want the context's cause", told(events), err)
		}
	})
}

// Whatever a writer does and wherever watchers stop and resume, each ends with the registry's own view, has seen
// revisions rise and no snapshot of a pool after its delete without a new one.
func TestWatchersConverge(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		r := newRegistry(t, Config{Tombstones: 1 + random.IntN(8)})
		type reader struct {
			w    *Watcher
			view map[PoolID]uint64
			last uint64
		}
		readers := make([]reader, 4)
		for i := range readers {
			readers[i] = reader{w: r.Watch("", nil), view: map[PoolID]uint64{}}
		}
		read := func(i int) {
			reader := &readers[i]
			events := next(t, reader.w)
			stop := random.IntN(len(events) + 1) // A reader may be cut anywhere, and resumes from the last token it got.
			token := ""
			for n, e := range events {
				if n == stop && token != "" {
					reader.w = r.Watch(token, nil)
					return
				}
				token = e.Token
				switch e.Kind {
				case EventReset:
					reader.view, reader.last = map[PoolID]uint64{}, 0
				case EventUpsert, EventDelete:
					if e.revision <= reader.last {
						t.Fatalf("seed %d: revision %d after %d", seed, e.revision, reader.last)
					}
					reader.last = e.revision
					if e.Kind == EventDelete {
						delete(reader.view, e.ID)
					} else {
						reader.view[e.ID] = e.Pool.Revision
					}
				}
			}
		}
		for range 200 {
			id := PoolID(fmt.Sprint(random.IntN(6)))
			if random.IntN(3) == 0 {
				r.Delete(id)
			} else {
				r.Put(pool(id, StateReady))
			}
			if i := random.IntN(len(readers)); random.IntN(2) == 0 && r.pending(readers[i].w) {
				read(i)
			}
		}
		want := map[PoolID]uint64{}
		for _, p := range r.List() {
			want[p.Spec.ID] = p.Revision
		}
		for i := range readers {
			for r.pending(readers[i].w) {
				read(i)
			}
			if diff := cmp.Diff(want, readers[i].view); diff != "" {
				t.Fatalf("seed %d: reader %d (-registry +view):\n%s", seed, i, diff)
			}
		}
	}
}

// pending says whether Next would return at once.
func (r *Registry) pending(w *Watcher) bool {
	copied := *w
	events, _ := copied.collect()
	return len(events) > 0
}
