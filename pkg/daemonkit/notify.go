// SPDX-License-Identifier: Apache-2.0

package daemonkit

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
)

// UnderSystemd tells whether systemd runs this very process as a service: not merely some program above it.
func UnderSystemd() bool {
	// SYSTEMD_EXEC_PID is inherited by whatever the service starts, but names the service. systemd before 248 has none.
	if pid, ok := os.LookupEnv("SYSTEMD_EXEC_PID"); ok {
		return pid == strconv.Itoa(os.Getpid())
	}
	return os.Getenv("NOTIFY_SOCKET") != ""
}

// NotifyReady tells the service manager that the daemon serves, and shows it the status. Where no service manager listens it
// does nothing and returns nil, as the others of Notify do.
func NotifyReady(status string) error { return notify(daemon.SdNotifyReady, "STATUS="+oneLine(status)) }

// NotifyStatus shows the service manager, and with it `systemctl status`, how things stand.
func NotifyStatus(status string) error { return notify("STATUS=" + oneLine(status)) }

// NotifyStopping tells the service manager that the daemon has begun to end, and shows it the status.
func NotifyStopping(status string) error {
	return notify(daemon.SdNotifyStopping, "STATUS="+oneLine(status))
}

func notify(assignments ...string) error {
	if _, err := daemon.SdNotify(false, strings.Join(assignments, "\n")); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

// oneLine keeps a status from being read as further assignments.
func oneLine(status string) string { return strings.Join(strings.Fields(status), " ") }
