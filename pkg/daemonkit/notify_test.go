// SPDX-License-Identifier: Apache-2.0

package daemonkit_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// serviceManager is the socket of a service manager that has started this program.
type serviceManager struct {
	tb   testing.TB
	conn *net.UnixConn
}

func newServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	address := &net.UnixAddr{Name: filepath.Join(testkit.ShortDir(t), "notify"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	t.Setenv("NOTIFY_SOCKET", address.Name)
	return &serviceManager{t, conn}
}

// next waits for a message.
func (m *serviceManager) next() string {
	m.tb.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		m.tb.Fatal(err)
	}
	buffer := make([]byte, 4096)
	n, err := m.conn.Read(buffer)
	if err != nil {
		m.tb.Fatalf("no message: %v", err)
	}
	return string(buffer[:n])
}

func TestNotify(t *testing.T) {
	manager := newServiceManager(t)
	for _, tt := range []struct {
		name string
		tell func() error
		want string
	}{
		{"ready", func() error { return daemonkit.NotifyReady("serving") }, "READY=1\nSTATUS=serving"},
		{"status", func() error { return daemonkit.NotifyStatus("3 pools") }, "STATUS=3 pools"},
		{"status of lines", func() error { return daemonkit.NotifyStatus("3\nMAINPID=1\n") }, "STATUS=3 MAINPID=1"},
		{"stopping", func() error { return daemonkit.NotifyStopping("leaving engines") }, "STOPPING=1\nSTATUS=leaving engines"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.tell(); err != nil {
				t.Fatal(err)
			}
			if got := manager.next(); got != tt.want {
				t.Errorf("told %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNotifyNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := errors.Join(daemonkit.NotifyReady("a"), daemonkit.NotifyStatus("b"), daemonkit.NotifyStopping("c")); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

func TestNotifyOneThatIsGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	if err := daemonkit.NotifyReady("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with a socket that is gone: %v", err)
	}
}

func TestUnderSystemd(t *testing.T) {
	self, parent := strconv.Itoa(os.Getpid()), strconv.Itoa(os.Getppid())
	for _, tt := range []struct {
		name, pid, socket string
		want              bool
	}{
		{"service", self, "/run/systemd/notify", true},
		{"service that tells nothing", self, "", true},
		{"program of a service", parent, "/run/systemd/notify", false},
		{"service of an old systemd", "", "/run/systemd/notify", true},
		{"terminal", "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("NOTIFY_SOCKET", tt.socket)
			t.Setenv("SYSTEMD_EXEC_PID", tt.pid)
			if tt.pid == "" {
				if err := os.Unsetenv("SYSTEMD_EXEC_PID"); err != nil {
					t.Fatal(err)
				}
			}
			if got := daemonkit.UnderSystemd(); got != tt.want {
				t.Errorf("UnderSystemd() = %t, want %t", got, tt.want)
			}
		})
	}
}

func TestWatchdogPings(t *testing.T) {
	manager := newServiceManager(t)
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- daemonkit.Watchdog(ctx, zap.NewNop(), func() error { return nil }) }()
	for range 3 {
		if got := manager.next(); got != "WATCHDOG=1" {
			t.Errorf("told %q", got)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Watchdog: %v", err)
	}
}

func TestWatchdogThatNobodyWants(t *testing.T) {
	for _, tt := range []struct {
		name, usec, pid string
		wantErr         bool
	}{
		{"none", "", "", false},
		{"another's", "20000", strconv.Itoa(os.Getppid()), false},
		{"nonsense", "soon", "", true},
		{"never", "0", "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("WATCHDOG_USEC", tt.usec)
			t.Setenv("WATCHDOG_PID", tt.pid)
			err := daemonkit.Watchdog(t.Context(), zap.NewNop(), func() error {
				t.Error("the daemon was asked whether it is well")
				return nil
			})
			if (err != nil) != tt.wantErr {
				t.Errorf("Watchdog: %v, want an error: %t", err, tt.wantErr)
			}
		})
	}
}
