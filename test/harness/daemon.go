// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// lastWait has a program that was built with the race detector end at once, and not after a second. $GORACE overrules it.
const lastWait = "GORACE=atexit_sleep_ms=20"

// stopPatience is how long a daemon may take to end: the drain of engines that ignore their signals included.
const stopPatience = time.Minute

// Daemon is one daemon of a node, running or not.
type Daemon struct {
	// Name is the program's name.
	Name string

	log   string
	cmd   *exec.Cmd
	done  chan struct{} // closed when it has ended and was waited for.
	asked bool          // the test has ended it, or knows that it ends.
}

// run starts a program of the node with its output in a file, in a process group of its own, with more variables in its
// environment. If the test is killed, the program is asked to end.
func (n *Node) run(tb testing.TB, program string, args []string, env ...string) *Daemon {
	tb.Helper()
	name := filepath.Base(program)
	d := &Daemon{
		Name: name,
		log:  n.Path(name + "-" + strconv.Itoa(len(n.daemons)) + ".log"),
		cmd:  exec.Command(filepath.Join(programs(tb), program), args...),
		done: make(chan struct{}),
	}
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		tb.Fatalf("open log of %s: %v", program, err)
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.Env = slices.Concat([]string{lastWait}, os.Environ(), []string{"TMPDIR=" + n.tmp}, env)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	started := make(chan error)
	go func() { // Pdeathsig follows the thread that started the program, so the thread stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := d.cmd.Start()
		started <- err
		if err == nil {
			_ = d.cmd.Wait() // the state tells more than the error
			close(d.done)
		}
	}()
	if err := <-started; err != nil {
		tb.Fatalf("start %s: %v", program, err)
	}
	n.daemons = append(n.daemons, d)
	return d
}

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Log is all that the daemon has printed.
func (d *Daemon) Log(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile(d.log)
	if err != nil {
		tb.Errorf("read log of %s: %v", d.Name, err)
	}
	return string(text)
}

// Kill ends the daemon at once, as the kernel or an impatient operator would, and returns when it is gone.
func (d *Daemon) Kill() {
	d.asked = true
	_ = d.cmd.Process.Kill() // it may have ended already
	<-d.done
}

// Stop asks the daemon to end and returns its exit code.
func (d *Daemon) Stop(tb testing.TB) int {
	tb.Helper()
	d.asked = true
	_ = d.cmd.Process.Signal(syscall.SIGTERM) // it may have ended already
	return d.Wait(tb)
}

// Wait waits until the daemon has ended and returns its exit code; -1 is a signal.
func (d *Daemon) Wait(tb testing.TB) int {
	tb.Helper()
	d.asked = true
	timer := time.NewTimer(stopPatience)
	defer timer.Stop()
	select {
	case <-d.done:
	case <-timer.C:
		_ = d.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go into its log
		<-d.done
		tb.Errorf("%s has not ended within %v", d.Name, stopPatience)
	}
	return d.cmd.ProcessState.ExitCode()
}

// ended tells whether the daemon is gone.
func (d *Daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// faults are lines that no daemon may print.
func (d *Daemon) faults(tb testing.TB) []string {
	tb.Helper()
	var found []string
	for line := range strings.Lines(d.Log(tb)) {
		for _, fault := range []string{"DATA RACE", "handler panicked", "goroutine 1 ["} {
			if strings.Contains(line, fault) {
				found = append(found, d.Name+": "+strings.TrimSpace(line))
			}
		}
	}
	return found
}

// AwaitEnd waits until none of the processes lives any more, and takes the exit states of those whose parent was killed, so
// that they are the test's own now.
func AwaitEnd(tb testing.TB, ended Processes) {
	tb.Helper()
	for _, p := range ended {
		testkit.Eventually(tb, Patience, "the end of process "+p.String(), func() (bool, string) {
			got, err := syscall.Wait4(p.PID, nil, syscall.WNOHANG, nil)
			now, there := readProcess(p.PID)
			return got == p.PID || !there || now.Zombie, fmt.Sprintf("%v, %v", now, err)
		})
	}
}

// Address is where the daemon serves on a network, unix or tcp: the path of a socket, or an IP and a port.
func (d *Daemon) Address(tb testing.TB, network string) string {
	tb.Helper()
	for line := range strings.Lines(d.Log(tb)) {
		var said struct {
			Message   string   `json:"msg"`
			Addresses []string `json:"addresses"`
		}
		if json.Unmarshal([]byte(line), &said) != nil || said.Message != "listening" {
			continue
		}
		for _, address := range said.Addresses {
			if name, ok := strings.CutPrefix(address, network+"://"); ok {
				return name
			}
		}
	}
	tb.Fatalf("%s does not serve on %s", d.Name, network)
	return ""
}
