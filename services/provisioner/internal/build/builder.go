// SPDX-License-Identifier: Apache-2.0

package build

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// defaultNice lets everything that serves go first.
const defaultNice = 10

// Builder builds.
type Builder struct {
	tools Tools
	env   []string
	host  func() (toolchain.Host, error)
	nice  int
}

func newBuilder(c Config) (*Builder, error) {
	if c.Tools == nil {
		return nil, errors.New("build: Tools is required")
	}
	if c.Nice < 0 || c.Nice > 19 {
		return nil, fmt.Errorf("build: nice %d is not within 0 to 19", c.Nice)
	}
	b := &Builder{tools: c.Tools, env: append([]string{}, c.Env...), host: c.Host, nice: c.Nice}
	if b.host == nil {
		b.host = toolchain.ReadHost
	}
	if b.nice == 0 {
		b.nice = defaultNice
	}
	return b, nil
}

func (b *Builder) build(ctx context.Context, r Recipe, obs Observer) (res Result, err error) {
	if err := r.check(); err != nil {
		return Result{}, err
	}
	k, err := b.kit(ctx, r)
	if err != nil {
		return Result{}, err
	}
	host, err := b.host()
	if err != nil {
		return Result{}, err
	}
	dir, err := openFolder(r.BuildDir, r.CCacheDir)
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, dir.close()) }()

	res = Result{Jobs: r.jobs(host), CCache: k.ccache.Usable()}
	w := &work{Builder: b, recipe: r, kit: k, dir: dir, meter: meter{report: obs.Progress, line: obs.Line}}
	if !dir.configured(r.fingerprint(k)) {
		begin := time.Now()
		if err := w.configure(ctx); err != nil {
			return Result{}, err
		}
		res.Configured = time.Since(begin)
	}
	begin := time.Now()
	if err := w.compile(ctx, res.Jobs); err != nil {
		return Result{}, err
	}
	res.Compiled = time.Since(begin)
	return res, nil
}

// kit finds the tools. ccache is a wish.
func (b *Builder) kit(ctx context.Context, r Recipe) (kit, error) {
	t, err := b.tools.Require(ctx, toolchain.CMake, toolchain.Ninja, toolchain.CC, toolchain.CXX)
	if err != nil {
		return kit{}, err
	}
	k := kit{cmake: t[0], ninja: t[1], cc: t[2], cxx: t[3]}
	if r.CCacheDir == "" {
		return k, nil
	}
	k.ccache, err = b.tools.Find(ctx, toolchain.CCache)
	if err != nil && reason.Of(err) != reason.ToolMissing {
		return kit{}, err
	}
	return k, nil
}

// work is one build under way.
type work struct {
	*Builder
	recipe Recipe
	kit    kit
	dir    *folder
	meter  meter
}

func (w *work) configure(ctx context.Context) error {
	if err := w.dir.clear(); err != nil {
		return err
	}
	w.meter.start(Configure)
	err := w.run(ctx, "configure", runner.Command{Path: w.kit.cmake.Path, Args: w.recipe.configuration(w.kit)})
	if err != nil {
		return err
	}
	if err := w.dir.keep(w.recipe.fingerprint(w.kit)); err != nil {
		return err
	}
	w.meter.finish()
	return nil
}

func (w *work) compile(ctx context.Context, jobs int) error {
	w.meter.start(Compile)
	err := w.run(ctx, "compile", runner.Command{
		Path: w.kit.ninja.Path,
		Args: append([]string{"-j", fmt.Sprint(jobs)}, w.recipe.Targets...),
		// ninja has each compiler in a process group of its own, and ends them all when it gets this.
		DeathSignal: unix.SIGTERM,
	})
	if err != nil {
		return err
	}
	w.meter.finish()
	return nil
}

// run runs one tool and says what its failure means.
func (w *work) run(ctx context.Context, phase string, c runner.Command) error {
	var first firstError
	c.Dir, c.Env, c.Nice, c.Log, c.Owner = w.dir.path, w.environment(), w.nice, w.recipe.Log, w.dir.path
	c.Lines = func(stream runner.Stream, line string) {
		first.see(line)
		w.meter.see(stream, line)
	}
	_, err := runner.Run(ctx, c)
	var exit *runner.ExitError
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return diskFull(phase, err) // the log could not be written
	}
	if ctx.Err() != nil || !errors.As(err, &exit) {
		return err
	}
	if first.noSpace {
		return diskFull(phase, err)
	}
	line := first.line()
	if line == "" {
		line = exit.Error()
	}
	return reason.New(reason.BuildFailed, phase+": "+line, reason.Cause(err), reason.Remedy(first.remedy()),
		reason.Meta("first_error", line), reason.Meta("phase", phase))
}

func (w *work) environment() []string {
	env := append([]string{
		"PATH=" + w.tools.Path(), "LC_ALL=C", "HOME=" + w.dir.home(), "TMPDIR=" + w.dir.temp(),
		"NINJA_STATUS=" + statusMark + "[%f/%t] ",
		// An archive has no repository of its own, and one that happens to be above it says nothing about it.
		"GIT_CEILING_DIRECTORIES=" + filepath.Dir(w.recipe.SourceDir), "GIT_CONFIG_NOSYSTEM=1",
	}, w.env...)
	if w.kit.ccache.Usable() {
		env = append(env, "CCACHE_DIR="+w.recipe.CCacheDir)
	}
	return env
}

func diskFull(attempt string, err error) error {
	return reason.New(reason.DiskFull, attempt, reason.Cause(err),
		reason.Remedy("free space in the provisioner's state folder and repeat; the build goes on where it was"))
}
