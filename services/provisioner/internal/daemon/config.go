// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
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

Flags:
`

const exitCodes = `
Environment, unless the configuration says otherwise:
  PIP_INDEX_URL        index of pypi: packages
  NPM_CONFIG_REGISTRY  registry of npm: packages

Exit codes:
  0  it was asked to end
  1  it failed while it ran
  2  a flag or the configuration is wrong
  3  the state directory cannot be used
  4  an address could not be opened
`

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return fmt.Sprint([]string(*l)) }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// configure reads flags, file and environment. It writes to stdout, and returns flag.ErrHelp, if asked for help or the
// version.
func configure(version string, args []string, stdout io.Writer) (Config, error) {
	defaults := defaultConfig(os.Geteuid(), os.Getenv)
	flags := flag.NewFlagSet("engine-provisioner", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var listen, roots list
	file := flags.String("config", "", "read this YAML `file`")
	flags.Var(&listen, "listen", "serve on this `address`: unix:///path or 127.0.0.1:port (repeatable)")
	stateDir := flags.String("state-dir", "", "keep the store in this `folder`")
	flags.Var(&roots, "root", "files of this machine may be taken from below this `folder` (repeatable; none by default)")
	level := flags.String("log-level", "", "log from this `level` on: debug, info, warn, error")
	showVersion := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(stdout, usage, defaults.Listen[0], defaults.StateDir)
			flags.SetOutput(stdout)
			flags.PrintDefaults()
			fmt.Fprint(stdout, exitCodes)
		}
		return Config{}, err
	}
	if flags.NArg() > 0 {
		return Config{}, fmt.Errorf("argument %q is not understood; see --help", flags.Arg(0))
	}
	if *showVersion {
		fmt.Fprintln(stdout, version)
		return Config{}, flag.ErrHelp
	}
	config, err := readConfig(*file)
	if err != nil {
		return Config{}, err
	}
	config = overrule(config, Config{Listen: listen, StateDir: *stateDir, Roots: roots, LogLevel: *level})
	config = overrule(defaults, config)
	return config, config.check()
}

// readConfig reads a file, or nothing if there is no path. A key that is not known is an error.
func readConfig(path string) (Config, error) {
	var config Config
	if path == "" {
		return config, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return config, fmt.Errorf("--config: %w", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	if err := decoder.Decode(&config); err != nil && !errors.Is(err, io.EOF) {
		return config, fmt.Errorf("--config %s: %w", path, err)
	}
	return config, nil
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
	var errs []error
	for _, address := range c.Listen {
		if _, err := serverkit.ParseListen(address); err != nil {
			errs = append(errs, err)
		}
	}
	if !filepath.IsAbs(c.StateDir) {
		errs = append(errs, fmt.Errorf("state_dir: %q is not an absolute path", c.StateDir))
	}
	for _, root := range c.Roots {
		if !filepath.IsAbs(root) || filepath.Clean(root) == "/" {
			errs = append(errs, fmt.Errorf("roots: %q is not an absolute path below /", root))
		}
	}
	for _, dir := range filepath.SplitList(c.ToolPath) {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("tool_path: %q is not an absolute path", dir))
		}
	}
	if c.CancelGrace < 0 {
		errs = append(errs, fmt.Errorf("cancel_grace: %s is negative", c.CancelGrace))
	}
	if _, err := serverkit.NewLogger(c.LogLevel, discard{}); err != nil {
		errs = append(errs, fmt.Errorf("log_level: %w", err))
	}
	return errors.Join(errs...)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Sync() error                 { return nil }

// defaultConfig is the configuration of a user who says nothing: root's places are those of the system, another user's
// those of the XDG base directories.
func defaultConfig(uid int, getenv func(string) string) Config {
	run, state := "/run/roundhouse", "/var/lib/roundhouse"
	if uid != 0 {
		run = fmt.Sprintf("/tmp/roundhouse-%d", uid)
		if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
			run = filepath.Join(dir, "roundhouse")
		}
		state = filepath.Join(getenv("HOME"), ".local/state/roundhouse")
		if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
			state = filepath.Join(dir, "roundhouse")
		}
	}
	return Config{
		Listen:     []string{"unix://" + filepath.Join(run, "engine-provisioner.sock")},
		StateDir:   filepath.Join(state, "provisioner"),
		Registries: Registries{PyPI: getenv("PIP_INDEX_URL"), NPM: getenv("NPM_CONFIG_REGISTRY")},
		LogLevel:   "info",
	}
}
