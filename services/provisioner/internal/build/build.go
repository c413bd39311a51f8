// SPDX-License-Identifier: Apache-2.0

// Package build configures and compiles a CMake project with Ninja.
//
// It knows no engine: definitions and targets are the caller's, from its own allow-list. A build that was cancelled or
// killed goes on where it was when it is asked for again with the same recipe; another recipe in the same folder starts
// from nothing. No compiler outlives Build. The methods may be called at once, but only one at a time for one build
// folder; the caller holds its lock. Nothing is installed and nothing is written outside the build and ccache folders.
package build

import (
	"context"
	"io"
	"time"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// Recipe is one build.
type Recipe struct {
	// SourceDir is the absolute folder with CMakeLists.txt.
	SourceDir string
	// BuildDir is the absolute folder to build in; it is created, and kept for the next build of the same recipe. It is
	// this package's alone: a folder that holds anything else is refused.
	BuildDir string
	// Definitions become -DNAME=VALUE. Names that choose compilers, launchers or generator are refused.
	Definitions map[string]string
	// Targets are the ninja targets. Empty means the project's default.
	Targets []string
	// Jobs is the most compilers that may run at once. Cores and memory (1.5 GiB each) bound it besides; zero means only
	// they do.
	Jobs int
	// CCacheDir is an absolute folder for ccache. Empty means that ccache is not used.
	CCacheDir string
	// Log gets everything that cmake and ninja print. Nil means no log.
	Log io.Writer
}

// Phase is a part of a build.
type Phase int

const (
	// PhaseUnspecified is none.
	PhaseUnspecified Phase = iota
	// Configure runs cmake.
	Configure
	// Compile runs ninja.
	Compile
)

// Progress is how far a build has come.
type Progress struct {
	Phase Phase
	// Percent is 0 to 100 within the phase and never shrinks; 100 is said only when the phase has ended well.
	Percent int
	// Done and Total are ninja's counts of actions in this run; they may start again. Zero while configuring.
	Done, Total int
}

// Observer is told what happens, from the goroutine that called. Both fields may be nil.
type Observer struct {
	Progress func(Progress)
	Line     func(runner.Stream, string)
}

// Result is a build that ended well.
type Result struct {
	// Jobs is how many compilers ran at once.
	Jobs int
	// CCache is set when ccache was used.
	CCache bool
	// Configured is the time cmake took; zero when nothing had to be configured.
	Configured time.Duration
	// Compiled is the time ninja took.
	Compiled time.Duration
}

// Tools finds the programs.
type Tools interface {
	Find(context.Context, toolchain.Name) (toolchain.Tool, error)
	Require(context.Context, ...toolchain.Name) ([]toolchain.Tool, error)
	Path() string
}

// Config is what a Builder needs.
type Config struct {
	// Tools finds cmake, ninja, compilers and ccache. Required.
	Tools Tools
	// Env is what they get besides PATH, HOME, TMPDIR, LC_ALL and ccache's own, as KEY=value.
	Env []string
	// Host tells the cores and the memory there are. Nil means toolchain.ReadHost.
	Host func() (toolchain.Host, error)
	// Nice is added to the priority of everything that runs, 0 to 19. Zero means 10.
	Nice int
}

// New returns a Builder. It starts nothing.
func New(c Config) (*Builder, error) { return newBuilder(c) }

// Build makes r's targets. It blocks until they are made, ctx ends or the build fails, and no process of it is left
// then. Failures: ToolMissing names every missing tool, BuildFailed has the first error line in its metadata
// (first_error), DiskFull, InvalidParams for a recipe that is refused; a cancelled build wraps the cause.
func (b *Builder) Build(ctx context.Context, r Recipe, obs Observer) (Result, error) {
	return b.build(ctx, r, obs)
}
