// SPDX-License-Identifier: Apache-2.0

// Package engines says what the provisioner has to know of an engine kind, and holds the kinds it was given.
//
// All knowledge of one engine stands in one folder below this one: how it is built, which files of a package it is,
// which of its flags Roundhouse sets itself, how it is asked for its version, how it is launched and what its runner has
// to know. A Kind is a description: it starts nothing, stores nothing, and may be used by several goroutines at once.
// The only programs of an engine that ever run are the short probes that a Kind makes through an Ask.
package engines

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// Mode is how an engine is got.
type Mode = enginev1.ProvisioningMode

// Kind is one kind of engine. Its calls change nothing but the folder that Complete is given.
type Kind interface {
	// Traits returns what is the same for every engine of the kind. Callers do not change it.
	Traits() Traits
	// Recipe says how the kind is built from source for build. It is asked only if SOURCE is among the kind's ways.
	Recipe(build *enginev1.SourceBuild) Recipe
	// Complete makes the files of a package in dir something that can be run, and says how. executable is the path that
	// the spec names, or empty; interpreter is the absolute path of Traits.Interpreter, or empty. A package without what
	// it takes is ENGINE_NOT_FOUND.
	Complete(ctx context.Context, dir, executable, interpreter string, ask Ask) (Layout, error)
	// Probe asks a program for its version and flags, within ask's limits. A program that is not of this kind is
	// ENGINE_NOT_FOUND.
	Probe(ctx context.Context, program Program, ask Ask) (Probe, error)
	// Launch says how program serves one model, and how it behaves then. It changes nothing. A flag that the engine
	// does not have, or that Roundhouse sets itself, is INVALID_PARAMS.
	Launch(program Program, probe Probe, serving Serving) (Launch, error)
}

// Traits is what every engine of a kind has in common.
type Traits struct {
	// Name is the kind, as in EngineSpec.kind.
	Name string
	// Ways are the modes in which the kind can be got, and what each needs.
	Ways []Way
	// Owned are the flags that a spec must not set.
	Owned []OwnedFlag
	// Interpreter is the tool that a package of the kind is run by; empty if it holds a program.
	Interpreter toolchain.Name
	// Revision changes when Complete or the files that it adds do.
	Revision string
	// Packages are the normalised names of the packages that hold the kind; empty means any.
	Packages []string
}

// Way is one mode of a kind.
type Way struct {
	Mode Mode
	// Tools are the programs that it needs.
	Tools []toolchain.Name
}

// Layout says how the files of an engine are run. Its paths are relative to the engine's folder.
type Layout struct {
	// Executable is the program.
	Executable string `json:"executable"`
	// Args come before all others; Script, if any, comes after them.
	Args   []string `json:"args,omitempty"`
	Script string   `json:"script,omitempty"`
	// Env is what the program needs besides what the kind gives every launch.
	Env map[string]string `json:"env,omitempty"`
	// LibraryDirs hold its shared libraries.
	LibraryDirs []string `json:"library_dirs,omitempty"`
}

// Recipe is how a kind is built with CMake.
type Recipe struct {
	// Revision changes when the same definitions are to give another build.
	Revision string
	// Definitions are CMake variables and their values.
	Definitions map[string]string
	// Targets are what is made.
	Targets []string
	// Output is the path of the executable below the build folder.
	Output string
}

// Program is an engine that can be run on this machine. Its paths are absolute.
type Program struct {
	// Executable is what is executed.
	Executable string
	// Prefix are the arguments that come before all others.
	Prefix []string
	// Env is what it needs besides what its kind gives every launch.
	Env map[string]string
	// Dir is the folder of the engine's files.
	Dir string
	// LibraryDirs hold its shared libraries.
	LibraryDirs []string
	// Files are what is executed or loaded as code.
	Files []*enginev1.ExecutedFile
}

