// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// insideVar marks a process that is in a namespace of its own already.
const insideVar = "ROUNDHOUSE_TEST_INSIDE"

// inNamespace runs the whole test program again as the root of a user namespace, so that an ordinary user's tests may
// mount small disks. It says whether it did: root needs none, and some machines do not allow it.
func inNamespace() (code int, done bool) {
	if os.Geteuid() == 0 || os.Getenv(insideVar) != "" {
		return 0, false
	}
	command := exec.Command("/proc/self/exe", os.Args[1:]...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	command.Env = append(os.Environ(), insideVar+"=1")
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGTERM,
	}
	if err := command.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "harness: no namespace, so tests with disks of their own will fail:", err)
		return 0, false
	}
	_ = command.Wait() // the state tells more than the error
	if code = command.ProcessState.ExitCode(); code < 0 {
		code = 1
	}
	return code, true
}
