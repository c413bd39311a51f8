// SPDX-License-Identifier: Apache-2.0

// Package preflight tells what this machine can prepare: which tools there are, which ways to get each engine kind they
// are enough for, and whether the store can be used. It changes nothing and may be used by several goroutines at once.
package preflight

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// lowBytes is less than a small engine's build or a small model takes.
const lowBytes = 1 << 30

// Tools reports on the programs of this machine.
type Tools interface {
	Report(ctx context.Context) (toolchain.Report, error)
}

// Checker checks. All fields but Roots are required.
type Checker struct {
	Tools   Tools
	Catalog *engines.Catalog
	// StoreRoot is the store's folder.
	StoreRoot string
	// Roots are where files of this machine may be taken from.
	Roots []string
}

// Report is what a check found.
type Report struct {
	Tools   []toolchain.Tool
	Engines []Engine
	Store   Store
}

// Engine is one way to get one kind.
type Engine struct {
	Kind string
	Mode engines.Mode
	// Missing are the tools that it needs and that cannot be used; none means that it is available.
	Missing []toolchain.Name
}

// Store is the store's file system.
type Store struct {
	Path      string
	FreeBytes int64
	Roots     []string
	// Problem is empty if all is well.
	Problem string
}

// Check looks at everything. Only the end of ctx is an error; what is missing is in the report.
func (c Checker) Check(ctx context.Context) (Report, error) {
	found, err := c.Tools.Report(ctx)
	if err != nil {
		return Report{}, fmt.Errorf("look for tools: %w", err)
	}
	usable := make(map[toolchain.Name]bool, len(found.Tools))
	for _, tool := range found.Tools {
		usable[tool.Name] = tool.Usable()
	}
	report := Report{Tools: found.Tools, Store: c.store()}
	for _, kind := range c.Catalog.Kinds() {
		for _, way := range kind.Traits().Ways {
			engine := Engine{Kind: kind.Traits().Name, Mode: way.Mode}
			for _, name := range way.Tools {
				if !usable[name] {
					engine.Missing = append(engine.Missing, name)
				}
			}
			report.Engines = append(report.Engines, engine)
		}
	}
	return report, nil
}

func (c Checker) store() Store {
	s := Store{Path: c.StoreRoot, Roots: c.Roots}
	var stat unix.Statfs_t
	if err := unix.Statfs(c.StoreRoot, &stat); err != nil {
		s.Problem = fmt.Sprintf("the store's file system cannot be read: %v", err)
		return s
	}
	s.FreeBytes = int64(stat.Bavail) * stat.Bsize
	switch err := unix.Access(c.StoreRoot, unix.W_OK|unix.X_OK); {
	case err != nil:
		s.Problem = fmt.Sprintf("the store cannot be written: %v", err)
	case s.FreeBytes < lowBytes:
		s.Problem = fmt.Sprintf("the store has %d MiB free, which is too little for most engines and models", s.FreeBytes>>20)
	}
	return s
}
