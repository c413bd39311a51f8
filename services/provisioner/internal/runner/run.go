// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// drainWait is how long a silent pipe is read on after the last process has gone: only a process that could not be
// found holds it open.
const drainWait = 2 * time.Second

// busyWait is the longest pause before a program whose file is open for writing is tried again.
const busyWait = 500 * time.Millisecond

// process is one started program, not reaped until release is closed: so its pid, group and session stay its own.
type process struct {
	cmd            *exec.Cmd
	mark           mark
	stdout, stderr *os.File
	exited         chan struct{} // closed when the program has ended
	release        chan struct{} // closed when it may be reaped
	reaped         chan struct{} // closed when it is reaped
}

func run(ctx context.Context, c Command) (Result, error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	if c.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.Timeout, ErrTimeout)
		defer cancel()
	}
	if ctx.Err() != nil {
		return Result{}, fmt.Errorf("run %s: %w", c.name(), context.Cause(ctx))
	}
	if c.Owner != "" {
		if left := killAll(ownedBy(c.Owner)); len(left) > 0 {
			return Result{}, &SurvivorError{Name: c.name(), PIDs: left}
		}
	}
	begin := time.Now()
	p, err := startReady(ctx, c)
	if err != nil {
		return Result{}, fmt.Errorf("run %s: %w", c.name(), err)
	}
	ended := make(chan error, 1)
	go func() { ended <- p.supervise(ctx, c) }()

	tail := consume(c, p.lines(c.MaxLineBytes), fail)
	err = <-ended
	res := Result{ExitCode: -1, Duration: time.Since(begin), Tail: tail}
	if err != nil {
		return res, err
	}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		res.Signal = ws.Signal()
	} else {
		res.ExitCode = p.cmd.ProcessState.ExitCode()
	}
	if res.ExitCode != 0 {
		return res, &ExitError{Name: c.name(), Result: res}
	}
	return res, nil
}

// startReady starts c, also when its file was written a moment ago: a process that another goroutine is just starting
// may hold it open for writing until it has become its own program.
func startReady(ctx context.Context, c Command) (*process, error) {
	for wait := time.Millisecond; ; wait *= 2 {
		p, err := start(c)
		if !errors.Is(err, unix.ETXTBSY) || wait > busyWait {
			return p, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// start starts c in a session of its own, on a thread that lives exactly as long as the program: the kernel sends the
// DeathSignal when that thread ends, and the priority set on it is the program's from its first instruction.
func start(c Command) (*process, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make pipe: %w", err), outR.Close(), outW.Close())
	}
	p := &process{
		mark: newMark(c.Owner), stdout: outR, stderr: errR,
		exited: make(chan struct{}), release: make(chan struct{}), reaped: make(chan struct{}),
	}
	p.cmd = &exec.Cmd{
		Path: c.Path, Args: append([]string{c.Path}, c.Args...), Dir: c.Dir,
		Env:    append(append([]string{}, c.Env...), p.mark.env()),
		Stdout: outW, Stderr: errW,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, Pdeathsig: c.DeathSignal},
	}
	started := make(chan error, 1)
	go p.own(c.Nice, started)
	err = <-started
	werr := errors.Join(outW.Close(), errW.Close())
	if err == nil && werr == nil {
		return p, nil
	}
	if err == nil {
		killAll(p.member())
		close(p.release)
	}
	return nil, errors.Join(err, werr, outR.Close(), errR.Close())
}

// own starts the program and reaps it. Its thread is locked and never unlocked, so it ends with the goroutine.
func (p *process) own(nice int, started chan<- error) {
	runtime.LockOSThread()
	if err := addNice(nice); err != nil {
		started <- err
		return
	}
	err := p.cmd.Start()
	if err == nil && nice > 0 {
		// A new session is a new scheduling group, in which the priority of one process counts for nothing outside.
		// The group's own is only a wish: kernels without such groups have no such file.
		_ = os.WriteFile("/proc/"+strconv.Itoa(p.cmd.Process.Pid)+"/autogroup", []byte(strconv.Itoa(nice)), 0)
	}
	started <- err
	if err != nil {
		return
	}
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	close(p.exited)
	<-p.release
	_ = p.cmd.Wait() // how it ended is in ProcessState
	close(p.reaped)
}

// addNice lowers the priority of the calling thread.
func addNice(nice int) error {
	if nice == 0 {
		return nil
	}
	was, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return fmt.Errorf("read priority: %w", err)
	}
	// The system call gives 20 minus the value.
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, min(19, 20-was+nice)); err != nil {
		return fmt.Errorf("lower priority: %w", err)
	}
	return nil
}

// supervise waits for the end of the program or of ctx, ends everything that is left, and reaps. It returns an error
// when it had to stop the program or could not end all of it.
func (p *process) supervise(ctx context.Context, c Command) error {
	var stopped error
	select {
	case <-p.exited:
	case <-ctx.Done():
		stopped = fmt.Errorf("run %s: %w", c.name(), context.Cause(ctx))
		// The group cannot be another's: its leader is not reaped before release.
		_ = unix.Kill(-p.cmd.Process.Pid, unix.SIGTERM)
		grace := time.NewTimer(c.Grace)
		defer grace.Stop()
		select {
		case <-p.exited:
		case <-grace.C:
		}
	}
	left := killAll(p.member())
	close(p.release)
	limitRead(p.stdout)
	limitRead(p.stderr)
	if len(left) > 0 {
		return errors.Join(stopped, &SurvivorError{Name: c.name(), PIDs: left})
	}
	<-p.reaped
	return stopped
}

// limitRead makes a read that blocks for drainWait from now on fail.
func limitRead(f *os.File) {
	_ = f.SetReadDeadline(time.Now().Add(drainWait)) // a pipe of os.Pipe always takes one
}

// output is a pipe that is read to its end, and no longer than drainWait in silence once released is closed.
type output struct {
	*os.File
	released <-chan struct{}
}

// Read reads what is there, or waits for it.
func (o output) Read(b []byte) (int, error) {
	select {
	case <-o.released:
		limitRead(o.File)
	default:
	}
	return o.File.Read(b)
}

type outputLine struct {
	stream Stream
	text   string
}

// lines reads both outputs until they end, then closes the channel and the pipes.
func (p *process) lines(maxBytes int) <-chan outputLine {
	out := make(chan outputLine, 64)
	var readers sync.WaitGroup
	read := func(s Stream, f *os.File) func() {
		return func() {
			defer f.Close()
			splitLines(output{f, p.release}, maxBytes, func(text string) { out <- outputLine{s, text} })
		}
	}
	readers.Go(read(Stdout, p.stdout))
	readers.Go(read(Stderr, p.stderr))
	go func() {
		readers.Wait()
		close(out)
	}()
	return out
}

// consume hands the lines on and returns the last ones. A log that cannot be written stops the program once.
func consume(c Command, lines <-chan outputLine, fail context.CancelCauseFunc) []string {
	var tail []string
	var buf bytes.Buffer
	logging := c.Log != nil
	for l := range lines {
		if len(tail) == c.TailLines {
			tail = append(tail[:0], tail[1:]...)
		}
		tail = append(tail, l.text)
		if logging {
			buf.Reset()
			buf.WriteString(l.text)
			buf.WriteByte('\n')
			if _, err := c.Log.Write(buf.Bytes()); err != nil {
				logging = false
				fail(fmt.Errorf("write log: %w", err))
			}
		}
		if c.Lines != nil {
			c.Lines(l.stream, l.text)
		}
	}
	return tail
}
