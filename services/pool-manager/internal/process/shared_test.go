// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSharedLooksBeginAfterTheCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s shared[time.Time]
		var reads, reading atomic.Int32
		read := func() (time.Time, error) {
			if reading.Add(1) > 1 {
				t.Error("two reads at once")
			}
			defer reading.Add(-1)
			reads.Add(1)
			began := time.Now()
			<-time.After(100 * time.Millisecond)
			return began, nil
		}
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				<-time.After(time.Duration(i) * time.Millisecond)
				called := time.Now()
				if began, err := s.get(0, read); err != nil || began.Before(called) {
					t.Errorf("get at %v: %v, %v; want what began later", called, began, err)
				}
			})
		}
		all.Wait()
		if got := reads.Load(); got != 2 {
			t.Errorf("reads for 100 callers during one: got %d, want 2", got)
		}
	})
}

func TestSharedLooksMayBeOfAnAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s shared[int]
		n := 0
		var fail error
		read := func() (int, error) {
			n++
			return n, fail
		}
		for _, step := range []struct {
			after, age time.Duration
			fail       error
			want       int
		}{
			{0, time.Second, nil, 1},
			{time.Second, time.Second, nil, 1},
			{1, time.Second, nil, 2},
			{0, 0, nil, 3},
			{0, time.Second, nil, 3},
			{0, 0, errors.ErrUnsupported, 4},
			{0, time.Second, nil, 5}, // A look that failed serves nobody later.
		} {
			<-time.After(step.after)
			fail = step.fail
			if got, err := s.get(step.age, read); got != step.want || !errors.Is(err, step.fail) {
				t.Errorf("get %+v: got %d, %v", step, got, err)
			}
		}
	})
}
