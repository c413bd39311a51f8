// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
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
	// Metrics says where Prometheus may ask.
	Metrics Metrics `yaml:"metrics"`
	// Restore says what is made of what an earlier daemon has left.
	Restore Restore `yaml:"restore"`
	// Shutdown says how the daemon ends.
	Shutdown Shutdown `yaml:"shutdown"`
}

// Metrics says where Prometheus may ask.
type Metrics struct {
	// Listen is unix:///path or 127.0.0.1:port; empty means nowhere.
	Listen string `yaml:"listen"`
}

// Restore says what is made of what an earlier daemon has left.
type Restore struct {
	// ParallelLoads is how many pools are loaded at once; 0 means 2.
	ParallelLoads int `yaml:"parallel_loads"`
	// Strays is what becomes of engines of ours that nobody has a record of: end or keep; empty means end.
	Strays string `yaml:"strays"`
}

// The values of Restore.Strays.
const (
	endStrays  = "end"
	keepStrays = "keep"
)

// The values of Shutdown.Engines.
const (
	drainEngines = "drain"
	leaveEngines = "leave"
)

// Shutdown says how the daemon ends.
type Shutdown struct {
	// Engines is what becomes of the engines: drain or leave; empty means leave under systemd, else drain.
	Engines string `yaml:"engines"`
	// DrainDeadline is how long requests in flight are waited for; 0 means 30 s.
	DrainDeadline time.Duration `yaml:"drain_deadline"`
}

const usage = `pool-managerd owns the engine processes of one node.

Usage: pool-managerd [flags]

Without flags it serves on %s,
asks the provisioner on %s
and keeps its state in %s.
`

const notes = `Exit codes:
  0  it was asked to end, and no engine is left, or the engines were left as configured
  1  it failed while it ran, or some engine could not be ended
  2  a flag or the configuration is wrong
  3  the state directory belongs to another pool-managerd, or cannot be used
  4  an address could not be opened
`

// configure reads flags and file. It writes to stdout, and returns flag.ErrHelp, if asked for help or the version.
func configure(version string, args []string, places daemonkit.Places, stdout io.Writer) (Config, error) {
	defaults := defaultConfig(places)
	line := daemonkit.NewCommandLine(name)
	var roots daemonkit.List
	provisioner := line.Flags.String("provisioner", "", "`address` of engine-provisioner")
	metrics := line.Flags.String("metrics-listen", "", "`address` of Prometheus metrics; none without it")
	engines := line.Flags.String("shutdown-engines", "", "what becomes of engines when the daemon ends: `drain or leave`")
	line.Flags.Var(&roots, "store-root", "execute files below this `folder` only (repeatable)")
	help := daemonkit.Help{Usage: fmt.Sprintf(usage, defaults.Listen[0], defaults.Provisioner, defaults.StateDir), Notes: notes}
	if err := line.Parse(args, version, help, stdout); err != nil {
		return Config{}, err
	}
	config, err := daemonkit.ReadFile[Config](line.ConfigFile)
	if err != nil {
		return Config{}, err
	}
	config = overrule(config, Config{
		Listen: line.Listen, StateDir: line.StateDir, Provisioner: *provisioner, StoreRoots: roots, LogLevel: line.LogLevel,
		Metrics: Metrics{Listen: *metrics}, Shutdown: Shutdown{Engines: *engines},
	})
	config = overrule(defaults, config)
	if err := config.check(); err != nil {
		return Config{}, err
	}
	config.HandoffDir = cmp.Or(config.HandoffDir, filepath.Join(config.StateDir, "handoff"))
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
	base.StateDir = cmp.Or(more.StateDir, base.StateDir)
	base.Provisioner = cmp.Or(more.Provisioner, base.Provisioner)
	base.HandoffDir = cmp.Or(more.HandoffDir, base.HandoffDir)
	base.LogLevel = cmp.Or(more.LogLevel, base.LogLevel)
	base.Metrics.Listen = cmp.Or(more.Metrics.Listen, base.Metrics.Listen)
	base.Restore.ParallelLoads = cmp.Or(more.Restore.ParallelLoads, base.Restore.ParallelLoads)
	base.Restore.Strays = cmp.Or(more.Restore.Strays, base.Restore.Strays)
	base.Shutdown.Engines = cmp.Or(more.Shutdown.Engines, base.Shutdown.Engines)
	base.Shutdown.DrainDeadline = cmp.Or(more.Shutdown.DrainDeadline, base.Shutdown.DrainDeadline)
	return base
}

// check returns everything that is wrong, each with its key.
func (c Config) check() error {
	_, listen := daemonkit.ParseListens(c.Listen)
	_, provisioner := wire.ParseAddress("provisioner", c.Provisioner)
	errs := []error{
		listen, provisioner,
		daemonkit.CheckFolder("state_dir", c.StateDir),
		daemonkit.CheckRoots("store_roots", c.StoreRoots),
		daemonkit.CheckLevel("log_level", c.LogLevel),
	}
	if c.HandoffDir != "" {
		errs = append(errs, daemonkit.CheckFolder("handoff_dir", c.HandoffDir))
	}
	if c.Metrics.Listen != "" {
		_, err := wire.ParseAddress("metrics.listen", c.Metrics.Listen)
		errs = append(errs, err)
	}
	if c.Restore.ParallelLoads < 0 {
		errs = append(errs, fmt.Errorf("restore.parallel_loads: %d is negative", c.Restore.ParallelLoads))
	}
	errs = append(errs, oneOf("restore.strays", c.Restore.Strays, endStrays, keepStrays),
		oneOf("shutdown.engines", c.Shutdown.Engines, drainEngines, leaveEngines))
	if c.Shutdown.DrainDeadline < 0 {
		errs = append(errs, fmt.Errorf("shutdown.drain_deadline: %s is negative", c.Shutdown.DrainDeadline))
	}
	return errors.Join(errs...)
}

func oneOf(key, value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return fmt.Errorf("%s: %q is none of %s", key, value, strings.Join(values, ", "))
}

func defaultConfig(places daemonkit.Places) Config {
	engines := drainEngines
	if daemonkit.UnderSystemd() { // A restart or an upgrade of the unit must not be an outage.
		engines = leaveEngines
	}
	return Config{
		Listen:      []string{"unix://" + filepath.Join(places.Run, "pool-managerd.sock")},
		StateDir:    filepath.Join(places.State, "pool-manager"),
		Provisioner: "unix://" + filepath.Join(places.Run, "engine-provisioner.sock"),
		StoreRoots:  []string{filepath.Join(places.State, "provisioner")},
		LogLevel:    "info",
		Restore:     Restore{Strays: endStrays},
		Shutdown:    Shutdown{Engines: engines, DrainDeadline: defaultDrainDeadline},
	}
}
