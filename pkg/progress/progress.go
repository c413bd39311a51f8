// SPDX-License-Identifier: Apache-2.0

// Package progress tells any number of readers what one job does.
//
// A Hub takes the events of a job: steps that begin and end, how far they are, what they print. Each Reader gets, step
// by step, that it began, what it printed, how far it is and that it ended; one that attaches late gets what went before
// first. Of a status only the newest counts, and of each step's log only the newest bytes are kept: a reader that is too
// late for some is told how many it missed. Writers never wait for readers.
//
// A Hub may be used by many goroutines at once; a Reader belongs to one. Events are not copied: nobody may change one
// after it was published.
package progress

import (
	"context"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// defaultLogBytes is how much of each step's log is kept for readers that come late: the end of a long build, not all.
const defaultLogBytes = 256 << 10

// Config of a Hub.
type Config struct {
	// LogBytes is how much of each step's log is kept; 0 means 256 KiB.
	LogBytes int
	// Now is the clock of step times; nil means time.Now.
	Now func() time.Time
}

// Hub takes the events of one job. Make one with NewHub.
type Hub struct {
	logBytes int
	now      func() time.Time

	// mu guards all below. Nothing waits while holding it.
	mu     sync.Mutex
	seq    uint64
	steps  []*step
	byID   map[string]*step
	closed bool
	// changed is closed, and replaced, at each event.
	changed chan struct{}
}

type step struct {
	began    *enginev1.Step
	beganSeq uint64

	status    *enginev1.Status
	statusSeq uint64

	logs     []logEntry
	logBytes int
	written  int64 // bytes of log ever written.

	ended    *enginev1.Step
	endedSeq uint64
}

type logEntry struct {
	seq    uint64
	offset int64 // of the first byte, in all that the step wrote.
	log    *enginev1.Log
}

// NewHub returns a Hub without events.
func NewHub(config Config) *Hub {
	h := &Hub{logBytes: config.LogBytes, now: config.Now, byID: make(map[string]*step), changed: make(chan struct{})}
	if h.logBytes == 0 {
		h.logBytes = defaultLogBytes
	}
	if h.now == nil {
		h.now = time.Now
	}
	return h
}

// Begin says that a step runs now. Its id must be new; another begin of the same id changes nothing.
func (h *Hub) Begin(id, name string) {
	h.Publish(&enginev1.Progress{Event: &enginev1.Progress_Step{Step: &enginev1.Step{
		Id: id, Name: name, State: enginev1.StepState_STEP_STATE_RUNNING, Started: timestamppb.New(h.now()),
	}}})
}

// Status says how far a step is. What would move it backwards is dropped.
func (h *Hub) Status(id string, current, total int64, unit enginev1.Unit) {
	h.Publish(&enginev1.Progress{Event: &enginev1.Progress_Status{Status: &enginev1.Status{
		StepId: id, Current: current, Total: total, Unit: unit,
	}}})
}

// Log says what a step printed. The Hub keeps data.
func (h *Hub) Log(id string, stream enginev1.LogStream, data []byte) {
	h.Publish(&enginev1.Progress{Event: &enginev1.Progress_Log{Log: &enginev1.Log{StepId: id, Stream: stream, Data: data}}})
}

// End says that a step ended: done if err is nil, cancelled if it says so through cancelled, else failed.
func (h *Hub) End(id string, outcome Outcome) {
	h.mu.Lock()
	s, ok := h.byID[id]
	h.mu.Unlock()
	if !ok {
		return
	}
	h.Publish(h.ending(s, outcome))
}

// Outcome is how a step ended. The zero value is a step that was done.
type Outcome struct {
	// State; unspecified means done.
	State enginev1.StepState
	// Cached is true if its result was there already.
	Cached bool
	// Error says why it failed.
	Error string
}

func (h *Hub) ending(s *step, outcome Outcome) *enginev1.Progress {
	state := outcome.State
	if state == enginev1.StepState_STEP_STATE_UNSPECIFIED {
		state = enginev1.StepState_STEP_STATE_DONE
	}
	return &enginev1.Progress{Event: &enginev1.Progress_Step{Step: &enginev1.Step{
		Id: s.began.GetId(), Name: s.began.GetName(), Started: s.began.GetStarted(), Ended: timestamppb.New(h.now()),
		State: state, Cached: outcome.Cached, Error: outcome.Error,
	}}}
}

// Publish takes an event made elsewhere, such as one that came over the wire. Events of a step that never began and
// events after Close are dropped.
func (h *Hub) Publish(event *enginev1.Progress) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.publishLocked(event)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Hub) publishLocked(event *enginev1.Progress) {
	h.seq++
	switch e := event.GetEvent().(type) {
	case *enginev1.Progress_Step:
		h.stepLocked(e.Step)
	case *enginev1.Progress_Status:
		s, ok := h.byID[e.Status.GetStepId()]
		if ok && s.ended == nil && (s.status == nil || e.Status.GetCurrent() >= s.status.GetCurrent()) {
			s.status, s.statusSeq = e.Status, h.seq
		}
	case *enginev1.Progress_Log:
		if s, ok := h.byID[e.Log.GetStepId()]; ok && s.ended == nil {
			h.logLocked(s, e.Log)
		}
	}
}

