// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
)

// defaultDrainDeadline is how long requests in flight are waited for when the node is drained. systemd gives a service
// 90 s to stop; this leaves the engines time to end.
const defaultDrainDeadline = 30 * time.Second

// Config is the configuration file. Flags overrule it.
type Config struct {
	// Listen are the addresses to serve on: unix:///path or 127.0.0.1:port.
	Listen []string `yaml:"listen"`
	// StateDir holds the records, the logs of engines and, unless HandoffDir says otherwise, the handoff files.
	StateDir string `yaml:"state_dir"`
	// Provisioner is the address of engine-provisioner.
	Provisioner string `yaml:"provisioner"`
	// StoreRoots are the folders below which files may be executed: the provisioner's store, and the roots of external
	// engines.
	StoreRoots []string `yaml:"store_roots"`
	// HandoffDir is where a file for each ready replica is.
	HandoffDir string `yaml:"handoff_dir"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
	// Shutdown says how the daemon ends.
	Shutdown Shutdown `yaml:"shutdown"`
}

// Shutdown says how the daemon ends.
type Shutdown struct {
	// DrainDeadline is how long requests in flight are waited for; 0 means 30 s.
	DrainDeadline time.Duration `yaml:"drain_deadline"`
}

const usage = `pool-managerd owns the engine processes of one node.

Usage: pool-managerd [flags]

Without flags it serves on %s,
asks the provisioner on %s
and keeps its state in %s.

Flags:
`

const exitCodes = `
Exit codes:
  0  it was asked to end, and no engine is left
  1  it failed while it ran, or some engine could not be ended
  2  a flag or the configuration is wrong
  3  the state directory belongs to another pool-managerd, or cannot be used
  4  an address could not be opened
`

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return fmt.Sprint([]string(*l)) }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// configure reads flags and file. It writes to stdout, and returns flag.ErrHelp, if asked for help or the version.
func configure(version string, args []string, stdout io.Writer) (Config, error) {
	defaults := defaultConfig(placesOf(os.Geteuid(), os.Getenv))
	flags := flag.NewFlagSet("pool-managerd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var listen, roots list
	file := flags.String("config", "", "read this YAML `file`")
	flags.Var(&listen, "listen", "serve on this `address`: unix:///path or 127.0.0.1:port (repeatable)")
	stateDir := flags.String("state-dir", "", "keep state in this `folder`")
	provisioner := flags.String("provisioner", "", "`address` of engine-provisioner")
	flags.Var(&roots, "store-root", "execute files below this `folder` only (repeatable)")
	level := flags.String("log-level", "", "log from this `level` on: debug, info, warn, error")
	showVersion := flags.Bool("version", false, "print the version and end")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(stdout, usage, defaults.Listen[0], defaults.Provisioner, defaults.StateDir)
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
	config = overrule(config, Config{
		Listen: listen, StateDir: *stateDir, Provisioner: *provisioner, StoreRoots: roots, LogLevel: *level,
	})
	config = overrule(defaults, config)
	if config.HandoffDir == "" {
		config.HandoffDir = filepath.Join(config.StateDir, "handoff")
	}
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
	if len(more.StoreRoots) > 0 {
		base.StoreRoots = more.StoreRoots
	}
	if more.Shutdown.DrainDeadline != 0 {
		base.Shutdown.DrainDeadline = more.Shutdown.DrainDeadline
	}
	for _, field := range []struct{ to, from *string }{
		{&base.StateDir, &more.StateDir},
		{&base.Provisioner, &more.Provisioner},
		{&base.HandoffDir, &more.HandoffDir},
		{&base.LogLevel, &more.LogLevel},
	} {
		if *field.from != "" {
			*field.to = *field.from
		}
	}
	return base
}

// check returns everything that is wrong, each with its key.
func (c Config) check() error {
	var errs []error
	for _, address := range c.Listen {
		if _, err := serverkit.ParseListen(address); err != nil {
			errs = append(errs, fmt.Errorf("listen: %w", err))
		}
	}
	if conn, err := client.Dial(c.Provisioner); err != nil {
		errs = append(errs, fmt.Errorf("provisioner: %w", err))
	} else {
		errs = append(errs, conn.Close())
	}
	for _, dir := range []struct{ key, path string }{{"state_dir", c.StateDir}, {"handoff_dir", c.HandoffDir}} {
		if !filepath.IsAbs(dir.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", dir.key, dir.path))
		}
	}
	for _, root := range c.StoreRoots {
		if !filepath.IsAbs(root) || filepath.Clean(root) == "/" {
			errs = append(errs, fmt.Errorf("store_roots: %q is not an absolute path below /", root))
		}
	}
	if _, err := serverkit.NewLogger(c.LogLevel, discard{}); err != nil {
		errs = append(errs, fmt.Errorf("log_level: %w", err))
	}
	if c.Shutdown.DrainDeadline < 0 {
		errs = append(errs, fmt.Errorf("shutdown.drain_deadline: %s is negative", c.Shutdown.DrainDeadline))
	}
	return errors.Join(errs...)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) Sync() error                 { return nil }

// places are the folders that a user's daemons use unless told otherwise.
type places struct {
	run, state string
}

// placesOf returns the places of a user: those of the system for root, else those of the XDG base directories.
func placesOf(uid int, getenv func(string) string) places {
	if uid == 0 {
		return places{run: "/run/roundhouse", state: "/var/lib/roundhouse"}
	}
	p := places{run: fmt.Sprintf("/tmp/roundhouse-%d", uid), state: filepath.Join(getenv("HOME"), ".local/state/roundhouse")}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		p.run = filepath.Join(dir, "roundhouse")
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		p.state = filepath.Join(dir, "roundhouse")
	}
	return p
}

func defaultConfig(p places) Config {
	return Config{
		Listen:      []string{"unix://" + filepath.Join(p.run, "pool-managerd.sock")},
		StateDir:    filepath.Join(p.state, "pool-manager"),
		Provisioner: "unix://" + filepath.Join(p.run, "engine-provisioner.sock"),
		StoreRoots:  []string{filepath.Join(p.state, "provisioner")},
		LogLevel:    "info",
		Shutdown:    Shutdown{DrainDeadline: defaultDrainDeadline},
	}
}
