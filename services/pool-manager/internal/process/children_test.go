// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeadChildrenAreFoundWithoutAList is about kernels that do not list children.
func TestDeadChildrenAreFoundWithoutAList(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.fork.Lock() // What is started here must not get a mark.
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Env: os.Environ()})
	h.fork.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the dead child is found", func() bool { return slices.Contains(deadChildrenOfSelf(), pid) })
	h.reap([]int{pid})
	if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); !errors.Is(err, unix.ECHILD) {
		t.Errorf("the child was not collected: %v", err)
	}
	if slices.Contains(deadChildrenOfSelf(), pid) {
		t.Error("a collected child is found")
	}
}
