// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// Process is a process of this machine.
type Process struct {
	PID, Parent int
	Name        string
	// Zombie is true if it has ended and its parent has not taken its exit state.
	Zombie bool
}

func (p Process) String() string {
	if p.Zombie {
		return fmt.Sprintf("zombie %d (%s)", p.PID, p.Name)
	}
	return fmt.Sprintf("%d (%s)", p.PID, p.Name)
}

// Processes is a list of processes that prints well.
type Processes []Process

func (l Processes) String() string { return fmt.Sprint([]Process(l)) }

// Descendants are the processes that the daemon has started, and those that they have, the ended ones included whose exit
// state nobody has taken.
func (d *Daemon) Descendants() Processes {
	var found Processes
	for queue := []int{d.PID()}; len(queue) > 0; queue = queue[1:] {
		for _, child := range childrenOf(queue[0]) {
			found = append(found, child)
			queue = append(queue, child.PID)
		}
	}
	return found
}

// Engines are the live processes that a pool manager of this node, or an engine, has started.
func (n *Node) Engines() Processes {
	return slices.DeleteFunc(processes(), func(p Process) bool {
		environ, err := os.ReadFile(procPath(p.PID, "environ"))
		if err != nil || p.Zombie {
			return true // gone, or not ours
		}
		variables := bytes.Split(environ, []byte{0})
		return !slices.ContainsFunc(variables, func(v []byte) bool { return bytes.HasPrefix(v, []byte("ROUNDHOUSE_NONCE=")) }) ||
			!slices.ContainsFunc(variables, func(v []byte) bool { return string(v) == "TMPDIR="+n.tmp })
	})
}

// Records are the names of the records that the pool manager keeps of engines.
func (n *Node) Records() []string { return sorted(names(filepath.Join(n.State, "replicas"))) }

// HandoffFiles are the names of the files that tell of ready replicas.
func (n *Node) HandoffFiles() []string { return sorted(names(n.Handoff)) }

// AssertNothingRuns fails the test if the node has an engine, a record of one, or a handoff file.
func (n *Node) AssertNothingRuns(tb testing.TB) {
	tb.Helper()
	if left := n.runtimeLeftovers(); len(left) > 0 {
		tb.Errorf("left behind: %s", strings.Join(left, "; "))
	}
}

func (n *Node) runtimeLeftovers() []string {
	var left []string
	for _, p := range n.Engines() {
		left = append(left, "engine process "+p.String())
	}
	for _, name := range n.Records() {
		left = append(left, "record "+name)
	}
	for _, name := range n.HandoffFiles() {
		left = append(left, "handoff file "+name)
	}
	return left
}

// end stops the daemons, audits what is left and removes the folder.
func (n *Node) end(tb testing.TB) {
	tb.Helper()
	for _, conn := range n.connections {
		_ = conn.Close() // the test is done with it
	}
	n.assertNoZombies(tb)
	for _, d := range slices.Backward(n.daemons) {
		if asked := d.asked; d.ended() && !asked {
			tb.Errorf("%s has ended by itself: %s", d.Name, d.cmd.ProcessState)
		} else if !d.ended() {
			if code := d.Stop(tb); code != 0 {
				tb.Errorf("%s ended with %s, want exit code 0", d.Name, d.cmd.ProcessState)
			}
		}
	}
	var left []string
	for _, d := range n.daemons {
		left = append(left, d.faults(tb)...)
	}
	left = append(append(left, n.runtimeLeftovers()...), n.fileLeftovers()...)
	left = append(left, n.badRecords()...)
	for _, line := range left {
		tb.Errorf("audit: %s", line)
	}
	n.killLeftovers()
	if tb.Failed() {
		for _, d := range n.daemons {
			tb.Logf("log of %s (%d):\n%s", d.Name, d.PID(), lastLines(d.Log(tb)))
		}
	}
	if err := os.RemoveAll(n.Dir); err != nil {
		tb.Errorf("remove the node's folder: %v", err)
	}
}

// assertNoZombies waits until no daemon has a child whose exit state it did not take.
func (n *Node) assertNoZombies(tb testing.TB) {
	tb.Helper()
	for _, d := range n.daemons {
		if d.ended() {
			continue
		}
		testkit.Eventually(tb, Patience, d.Name+" has no zombie", func() (bool, string) {
			zombies := slices.DeleteFunc(childrenOf(d.PID()), func(p Process) bool { return !p.Zombie })
			return len(zombies) == 0, fmt.Sprint(zombies)
		})
	}
}

// fileLeftovers names sockets, temporary files and records that were put aside.
func (n *Node) fileLeftovers() []string {
	var left []string
	_ = filepath.WalkDir(n.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type()&fs.ModeSocket != 0 {
			left = append(left, "socket "+path)
		}
		return nil
	})
	for name := range names(n.tmp) {
		left = append(left, "temporary file "+name)
	}
	for name := range names(filepath.Join(n.State, "quarantine")) {
		left = append(left, "record put aside "+name)
	}
	if n.config.Store == "" { // Others may be at work in a shared one.
		for _, folder := range []string{"tmp", "quarantine"} {
			for name := range names(filepath.Join(n.Store, folder)) {
				left = append(left, "in the store's "+folder+": "+name)
			}
		}
	}
	return left
}

// killLeftovers keeps a failed test from disturbing others.
func (n *Node) killLeftovers() {
	for _, p := range n.Engines() {
		if process, err := os.FindProcess(p.PID); err == nil {
			_ = process.Kill() // it may have ended
		}
	}
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// processes are all processes of this machine.
func processes() []Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			found = append(found, p)
		}
	}
	return found
}

// readProcess reads "pid (name) state parent ...". The name may hold anything.
func readProcess(pid int) (Process, bool) {
	text, err := os.ReadFile(procPath(pid, "stat"))
	if err != nil {
		return Process{}, false
	}
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return Process{}, false
	}
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 2 {
		return Process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	return Process{PID: pid, Parent: parent, Name: string(text[open+1 : end]), Zombie: fields[0] == "Z"}, err == nil
}

func childrenOf(pid int) Processes {
	return slices.DeleteFunc(processes(), func(p Process) bool { return p.Parent != pid })
}

func procPath(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// names are what a folder holds; a folder that is not there holds nothing.
func names(dir string) map[string]bool {
	entries, _ := os.ReadDir(dir)
	found := make(map[string]bool, len(entries))
	for _, entry := range entries {
		found[entry.Name()] = true
	}
	return found
}

func sorted(set map[string]bool) []string {
	var all []string
	for name := range set {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
