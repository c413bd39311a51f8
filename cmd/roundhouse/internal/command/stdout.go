// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"
	"io"
	"io/fs"
	"sync"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// errOutput is the cause of the end of a command whose output nobody gets.
var errOutput = errors.New("standard output cannot be written")

// stdout is standard output. A command whose output was lost does not end well, whatever it makes of the error itself.
type stdout struct {
	to io.Writer
	// lost is closed after the first failure.
	lost chan struct{}

	mu      sync.Mutex // guards what follows
	failure error
}

func newStdout(to io.Writer) *stdout { return &stdout{to: to, lost: make(chan struct{})} }

func (s *stdout) Write(p []byte) (int, error) {
	n, err := s.to.Write(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && s.failure == nil {
		s.failure = err
		close(s.lost)
	}
	return n, err
}

// err says that output was lost; nil if all was written.
func (s *stdout) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		return nil
	}
	cause := s.failure
	if failed, ok := errors.AsType[*fs.PathError](cause); ok {
		cause = failed.Err
	}
	return &exitError{codeFailed, "OUTPUT_LOST", reason.New(reason.StorageFailed, errOutput.Error(), reason.Cause(cause),
		reason.Remedy("send it where there is room"))}
}
