// SPDX-License-Identifier: Apache-2.0

// Package toolchain finds the programs that preparing an engine needs, and says what is missing and how to get it.
//
// A Detector looks along one configured PATH, asks each program for its version, and remembers the answer for as long
// as the program's file stays the same; a look-up of known tools costs some microseconds and no process. It installs
// nothing and changes nothing. Its methods may be called at once.
package toolchain

import (
	"context"
	"strings"
)

// Name is a tool.
type Name string

// The tools.
const (
	Git    Name = "git"
	CMake  Name = "cmake"
	Ninja  Name = "ninja"
	CCache Name = "ccache"
	CC     Name = "cc"
	CXX    Name = "c++"
	Python Name = "python3"
)

// Tool is one program, found or not.
type Tool struct {
	// Name is which tool.
	Name Name
	// Path is the absolute path to run; empty when none was found.
	Path string
	// Version is its version, such as 3.25.1; empty when none was found.
	Version string
	// Identity tells two builds of the tool apart: what it prints about itself. Empty when none was found.
	Identity string
	// NeededFor says what needs it, for people.
	NeededFor string
	// Optional is set for a tool whose work can be done without it, slower.
	Optional bool
	// Problem says why it cannot be used: not found, too old, broken. Empty when all is well.
	Problem string
	// Remedy says how to get it; empty when all is well.
	Remedy string
}

// Usable tells whether the tool was found and is good enough.
func (t Tool) Usable() bool { return t.Path != "" && t.Problem == "" }

// Report is what this machine has.
type Report struct {
	// Tools lists every tool in a fixed order.
	Tools []Tool
	// Host is the machine.
	Host Host
}

// Config is what a Detector needs.
type Config struct {
	// Path is the colon-separated list of absolute folders to look in, and the PATH that tools get.
	// Empty means DefaultPath.
	Path string
	// Env is what else the tools get, as KEY=value. Empty means nothing but PATH and LC_ALL.
	Env []string
}

// DefaultPath is where distributions put tools.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// New returns a Detector. It looks for nothing yet. A relative folder in Path is an error.
func New(c Config) (*Detector, error) { return newDetector(c) }

// Path is the PATH that tools are looked for in and get.
func (d *Detector) Path() string { return d.path }

// Find returns one tool. When it is missing, too old or broken the error carries ToolMissing with the remedy, and the
// Tool says the same.
func (d *Detector) Find(ctx context.Context, name Name) (Tool, error) {
	tools, err := d.Require(ctx, name)
	if len(tools) == 1 {
		return tools[0], err
	}
	return Tool{Name: name}, err
}

// Require returns the tools in the order asked for. When some cannot be used, one ToolMissing error names all of
// them with their remedies; the tools are returned besides.
func (d *Detector) Require(ctx context.Context, names ...Name) ([]Tool, error) {
	return d.require(ctx, names)
}

// Report looks for every tool. A missing tool is no error; a cancelled context is.
func (d *Detector) Report(ctx context.Context) (Report, error) { return d.report(ctx) }

// Identity tells toolchains apart whose compilers may give different binaries: both compilers' and the linker's full
// version lines and the target triple. Paths, cmake, ninja and ccache do not change what the compilers emit and are
// left out. It is stable across reinstalls of the same packages. A missing compiler gives ToolMissing.
func (d *Detector) Identity(ctx context.Context) (string, error) {
	tools, err := d.Require(ctx, CC, CXX)
	if err != nil {
		return "", err
	}
	return strings.Join([]string{tools[0].Identity, tools[1].Identity}, "; "), nil
}
