// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Command is one run of the command line program.
type Command struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
}

// Roundhouse starts the command line program for the daemons of the node.
func (n *Node) Roundhouse(tb testing.TB, args ...string) *Command {
	tb.Helper()
	return Roundhouse(tb, append([]string{"--pool-manager", n.PoolManagerAddress(), "--provisioner", n.ProvisionerAddress()}, args...)...)
}

// Roundhouse starts the command line program.
func Roundhouse(tb testing.TB, args ...string) *Command {
	tb.Helper()
	c := &Command{cmd: exec.CommandContext(tb.Context(), filepath.Join(programs(tb), "roundhouse"), args...)}
	c.cmd.Env = append(os.Environ(), "TMPDIR="+os.TempDir())
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	if err := c.cmd.Start(); err != nil {
		tb.Fatalf("start roundhouse: %v", err)
	}
	return c
}

// Interrupt does what Ctrl-C does.
func (c *Command) Interrupt(tb testing.TB) {
	tb.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGINT); err != nil {
		tb.Fatalf("interrupt roundhouse: %v", err)
	}
}

// Wait returns what the program has printed and its exit code, when it has ended.
func (c *Command) Wait(tb testing.TB) (stdout, stderr string, code int) {
	tb.Helper()
	err := c.cmd.Wait()
	if exited := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exited) {
		tb.Fatalf("run roundhouse: %v", err)
	}
	return c.stdout.String(), c.stderr.String(), c.cmd.ProcessState.ExitCode()
}
