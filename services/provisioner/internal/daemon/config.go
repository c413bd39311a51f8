// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
)

// Config is the configuration file. Flags overrule it, and it overrules the environment.
type Config struct {
	// Listen are the addresses to serve on: unix:///path or 127.0.0.1:port.
	Listen []string `yaml:"listen"`
	// StateDir is the store: engines, models, downloads and records.
	StateDir string `yaml:"state_dir"`
	// Roots are the folders that `file:` references, local repositories and external engines may lie in. None by default.
	Roots []string `yaml:"roots"`
	// Registries are where packages come from.
	Registries Registries `yaml:"registries"`
	// ToolPath is the colon-separated list of folders to look for git, cmake and the like in.
	ToolPath string `yaml:"tool_path"`
	// CancelGrace is how long work goes on after its last caller left; 0 means 10 s.
	CancelGrace time.Duration `yaml:"cancel_grace"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
}

// Registries are the addresses of package registries.
type Registries struct {
	// PyPI is a simple index. Empty means that of PIP_INDEX_URL, or else the public one.
	PyPI string `yaml:"pypi"`
	// NPM is an npm registry. Empty means that of NPM_CONFIG_REGISTRY, or else the public one.
	NPM string `yaml:"npm"`
}

const usage = `engine-provisioner gets or builds engines, stages models, and verifies both.

Usage: engine-provisioner [flags]

Without flags it serves on %s
and keeps its store in %s.
`

const notes = `Environment, unless the configuration says otherwise:
  PIP_INDEX_URL        index of pypi: packages
  NPM_CONFIG_REGISTRY  registry of npm: packages

Exit codes:
  0  it was asked to end
  1  it failed while it ran
  2  a flag or the configuration is wrong
  3  the state directory cannot be used
  4  an address could not be opened
`

// configure reads flags, file and environment. It writes to stdout, and returns flag.ErrHelp, if asked for help or the
// version.
func configure(version string, args []string, stdout io.Writer) (Config, error) {
	defaults := defaultConfig(daemonkit.PlacesOf(os.Geteuid(), os.Getenv), os.Getenv)
	line := daemonkit.NewCommandLine(name)
	var roots daemonkit.List
	line.Flags.Var(&roots, "root", "files of this machine may be taken from below this `folder` (repeatable; none by default)")
	help := daemonkit.Help{Usage: fmt.Sprintf(usage, defaults.Listen[0], defaults.StateDir), Notes: notes}
	if err := line.Parse(args, version, help, stdout); err != nil {
		return Config{}, err
	}
	config, err := daemonkit.ReadFile[Config](line.ConfigFile)
	if err != nil {
		return Config{}, err
	}
	config = overrule(config, Config{Listen: line.Listen, StateDir: line.StateDir, Roots: roots, LogLevel: line.LogLevel})
	config = overrule(defaults, config)
	return config, config.check()
}

// overrule returns base with every field that more has.
func overrule(base, more Config) Config {
	if len(more.Listen) > 0 {
		base.Listen = more.Listen
	}
	if len(more.Roots) > 0 {
		base.Roots = more.Roots
	}
	base.StateDir = cmp.Or(more.StateDir, base.StateDir)
	base.Registries.PyPI = cmp.Or(more.Registries.PyPI, base.Registries.PyPI)
	base.Registries.NPM = cmp.Or(more.Registries.NPM, base.Registries.NPM)
	base.ToolPath = cmp.Or(more.ToolPath, base.ToolPath)
	base.CancelGrace = cmp.Or(more.CancelGrace, base.CancelGrace)
	base.LogLevel = cmp.Or(more.LogLevel, base.LogLevel)
	return base
}

// check returns everything that is wrong, each with its key.
func (c Config) check() error {
	_, listen := daemonkit.ParseListens(c.Listen)
	errs := []error{
		listen,
		daemonkit.CheckFolder("state_dir", c.StateDir),
		daemonkit.CheckRoots("roots", c.Roots),
		rootsThere(c.Roots),
		daemonkit.CheckLevel("log_level", c.LogLevel),
	}
	for _, dir := range filepath.SplitList(c.ToolPath) {
		errs = append(errs, daemonkit.CheckFolder("tool_path", dir))
	}
	if c.CancelGrace < 0 {
		errs = append(errs, fmt.Errorf("cancel_grace: %s is negative", c.CancelGrace))
	}
	return errors.Join(errs...)
}

// rootsThere returns an error for each root that is no folder: what lies below it could never be used, and nobody would be
// told why.
func rootsThere(roots []string) error {
	var errs []error
	for _, root := range roots {
		info, err := os.Stat(root)
		switch {
		case !filepath.IsAbs(root): // said already
		case errors.Is(err, fs.ErrNotExist):
			errs = append(errs, fmt.Errorf("roots (--root): %q does not exist: make it, or leave it out", root))
		case err != nil:
			errs = append(errs, fmt.Errorf("roots (--root): %q cannot be used: %w", root, err))
		case !info.IsDir():
			errs = append(errs, fmt.Errorf("roots (--root): %q is not a folder: name the folder that it lies in", root))
		}
	}
	return errors.Join(errs...)
}

// defaultConfig is the configuration of a user who says nothing.
func defaultConfig(places daemonkit.Places, getenv func(string) string) Config {
	return Config{
		Listen:     []string{"unix://" + filepath.Join(places.Run, "engine-provisioner.sock")},
		StateDir:   filepath.Join(places.State, "provisioner"),
		Registries: Registries{PyPI: getenv("PIP_INDEX_URL"), NPM: getenv("NPM_CONFIG_REGISTRY")},
		LogLevel:   "info",
	}
}
