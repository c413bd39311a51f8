// SPDX-License-Identifier: Apache-2.0

package simulation

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
)

// badStart is what is wrong with a start.
type badStart int

const (
	goodStart     badStart = iota
	exitsLoading           // exit 1 before it is ready.
	exitsConfig            // exit 1 with words that say that its flags are wrong.
	outOfMemory            // exit 1 with words of a device that is full.
	gpuFault               // exit 1 with words of a broken device.
	stallsLoading          // nothing of it moves any more.
	neverReady             // it moves, but never gets ready.
	wrongModel             // it serves another model.
	exitsZero              // exit 0 before it is ready.
	badStarts              // how many there are.
)

// behaviour is how a start behaves.
type behaviour struct {
	bad        badStart
	load       time.Duration
	term       time.Duration // how long it takes to end after TERM.
	ignoreTerm bool
	wrongWords bool // its answers are not what they should be.
}

// start is one start of an engine, with all of its processes. The world's lock guards what changes.
type start struct {
	world   *world
	seq     int
	command process.Command
	by      *manager
	boot    int
	pid     int
	ticks   uint64
	began   time.Time
	how     behaviour
	model   string
	asked   uint16 // port that it was told.
	reason  string // why it was started.

	alive    bool
	kids     int
	exit     process.ExitStatus
	endedAt  time.Time
	holds    []*hold
	changed  chan struct{} // closed, and replaced, at each change.
	lastLine string

	port      uint16 // where it listens; 0 is nowhere.
	ready     bool
	readyAt   time.Time
	hung      bool // it answers, but computes nothing.
	mute      bool // it does not answer.
	hungAt    time.Time
	stuckTill time.Time // it cannot be killed before.

	requests    int
	tokens      float64
	computed    time.Duration // processor time used for requests.
	computingAt time.Time     // since when requests are computed; zero if none are.
	stillAt     time.Time     // when its load has stopped to move; zero if it moves.

	signalledBy *manager
	drained     bool // it was told to end while its pool was drained.
	stray       bool
	cut         int  // requests that it had when it was told to end.
	forgiven    bool // a fault excuses what is not on record of it.
	proven      bool // it was told READY at a time when it was.
}

func (s *start) name() string { return fmt.Sprintf("%s g%d", s.command.Replica, s.command.Generation) }

func (s *start) identity() process.Identity {
	return process.Identity{
		BootID: bootName(s.boot), PID: s.pid, StartTicks: s.ticks, Executable: s.command.Executable, Nonce: s.command.Nonce,
	}
}

// makeStartLocked makes the process of a command.
func (w *world) makeStartLocked(c process.Command) *start {
	w.nextPID += 10
	s := &start{
		world: w, seq: len(w.starts), command: c, by: w.manager, boot: w.boot, pid: w.nextPID, began: time.Now(), alive: true,
		reason: w.reason,
		ticks:  uint64(time.Since(w.began).Seconds()*ticksPerSecond) + 1, changed: make(chan struct{}), how: w.behaveLocked(c.Pool),
	}
	for i, arg := range c.Args {
		switch arg {
		case "--model":
			s.model = c.Args[i+1]
		case "--port":
			port, _ := strconv.Atoi(c.Args[i+1])
			s.asked = uint16(port)
		}
	}
	if s.how.bad != goodStart && w.nature.IntN(4) == 0 { // What is broken is stuck, too.
		s.stuckTill = time.Now().Add(s.how.load + time.Duration(w.nature.IntN(400))*time.Second)
	}
	w.starts = append(w.starts, s)
	w.stats.starts++
	load := s.how.load
	end := func(code int, line string) {
		w.after(load, "ends "+s.name(), func() {
			if s.alive {
				s.lastLine = line
				s.exitLocked(process.ExitStatus{Code: code})
			}
		})
	}
	switch s.how.bad {
	case exitsLoading:
		end(1, "failed to load")
	case exitsConfig:
		end(1, "error: invalid argument")
	case outOfMemory:
		end(1, "CUDA error: out of memory")
	case gpuFault:
		end(1, "CUDA error: an illegal instruction")
	case exitsZero:
		end(0, "bye")
	case stallsLoading:
		w.after(load/2, "stalls "+s.name(), func() { s.stillAt = time.Now() })
	case neverReady:
	default:
		w.after(load, "up "+s.name(), s.upLocked)
	}
	return s
}

