// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"go/ast"
	"path"
	"slices"
	"strconv"
	"strings"
)

// subject says which files of a folder a ban is for.
type subject int

const (
	// code is every file that is neither a test nor generated.
	code subject = iota
	// everything is code and tests.
	everything
)

// ban forbids imports and symbols in some folders.
type ban struct {
	name, why string
	// in are the folders that the ban is for, except the folders with leave. All of them must hold a Go file.
	in, except []string
	subject    subject
	// imports are import paths; each stands for what is below it as well.
	imports []string
	// symbols are exported names of packages by import path: "time.Sleep".
	symbols []string
}

// bans returns who may not use what.
func bans() []ban {
	return []ban{
		{
			name:    "pool-manager-without-provisioner",
			why:     "the two services meet in the proto contract and nowhere else",
			in:      []string{"services/pool-manager"},
			subject: everything,
			imports: []string{prefix + "/services/provisioner"},
		},
		{
			name:    "provisioner-without-pool-manager",
			why:     "the two services meet in the proto contract and nowhere else",
			in:      []string{"services/provisioner"},
			subject: everything,
			imports: []string{prefix + "/services/pool-manager"},
		},
		{
			name:    "shared-without-services",
			why:     "what clients import must not bring a service along",
			in:      []string{"pkg", "cmd/roundhouse"},
			subject: everything,
			imports: []string{prefix + "/services"},
		},
		{
			name:    "proto-alone",
			why:     "a client imports the contract and nothing else of ours",
			in:      []string{"proto"},
			subject: everything,
			imports: []string{prefix + "/pkg", prefix + "/services", prefix + "/cmd"},
		},
		processes(),
		wire(),
		{
			name:    "no-sleep",
			why:     "sleeping is slow where it is long enough and wrong where it is not; wait for the event",
			in:      []string{"pkg", "services", "cmd", "test"},
			subject: everything,
			symbols: []string{"time.Sleep"},
		},
	}
}

// processes keeps the power over processes in few packages.
func processes() ban {
	return ban{
		name: "processes-in-one-place",
		why:  "who may start or signal a process must verify its identity and own its tree; that is proven once",
		in:   []string{"pkg", "services", "cmd"},
		except: []string{
			"pkg/failpoint",
			"services/pool-manager/internal/process",
			"services/provisioner/internal/runner",
			"cmd/roundhouse/internal/demo",
		},
		imports: []string{"os/exec"},
		symbols: []string{
			"os.FindProcess", "os.StartProcess",
			"syscall.Exec", "syscall.ForkExec", "syscall.Kill", "syscall.PtraceAttach", "syscall.RawSyscall",
			"syscall.RawSyscall6", "syscall.StartProcess", "syscall.Syscall", "syscall.Syscall6", "syscall.Wait4",
			"golang.org/x/sys/unix.Exec", "golang.org/x/sys/unix.Kill", "golang.org/x/sys/unix.PidfdOpen",
			"golang.org/x/sys/unix.PidfdSendSignal", "golang.org/x/sys/unix.Prctl",
			"golang.org/x/sys/unix.PtraceAttach", "golang.org/x/sys/unix.RawSyscall",
			"golang.org/x/sys/unix.RawSyscall6", "golang.org/x/sys/unix.Syscall", "golang.org/x/sys/unix.Syscall6",
			"golang.org/x/sys/unix.Tgkill", "golang.org/x/sys/unix.Wait4", "golang.org/x/sys/unix.Waitid",
		},
	}
}

// wire keeps gRPC and the services' messages at the edge. The messages of engine/v1 are the contract itself and may be
// used everywhere.
func wire() ban {
	return ban{
		name: "wire-at-the-edge",
		why:  "the domain is tested and changed without the wire; its errors become a status in one place",
		in:   []string{"pkg", "services"},
		except: []string{
			"pkg/client",
			"pkg/reason",
			"pkg/serverkit",
			"services/pool-manager/internal/daemon",
			"services/pool-manager/internal/provision",
			"services/pool-manager/internal/server",
			"services/provisioner/internal/daemon",
			"services/provisioner/internal/server",
		},
		imports: []string{
			"google.golang.org/grpc",
			"github.com/grpc-ecosystem",
			prefix + "/proto/gen/go/roundhouse/pool",
			prefix + "/proto/gen/go/roundhouse/provisioner",
		},
	}
}

// rule makes the ban a rule, which also reports each folder of it that is gone.
func (b ban) rule() Rule {
	return Rule{Name: b.name, Why: b.why, check: func(tree *Tree) []Violation {
		found := b.gone(tree)
		for _, file := range tree.Files {
			if b.covers(file) {
				found = append(found, b.inFile(tree, file)...)
			}
		}
		return found
	}}
}

// gone reports folders that hold no Go file.
func (b ban) gone(tree *Tree) []Violation {
	var found []Violation
	for _, folder := range slices.Concat(b.in, b.except) {
		if !slices.ContainsFunc(tree.Files, func(f File) bool { return within(f.Dir(), folder) }) {
			found = append(found, Violation{Path: folder, Text: "the rule names a folder without Go files; correct the rule"})
		}
	}
	return found
}

func (b ban) covers(file File) bool {
	if file.IsGenerated() || b.subject == code && file.IsTest() {
		return false
	}
	return withinAny(file.Dir(), b.in) && !withinAny(file.Dir(), b.except)
}

func (b ban) inFile(tree *Tree, file File) []Violation {
	var found []Violation
	names := map[string]string{} // local name -> import path
	for _, spec := range file.Syntax.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue // the parser has accepted it, so it is a string
		}
		if withinAny(target, b.imports) {
			found = append(found, Violation{file.Path, tree.line(spec.Pos()), fmt.Sprintf("imports %s", target)})
		}
		local := path.Base(target)
		if spec.Name != nil {
			local = spec.Name.Name
		}
		if local == "." && slices.ContainsFunc(b.symbols, func(s string) bool { return strings.HasPrefix(s, target+".") }) {
			found = append(found, Violation{file.Path, tree.line(spec.Pos()), fmt.Sprintf("imports %s with a dot", target)})
		}
		names[local] = target
	}
	ast.Inspect(file.Syntax, func(node ast.Node) bool {
		selector, ok := node.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if pkg, ok := selector.X.(*ast.Ident); ok && names[pkg.Name] != "" {
			symbol := names[pkg.Name] + "." + selector.Sel.Name
			if slices.Contains(b.symbols, symbol) {
				found = append(found, Violation{file.Path, tree.line(selector.Pos()), fmt.Sprintf("uses %s", symbol)})
			}
		}
		return true
	})
	return found
}
