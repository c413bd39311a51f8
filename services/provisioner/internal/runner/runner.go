// SPDX-License-Identifier: Apache-2.0

// Package runner runs the tools that prepare an engine, and leaves none of them behind.
//
// It is the only package of the provisioner that starts programs or signals processes. A program gets the arguments,
// the environment and the folder of its Command and nothing else: no shell, no inherited environment, an empty
// standard input, a session of its own. Run returns when the program has ended and no process that it started is
// left, whether it ended by itself, by a cancelled context or by a signal. When the provisioner itself is killed, the
// program gets its DeathSignal; what outlives even that is ended by the next Run with the same Owner.
//
// Left processes are found by session and by a mark in their environment. A process that leaves the session and
// drops its environment too is not found.
//
// All functions may be called at once. Nothing is stored.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	// defaultMaxLineBytes keeps one line well under what a progress message may carry (64 KiB).
	defaultMaxLineBytes = 16 << 10
	// defaultTailLines is enough for a compiler's first error with its notes.
	defaultTailLines = 40
	// defaultGrace is what git, cmake and ninja need to remove their half-written files.
	defaultGrace = 5 * time.Second
	// survivorWait is how long a killed process may take to go; only one stuck in the kernel takes longer.
	survivorWait = 10 * time.Second
)

// Stream is an output of a program.
type Stream int

const (
	// StreamUnspecified is no stream.
	StreamUnspecified Stream = iota
	// Stdout is standard output.
	Stdout
	// Stderr is standard error.
	Stderr
)

// Command is one program to run.
type Command struct {
	// Path is the program's absolute path. Required.
	Path string
	// Args are its arguments, without its own name.
	Args []string
	// Dir is the absolute folder that it runs in. Empty means "/".
	Dir string
	// Env is its whole environment as KEY=value, but for the runner's own mark. Empty means that it gets nothing.
	Env []string
	// Nice is added to the scheduling priority, 0 to 19. Zero runs it at the provisioner's own.
	Nice int
	// Lines is called for each line of output, always from the goroutine that called Run, in order within a stream.
	// A line is valid UTF-8 without its end, control characters or terminal sequences; a carriage return ends one too.
	// Nil means that nobody listens.
	Lines func(Stream, string)
	// Log gets each line with a newline. A failed write stops the program. Nil means no log.
	Log io.Writer
	// MaxLineBytes cuts longer lines; the rest of such a line is dropped. Zero means 16 KiB.
	MaxLineBytes int
	// TailLines is how many of the last lines Result keeps. Zero means 40.
	TailLines int
	// Timeout stops the program with ErrTimeout. Zero means no limit but the context's.
	Timeout time.Duration
	// Grace is the time between SIGTERM and SIGKILL when the program is stopped. Zero means 5 s.
	Grace time.Duration
	// DeathSignal is what the program gets when the provisioner dies. Zero means SIGKILL. A program that passes
	// SIGTERM on to children in other process groups, as ninja does, wants SIGTERM.
	DeathSignal syscall.Signal
	// Owner names what the program works on, such as its build folder. Run ends what an earlier Run of the same Owner
	// left behind, in this life of the provisioner or in one that was killed; so the caller holds Owner's lock.
	// Empty means that nothing is looked for.
	Owner string
}

// Result is how a program ended.
type Result struct {
	// ExitCode is the exit code, or -1 when a signal ended it.
	ExitCode int
	// Signal ended it; zero when it ended by itself.
	Signal syscall.Signal
	// Duration is the time from its start until nothing of it was left.
	Duration time.Duration
	// Tail holds the last lines of both streams.
	Tail []string
}

// ErrTimeout is in the error of a program that ran longer than its Timeout.
var ErrTimeout = errors.New("ran out of time")

// ExitError says that a program ended with a code other than zero, or by a signal that Run did not send.
type ExitError struct {
	// Name is the program's file name.
	Name string
	Result
}

// Error gives the program, how it ended and its last line.
func (e *ExitError) Error() string {
	how := fmt.Sprintf("exit code %d", e.ExitCode)
	if e.Signal != 0 {
		how = "signal " + e.Signal.String()
	}
	if n := len(e.Tail); n > 0 {
		return fmt.Sprintf("%s: %s: %s", e.Name, how, e.Tail[n-1])
	}
	return fmt.Sprintf("%s: %s", e.Name, how)
}

// SurvivorError says that processes were still there 10 s after SIGKILL.
type SurvivorError struct {
	// Name is the program's file name.
	Name string
	// PIDs are the processes that are left.
	PIDs []int
}

// Error names the processes.
func (e *SurvivorError) Error() string {
	return fmt.Sprintf("%s: processes %v outlived SIGKILL", e.Name, e.PIDs)
}

// Run runs c until it has ended and no process of it is left. It returns nil for exit code zero and *ExitError for any
// other end. When ctx or the timeout ends first, the program's group gets SIGTERM, then, after the grace, everything
// gets SIGKILL, and the error wraps the cause. The Result is filled whenever the program was started.
func Run(ctx context.Context, c Command) (Result, error) {
	if err := c.check(); err != nil {
		return Result{}, err
	}
	return run(ctx, c.withDefaults())
}

func (c Command) check() error {
	if !filepath.IsAbs(c.Path) {
		return fmt.Errorf("run %q: path is not absolute", c.Path)
	}
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("run %s: folder %q is not absolute", c.name(), c.Dir)
	}
	if c.Nice < 0 || c.Nice > 19 {
		return fmt.Errorf("run %s: nice %d is not within 0 to 19", c.name(), c.Nice)
	}
	for _, s := range append(append([]string{}, c.Args...), c.Env...) {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("run %s: an argument or variable holds a NUL byte", c.name())
		}
	}
	return nil
}

func (c Command) withDefaults() Command {
	if c.Dir == "" {
		c.Dir = "/"
	}
	if c.MaxLineBytes <= 0 {
		c.MaxLineBytes = defaultMaxLineBytes
	}
	if c.TailLines <= 0 {
		c.TailLines = defaultTailLines
	}
	if c.Grace <= 0 {
		c.Grace = defaultGrace
	}
	if c.DeathSignal == 0 {
		c.DeathSignal = syscall.SIGKILL
	}
	return c
}

func (c Command) name() string { return filepath.Base(c.Path) }

// NoSpace tells whether a tool that runs with LC_ALL=C said that a file system is full. Tools tell it no other way.
func NoSpace(lines []string) bool {
	return slices.ContainsFunc(lines, func(line string) bool {
		return strings.Contains(line, "No space left on device") || strings.Contains(line, "Disk quota exceeded")
	})
}