// upLocked is when an engine has loaded.
func (s *start) upLocked() {
	w := s.world
	if !s.alive {
		return
	}
	port := s.asked
	if port == 0 {
		w.nextPort++
		port = w.nextPort
	}
	if w.thieves[port] || w.ports[port] != nil {
		s.lastLine = "bind: address already in use"
		s.exitLocked(process.ExitStatus{Code: 1})
		return
	}
	s.port, s.ready, s.readyAt = port, true, time.Now()
	if s.how.bad == wrongModel {
		s.model = "another"
	}
	w.ports[port] = s
	s.tellLocked()
}

func (s *start) tellLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// exitLocked ends the root.
func (s *start) exitLocked(status process.ExitStatus) {
	w := s.world
	status.At = time.Now()
	s.workLocked()
	s.exit, s.alive, s.endedAt = status, false, status.At
	if s.port != 0 && w.ports[s.port] == s {
		delete(w.ports, s.port)
	}
	s.requests, s.computingAt = 0, time.Time{}
	s.port, s.ready = 0, false
	if w.diskFaulty() {
		s.forgiven = true
	}
	for _, p := range s.holds {
		p.endedLocked()
	}
	s.tellLocked()
}

// takeLocked is what a signal does.
func (s *start) takeLocked(signal syscall.Signal) {
	s.cut = max(s.cut, s.requests)
	if signal == unix.SIGKILL {
		if left := time.Until(s.stuckTill); left > 0 {
			s.world.after(left, "freed "+s.name(), func() { s.killedLocked() })
			return
		}
		s.killedLocked()
		return
	}
	if !s.alive || s.how.ignoreTerm || s.hung && s.mute {
		return
	}
	s.world.after(s.how.term, "terminated "+s.name(), func() {
		if s.alive && !time.Now().Before(s.stuckTill) {
			s.exitLocked(process.ExitStatus{Code: process.CodeUnknown, Signal: unix.SIGTERM})
		}
	})
}

func (s *start) killedLocked() {
	s.kids = 0
	if s.alive {
		s.exitLocked(process.ExitStatus{Code: process.CodeUnknown, Signal: unix.SIGKILL})
		return
	}
	s.tellLocked()
}

func (s *start) goneLocked() bool { return !s.alive && s.kids == 0 || s.boot != s.world.boot }

func (s *start) isGone() bool {
	s.world.mu.Lock()
	defer s.world.mu.Unlock()
	return s.goneLocked()
}

// workLocked brings what was computed up to now.
func (s *start) workLocked() {
	if !s.computingAt.IsZero() && !s.hung {
		worked := time.Since(s.computingAt)
		s.computed += worked
		s.tokens += worked.Seconds() * 10
	}
	s.computingAt = time.Time{}
	if s.requests > 0 {
		s.computingAt = time.Now()
	}
}

// requestLocked is a request that takes so long.
func (s *start) requestLocked(d time.Duration) {
	s.workLocked()
	s.requests++
	s.workLocked()
	s.world.after(d, "answered "+s.name(), func() {
		if s.alive && !s.hung && s.requests > 0 {
			s.workLocked()
			s.requests--
			s.workLocked()
		}
	})
}

// hangLocked has it compute nothing any more.
func (s *start) hangLocked(mute bool) {
	s.workLocked()
	s.hung, s.mute, s.hungAt = true, mute, time.Now()
}

func (s *start) vitalsLocked() process.Vitals {
	s.workLocked()
	now := time.Now()
	moved := now.Sub(s.began)
	if !s.stillAt.IsZero() {
		moved = s.stillAt.Sub(s.began)
	} else if s.how.bad != neverReady {
		moved = min(moved, s.how.load)
	}
	v := process.Vitals{At: now, CPU: moved/2 + s.computed + time.Millisecond, PIDs: 1}
	v.IOBytes = uint64(moved.Seconds() * (64 << 20))
	v.RSS = v.IOBytes
	return v
}

// behaveLocked says how the next start of a pool behaves.
func (w *world) behaveLocked(pool string) behaviour {
	b := behaviour{
		load: time.Duration(100+w.nature.IntN(8000))*time.Millisecond + time.Duration(w.nature.IntN(1000)),
		term: time.Duration(1+w.nature.IntN(1500)) * time.Millisecond,
	}
	if w.nature.IntN(8) == 0 {
		b.load *= 8
	}
	if strings.HasPrefix(pool, w.faults.badPool) && w.faults.badStarts > 0 {
		w.faults.badStarts--
		b.bad = w.faults.badHow
	}
	if w.faults.ignoreTerm && w.nature.IntN(2) == 0 {
		b.ignoreTerm = true
	}
	b.wrongWords = w.faults.wrongWords
	return b
}
