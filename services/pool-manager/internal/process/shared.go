// SPDX-License-Identifier: Apache-2.0

package process

import (
	"sync"
	"time"
)

// shared lets callers that want the same look at the machine at the same time have one between them: a hundred engines
// that die at once cost two looks, not a hundred. What a look returns must not be changed by its callers.
type shared[T any] struct {
	mu    sync.Mutex // mu guards what follows.
	begun *look[T]   // the newest that has begun.
	next  *look[T]   // the one that waits for begun to end; whoever comes before it begins joins it.
}

// look is one call of read. What it returned may be used once done is closed.
type look[T any] struct {
	began time.Time
	done  chan struct{}
	value T
	err   error
}

// get returns what a read told that began after the call, or at most age before it. Reads of one shared never overlap.
func (s *shared[T]) get(age time.Duration, read func() (T, error)) (T, error) {
	s.mu.Lock()
	before, next := s.begun, s.next
	recent := before != nil && age > 0 && time.Since(before.began) <= age
	mine := !recent && next == nil
	if mine {
		next = &look[T]{done: make(chan struct{})}
		s.next = next
	}
	s.mu.Unlock()
	if recent {
		if <-before.done; before.err == nil {
			return before.value, nil
		}
		return s.get(0, read)
	}
	if mine {
		if before != nil {
			<-before.done
		}
		s.begin(next)
		next.value, next.err = read()
		close(next.done)
	}
	<-next.done
	return next.value, next.err
}

// begin closes the look for those who come later.
func (s *shared[T]) begin(l *look[T]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.began = time.Now()
	s.begun, s.next = l, nil
}