func (h *Hub) stepLocked(event *enginev1.Step) {
	s, ok := h.byID[event.GetId()]
	if !ok {
		s = &step{began: event, beganSeq: h.seq}
		if event.GetState() != enginev1.StepState_STEP_STATE_RUNNING {
			s.began = running(event)
		}
		h.byID[event.GetId()] = s
		h.steps = append(h.steps, s)
	}
	if s.ended == nil && event.GetState() != enginev1.StepState_STEP_STATE_RUNNING {
		s.ended, s.endedSeq = event, h.seq
	}
}

// running returns how a step looked before it ended.
func running(event *enginev1.Step) *enginev1.Step {
	return &enginev1.Step{
		Id: event.GetId(), Name: event.GetName(), Started: event.GetStarted(), State: enginev1.StepState_STEP_STATE_RUNNING,
	}
}

func (h *Hub) logLocked(s *step, log *enginev1.Log) {
	s.written += log.GetDroppedBytes() // Lost before it came here.
	s.logs = append(s.logs, logEntry{seq: h.seq, offset: s.written, log: log})
	s.written += int64(len(log.GetData()))
	s.logBytes += len(log.GetData())
	for s.logBytes > h.logBytes && len(s.logs) > 1 {
		s.logBytes -= len(s.logs[0].log.GetData())
		s.logs = s.logs[1:]
	}
}

// Close says that the job has ended: steps that still run end as outcome says, readers get io.EOF once they have read
// what there is. Closing twice changes nothing.
func (h *Hub) Close(outcome Outcome) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	for _, s := range h.steps {
		if s.ended == nil {
			h.publishLocked(h.ending(s, outcome))
		}
	}
	h.closed = true
	close(h.changed)
}

// Reader returns a Reader that begins with what went before.
func (h *Hub) Reader() *Reader {
	return &Reader{hub: h, offsets: make(map[string]int64)}
}

// Reader reads the events of a Hub. It holds nothing that must be given back.
type Reader struct {
	hub     *Hub
	cursor  uint64
	offsets map[string]int64 // per step, bytes of log read or known to be lost.
}

// Next returns the events since the last call, at least one. It waits for one until ctx is done, whose cause it then
// returns, and returns io.EOF when the job has ended and all was read.
func (r *Reader) Next(ctx context.Context) ([]*enginev1.Progress, error) {
	for {
		events, changed, closed := r.collect()
		switch {
		case len(events) > 0:
			return events, nil
		case closed:
			return nil, io.EOF
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (r *Reader) collect() ([]*enginev1.Progress, <-chan struct{}, bool) {
	h := r.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	var events []*enginev1.Progress
	for _, s := range h.steps {
		if s.beganSeq > r.cursor {
			events = append(events, &enginev1.Progress{Event: &enginev1.Progress_Step{Step: s.began}})
		}
		events = append(events, r.logs(s)...)
		if s.statusSeq > r.cursor {
			events = append(events, &enginev1.Progress{Event: &enginev1.Progress_Status{Status: s.status}})
		}
		if s.endedSeq > r.cursor {
			events = append(events, &enginev1.Progress{Event: &enginev1.Progress_Step{Step: s.ended}})
		}
	}
	r.cursor = h.seq
	return events, h.changed, h.closed
}

func (r *Reader) logs(s *step) []*enginev1.Progress {
	id := s.began.GetId()
	var events []*enginev1.Progress
	for _, entry := range s.logs {
		if entry.seq <= r.cursor {
			continue
		}
		log := entry.log
		if missed := entry.offset - r.offsets[id]; missed != log.GetDroppedBytes() {
			log, _ = proto.Clone(log).(*enginev1.Log)
			log.DroppedBytes = missed
		}
		r.offsets[id] = entry.offset + int64(len(log.GetData()))
		events = append(events, &enginev1.Progress{Event: &enginev1.Progress_Log{Log: log}})
	}
	return events
}
