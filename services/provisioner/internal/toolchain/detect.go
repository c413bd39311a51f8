// SPDX-License-Identifier: Apache-2.0

package toolchain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
)

// Detector finds tools and remembers them.
type Detector struct {
	path string
	env  []string

	mu sync.Mutex
	// known holds what was asked, by tool and path.
	known map[candidate]finding
}

type candidate struct {
	name Name
	path string
}

// finding is a tool and the files that say so. A broken tool, whose cause may lie in files that are not known, is
// passed over for as long as a later candidate is usable and nobody asks for a Report.
type finding struct {
	tool   Tool
	files  []stamp
	broken bool
}

// stamp tells whether a file is still the one it was.
type stamp struct {
	path        string
	size, mtime int64
}

func newDetector(c Config) (*Detector, error) {
	if c.Path == "" {
		c.Path = DefaultPath
	}
	for _, dir := range filepath.SplitList(c.Path) {
		if !filepath.IsAbs(dir) {
			return nil, fmt.Errorf("tool path: folder %q is not absolute", dir)
		}
	}
	env := append([]string{}, c.Env...)
	return &Detector{
		path:  c.Path,
		env:   append(env, "PATH="+c.Path, "LC_ALL=C"),
		known: map[candidate]finding{},
	}, nil
}

func (d *Detector) report(ctx context.Context) (Report, error) {
	host, err := ReadHost()
	if err != nil {
		return Report{}, err
	}
	d.forgetBroken()
	tools, err := d.findAll(ctx, catalog())
	return Report{Tools: tools, Host: host}, err
}

func (d *Detector) require(ctx context.Context, names []Name) ([]Tool, error) {
	specs := make([]spec, 0, len(names))
	all := catalog()
	for _, name := range names {
		known := false
		for _, s := range all {
			if s.name == name {
				specs, known = append(specs, s), true
			}
		}
		if !known {
			return nil, fmt.Errorf("require tool %q: no such tool", name)
		}
	}
	tools, err := d.findAll(ctx, specs)
	if err != nil {
		return nil, err
	}
	return tools, Missing(tools)
}

// Missing returns nil if all tools are usable, else one ToolMissing error that names each that is not, with its remedy.
func Missing(tools []Tool) error {
	var names, problems, remedies []string
	for _, t := range tools {
		if t.Usable() {
			continue
		}
		names = append(names, string(t.Name))
		problems = append(problems, fmt.Sprintf("%s: %s (needed for %s)", t.Name, t.Problem, t.NeededFor))
		remedies = append(remedies, fmt.Sprintf("%s: %s", t.Name, t.Remedy))
	}
	if len(names) == 0 {
		return nil
	}
	return reason.New(reason.ToolMissing, strings.Join(problems, "; "),
		reason.Remedy(strings.Join(remedies, "; ")), reason.Meta("tools", strings.Join(names, ",")))
}

// findAll looks for all at once and keeps their order.
func (d *Detector) findAll(ctx context.Context, specs []spec) ([]Tool, error) {
	tools := make([]Tool, len(specs))
	errs := make([]error, len(specs))
	var all sync.WaitGroup
	for i, s := range specs {
		if tool, ok := d.recall(s); ok {
			tools[i] = tool
			continue
		}
		all.Go(func() { tools[i], errs[i] = d.find(ctx, s) })
	}
	all.Wait()
	return tools, errors.Join(errs...)
}

// recall returns the first candidate that is known to be usable, if all before it are known to be broken.
func (d *Detector) recall(s spec) (Tool, bool) {
	for _, program := range s.programs {
		for path := range runner.LookAll(program, d.path) {
			d.mu.Lock()
			f, ok := d.known[candidate{s.name, path}]
			d.mu.Unlock()
			if !ok || !unchanged(f.files) {
				return Tool{}, false
			}
			if !f.broken {
				return f.tool, true
			}
		}
	}
	return Tool{}, false
}

// find asks each candidate until one is usable. It fails only when ctx ends.
func (d *Detector) find(ctx context.Context, s spec) (Tool, error) {
	var problems []string
	for _, program := range s.programs {
		for path := range runner.LookAll(program, d.path) {
			f, err := s.probe(ctx, d, path)
			if ctx.Err() != nil {
				return Tool{}, fmt.Errorf("probe %s: %w", path, context.Cause(ctx))
			}
			if err == nil && older(f.tool.Version, s.minimum) {
				err = fmt.Errorf("version %s is older than %s", f.tool.Version, s.minimum)
			}
			if err != nil {
				problems = append(problems, path+": "+err.Error())
				f, _ = found(Tool{}, path) // a file that has gone leaves no candidate
				f.broken = true
			}
			f.tool.Name, f.tool.NeededFor, f.tool.Optional = s.name, s.neededFor, s.optional
			d.remember(candidate{s.name, path}, f)
			if !f.broken {
				return f.tool, nil
			}
		}
	}
	if len(problems) == 0 {
		problems = []string{"not found in " + d.path}
	}
	return Tool{
		Name: s.name, NeededFor: s.neededFor, Optional: s.optional,
		Problem: strings.Join(problems, "; "), Remedy: s.remedy(),
	}, nil
}

func (d *Detector) remember(c candidate, f finding) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known[c] = f
}

func (d *Detector) forgetBroken() {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.known, func(_ candidate, f finding) bool { return f.broken })
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{path: path, size: info.Size(), mtime: info.ModTime().UnixNano()}, nil
}

func unchanged(files []stamp) bool {
	for _, was := range files {
		if now, err := stampOf(was.path); err != nil || now != was {
			return false
		}
	}
	return true
}
