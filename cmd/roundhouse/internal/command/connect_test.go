// SPDX-License-Identifier: Apache-2.0

package command

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// unreachable is how pkg/client tells that a service could not be reached.
func unreachable(cause error) error {
	e := reason.FromStatus(status.Error(codes.Unavailable, ""))
	if cause != nil {
		reason.Cause(cause)(e)
	}
	return e
}

func TestUnreachableServicesAreExplained(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		want string
	}{
		{
			"nobody listens", unreachable(os.NewSyscallError("connect", syscall.ECONNREFUSED)),
			"error: UNAVAILABLE: cannot reach the pool manager at unix:///s: connect: connection refused\n" +
				"remedy: start pool-managerd, or give its address with --pool-manager or $ROUNDHOUSE_POOL_MANAGER\n",
		},
		{
			"another user's", unreachable(os.NewSyscallError("connect", syscall.EACCES)),
			"error: PERMISSION_DENIED: permission denied: the pool manager at unix:///s serves its owner and root only\n" +
				"remedy: run this as the user that runs pool-managerd, or as root\n",
		},
		{
			"the service's own error", reason.New(reason.ProvisionerUnavailable, "the provisioner is away", reason.Cause(fs.ErrPermission)),
			"error: PROVISIONER_UNAVAILABLE: the provisioner is away: permission denied\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := reached(t.Context(), poolManagerService(), "unix:///s", test.err)
			code, word := outcome(err)
			var got strings.Builder
			if err := render.Failure(&got, render.Text, word, err); err != nil {
				t.Fatal(err)
			}
			if code != codeUnavailable || got.String() != test.want {
				t.Errorf("exit code %d and %q, want %d and %q", code, got.String(), codeUnavailable, test.want)
			}
		})
	}
}

func TestRefuses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(testkit.ShortDir(t), "s.sock")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	tests := []struct {
		target string
		uid    int
		want   bool
	}{
		{"unix://" + path, os.Geteuid(), false},
		{"unix://" + path, os.Geteuid() + 1, true},
		{"unix://" + path, 0, false},
		{"unix://" + path + "x", os.Geteuid() + 1, false},
		{"127.0.0.1:1", os.Geteuid() + 1, false},
		{"nonsense", os.Geteuid() + 1, false},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s by %d", filepath.Base(test.target), test.uid), func(t *testing.T) {
			t.Parallel()
			if got := refuses(t.Context(), test.target, test.uid); got != test.want {
				t.Errorf("refuses(%s, %d) = %v, want %v", test.target, test.uid, got, test.want)
			}
		})
	}
}
