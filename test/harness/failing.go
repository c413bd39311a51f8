// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/failpoint"
)

// RunFailing starts a pool manager that is killed when it comes to a failpoint for the n-th time, and does not wait for it.
func (n *Node) RunFailing(tb testing.TB, at failpoint.Name, nth int) {
	tb.Helper()
	n.PoolManager = n.runPoolManager(tb, filepath.Join(failing, "pool-managerd"), nil, fmt.Sprintf("%s=%s:%d", failpoint.Variable, at, nth))
}

// AwaitFailpoint waits until the pool manager has died at a failpoint, and fails the test if it ends in another way.
func (n *Node) AwaitFailpoint(tb testing.TB, at failpoint.Name) {
	tb.Helper()
	d := n.PoolManager
	d.Wait(tb)
	status, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || status.Signal() != syscall.SIGKILL || !strings.Contains(d.Log(tb), "failpoint "+string(at)+"\n") {
		tb.Errorf("the pool manager ended with %s, want death at %s", d.cmd.ProcessState, at)
	}
}

// RunNotifying starts a pool manager as a service of systemd, which listens at a socket, and does not wait for it.
func (n *Node) RunNotifying(tb testing.TB, socket string, flags ...string) {
	tb.Helper()
	n.PoolManager = n.runPoolManager(tb, "pool-managerd", flags, "NOTIFY_SOCKET="+socket)
}

// StartUpgraded starts a pool manager that is another program than the one of StartPoolManager, and returns when it serves.
func (n *Node) StartUpgraded(tb testing.TB) {
	tb.Helper()
	n.PoolManager = n.runPoolManager(tb, filepath.Join(failing, "pool-managerd"), nil)
	n.AwaitPoolManager(tb)
}
