// SPDX-License-Identifier: Apache-2.0

package daemonkit

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

// List is the value of a flag that may be given several times.
type List []string

// String joins the values with commas.
func (l *List) String() string { return strings.Join(*l, ",") }

// Set adds a value.
func (l *List) Set(value string) error {
	*l = append(*l, value)
	return nil
}

// CommandLine is what was said on the command line of a daemon. What was not said is empty.
type CommandLine struct {
	// Flags has the flags below, and takes those of one daemon before Parse.
	Flags *flag.FlagSet
	// ConfigFile is the path of a configuration file.
	ConfigFile string
	// Listen are addresses to serve on.
	Listen List
	// StateDir is where the daemon keeps what it must remember.
	StateDir string
	// LogLevel is debug, info, warn or error.
	LogLevel string

	version bool
}

// NewCommandLine returns a CommandLine of the program with this name.
func NewCommandLine(name string) *CommandLine {
	c := &CommandLine{Flags: flag.NewFlagSet(name, flag.ContinueOnError)}
	c.Flags.SetOutput(io.Discard)
	c.Flags.StringVar(&c.ConfigFile, "config", "", "read this YAML `file`")
	c.Flags.Var(&c.Listen, "listen", "serve on this `address`: unix:///path or 127.0.0.1:port (repeatable)")
	c.Flags.StringVar(&c.StateDir, "state-dir", "", "keep state in this `folder`")
	c.Flags.StringVar(&c.LogLevel, "log-level", "", "log from this `level` on: debug, info, warn, error")
	c.Flags.BoolVar(&c.version, "version", false, "print the version and end")
	return c
}

// Help is what --help says around the flags.
type Help struct {
	// Usage says what the program is and how it is called.
	Usage string
	// Notes say the rest: its environment, its exit codes.
	Notes string
}

// Parse reads the arguments, the program's own name not included. When they ask for help or the version, that is written
// to stdout and the error is flag.ErrHelp. An argument that is no flag is an error.
func (c *CommandLine) Parse(args []string, version string, help Help, stdout io.Writer) error {
	err := c.Flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintf(stdout, "%s\nFlags:\n", help.Usage)
		c.Flags.SetOutput(stdout)
		c.Flags.PrintDefaults()
		fmt.Fprintf(stdout, "\n%s", help.Notes)
		return err
	case err != nil:
		return fmt.Errorf("%w; see --help", err)
	case c.Flags.NArg() > 0:
		return fmt.Errorf("argument %q is not understood; see --help", c.Flags.Arg(0))
	case c.version:
		fmt.Fprintln(stdout, version)
		return flag.ErrHelp
	}
	return nil
}