// Program returns the engine whose files lie in dir.
func (l Layout) Program(dir string, files []*enginev1.ExecutedFile) Program {
	p := Program{
		Executable: filepath.Join(dir, l.Executable), Prefix: slices.Clone(l.Args), Env: l.Env, Dir: dir, Files: files,
	}
	if l.Script != "" {
		p.Prefix = append(p.Prefix, filepath.Join(dir, l.Script))
	}
	for _, libraries := range l.LibraryDirs {
		p.LibraryDirs = append(p.LibraryDirs, filepath.Join(dir, libraries))
	}
	return p
}

// Ask runs program with env added to its own and args after its prefix, for a few seconds at most, and returns all that
// it printed. An end with another code than 0 is ENGINE_NOT_FOUND with the last line.
type Ask func(ctx context.Context, program Program, env map[string]string, args ...string) (string, error)

// Probe is what a program says of itself.
type Probe struct {
	// Version is never empty.
	Version string `json:"version"`
	// Flags are those it lists for --help.
	Flags []Flag `json:"flags"`
}

// Serving is one model and how it is served.
type Serving struct {
	// Model has its first file and its id.
	Model *enginev1.PreparedModel
	// ContextTokens is the context of one slot; Slots is at least 1.
	ContextTokens, Slots uint32
	// Flags are the spec's own.
	Flags []string
}

// Launch is how an engine is run.
type Launch struct {
	Process  *enginev1.ProcessLaunch
	Contract *enginev1.RunContract
}

// Catalog is the kinds that a provisioner has.
type Catalog struct {
	kinds []Kind
}

// NewCatalog returns the catalog of kinds. Two kinds of one name are an error.
func NewCatalog(kinds ...Kind) (*Catalog, error) {
	c := &Catalog{kinds: slices.SortedFunc(slices.Values(kinds), func(a, b Kind) int {
		return strings.Compare(a.Traits().Name, b.Traits().Name)
	})}
	for i, kind := range c.kinds[min(1, len(c.kinds)):] {
		if name := kind.Traits().Name; name == c.kinds[i].Traits().Name {
			return nil, fmt.Errorf("engine kind %s is there twice", name)
		}
	}
	return c, nil
}

// Kinds returns every kind, by name.
func (c *Catalog) Kinds() []Kind { return slices.Clone(c.kinds) }

// Find returns the kind of name, or ENGINE_NOT_FOUND for field with the names that there are.
func (c *Catalog) Find(field, name string) (Kind, error) {
	names := make([]string, 0, len(c.kinds))
	for _, kind := range c.kinds {
		if kind.Traits().Name == name {
			return kind, nil
		}
		names = append(names, kind.Traits().Name)
	}
	return nil, reason.New(reason.EngineNotFound, fmt.Sprintf("unknown engine kind %q", name), reason.Field(field),
		reason.Meta("known", strings.Join(names, ",")), reason.Remedy("use one of "+strings.Join(names, ", ")))
}

// Way returns how the kind is got in mode; false means that it cannot be.
func (t Traits) Way(mode Mode) (Way, bool) {
	for _, way := range t.Ways {
		if way.Mode == mode {
			return way, true
		}
	}
	return Way{}, false
}

// ModeOf returns the mode that spec asks for.
func ModeOf(spec *enginev1.EngineSpec) Mode {
	switch spec.GetSource().(type) {
	case *enginev1.EngineSpec_SourceBuild:
		return enginev1.ProvisioningMode_PROVISIONING_MODE_SOURCE
	case *enginev1.EngineSpec_Package:
		return enginev1.ProvisioningMode_PROVISIONING_MODE_PACKAGE
	case *enginev1.EngineSpec_External:
		return enginev1.ProvisioningMode_PROVISIONING_MODE_EXTERNAL
	default:
		return enginev1.ProvisioningMode_PROVISIONING_MODE_UNSPECIFIED
	}
}

// ModeName returns a mode as people write it, such as SOURCE.
func ModeName(mode Mode) string { return strings.TrimPrefix(mode.String(), "PROVISIONING_MODE_") }
