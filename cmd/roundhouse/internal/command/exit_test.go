// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

func TestEachReasonHasAnExitCode(t *testing.T) {
	t.Parallel()
	for number, name := range enginev1.Reason_name {
		r := reason.Reason(number)
		code, known := codeOf(r)
		if r == reason.Unspecified {
			continue
		}
		if !known || code == codeOK || code >= len(exitCodes()) {
			t.Errorf("%s has exit code %d, known: %v; want one of the table's, not 0", name, code, known)
		}
	}
}

func TestExitCodesAreDocumented(t *testing.T) {
	t.Parallel()
	help := exitCodesHelp()
	for number, name := range enginev1.Reason_name {
		short := strings.TrimPrefix(name, "REASON_")
		if number != 0 && !strings.Contains(help, short) {
			t.Errorf("the help does not name %s:\n%s", short, help)
		}
	}
	testkit.Golden(t, "exit-codes.txt", []byte(help))
}

func TestOutcome(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		err  error
		code int
		word string
	}{
		{"typed", reason.New(reason.DiskFull, "full"), codeLacking, "DISK_FULL"},
		{"typed and wrapped", fmt.Errorf("preload: %w", reason.New(reason.PoolBusy, "busy")), codeRefused, "POOL_BUSY"},
		{"status with a reason", reason.Status(reason.New(reason.PoolNotFound, "no pool")).Err(), codeNotFound, "POOL_NOT_FOUND"},
		{"status without a reason", status.Error(codes.Unimplemented, "old server"), codeFailed, "UNIMPLEMENTED"},
		{"unavailable without a reason", status.Error(codes.Unavailable, "gone"), codeUnavailable, "UNAVAILABLE"},
		{"own code", &exitError{codeTimedOut, "GAVE_UP", reason.New(reason.PoolUnready, "left")}, codeTimedOut, "GAVE_UP"},
		{"plain", errors.New("write: broken pipe"), codeFailed, "INTERNAL"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			code, word := outcome(test.err)
			if code != test.code || word != test.word {
				t.Errorf("outcome(%v) = %d %s, want %d %s", test.err, code, word, test.code, test.word)
			}
		})
	}
}

func TestSocketDir(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		uid     int
		runtime string
		want    string
	}{
		{"root", 0, "/run/user/0", "/run/roundhouse"},
		{"user", 1000, "/run/user/1000", "/run/user/1000/roundhouse"},
		{"user without a session", 1000, "", "/tmp/roundhouse-1000"},
		{"user with a relative folder", 1000, "run", "/tmp/roundhouse-1000"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := socketDir(test.uid, test.runtime); got != test.want {
				t.Errorf("socketDir(%d, %q) = %q, want %q", test.uid, test.runtime, got, test.want)
			}
		})
	}
}
