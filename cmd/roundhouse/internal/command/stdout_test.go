// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// full is a file that takes nothing.
func full(t *testing.T) *os.File {
	t.Helper()
	file, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

func TestLostOutputIsAFailure(t *testing.T) {
	t.Parallel()
	for _, args := range []string{
		"plan --preset=source", "prepare --preset=source", "prepared", "preflight", "preload --preset=source --pool=p", "cancel p", "drain p",
		"delete a", "pools", "pools p", "logs p", "version", "--version", "help", "exit-codes", "completion bash", "watch",
	} {
		for _, format := range []string{"text", "json"} {
			t.Run(args+" in "+format, func(t *testing.T) {
				t.Parallel()
				fake := obliging()
				fake.watch = scripted(newest())
				x := newTerminal(t, fake)
				x.out = full(t)
				code := x.run(t, append(strings.Fields(args), "-o", format)...)
				const says = "standard output cannot be written: no space left on device"
				if code != codeFailed || !strings.Contains(x.stderr.String(), "OUTPUT_LOST") || !strings.Contains(x.stderr.String(), says) {
					t.Errorf("%q ends with %d and says %q, want %d and %q", args, code, x.stderr, codeFailed, says)
				}
			})
		}
	}
}

func TestLostOutputEndsWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	a := &app{out: newStdout(full(t))}
	ctx, cancel := a.untilInterrupted(t.Context())
	defer cancel()
	if _, err := a.out.Write([]byte("x")); err == nil {
		t.Error("a write to a full device succeeded")
	}
	select {
	case <-ctx.Done():
	case <-time.After(patience):
		t.Fatal("the context goes on")
	}
	if cause := context.Cause(ctx); !errors.Is(cause, errOutput) {
		t.Errorf("the context ended with %v, want %v", cause, errOutput)
	}
}
