// SPDX-License-Identifier: Apache-2.0

package daemonkit_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

func TestRunReturnsTheCodeOfTheError(t *testing.T) {
	t.Parallel()
	full := reason.New(reason.DiskFull, "no room")
	for _, tt := range []struct {
		name string
		err  error
		want int
	}{
		{"none", nil, 0},
		{"any", errors.New("boom"), 1},
		{"bad parameters", fmt.Errorf("a: %w", reason.New(reason.InvalidParams, "no")), 2},
		{"state", fmt.Errorf("a: %w", &daemonkit.StateError{Err: full}), 3},
		{"state, for bad parameters", &daemonkit.StateError{Err: reason.New(reason.InvalidParams, "no")}, 3},
		{"address", fmt.Errorf("a: %w", &serverkit.ListenError{Err: reason.New(reason.InvalidParams, "no")}), 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var stderr bytes.Buffer
			got := daemonkit.Run(t.Context(), "some-daemon", "info", &stderr, func(_ context.Context, log *zap.Logger) error {
				log.Debug("not to be seen")
				return tt.err
			})
			if got != tt.want {
				t.Errorf("code %d, want %d", got, tt.want)
			}
			if strings.Count(stderr.String(), "\n") != 1 || tt.err != nil && !strings.Contains(stderr.String(), tt.err.Error()) {
				t.Errorf("said %q, want one line with the error", &stderr)
			}
		})
	}
	if err := error(&daemonkit.StateError{Err: full}); !errors.Is(err, full) || err.Error() != full.Error() {
		t.Errorf("StateError is %v", err)
	}
}

func TestRunWithABadLevel(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	got := daemonkit.Run(t.Context(), "some-daemon", "loud", &stderr, func(context.Context, *zap.Logger) error {
		t.Error("it ran")
		return nil
	})
	if got != daemonkit.ExitUsage || !strings.HasPrefix(stderr.String(), "some-daemon: ") {
		t.Errorf("code %d, %q", got, &stderr)
	}
}

func TestRunEndsWithItsCallerOrASignal(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(context.CancelFunc) error
	}{
		{"caller", func(cancel context.CancelFunc) error {
			cancel()
			return nil
		}},
		{"TERM", func(context.CancelFunc) error { return syscall.Kill(os.Getpid(), syscall.SIGTERM) }},
		{"INT", func(context.CancelFunc) error { return syscall.Kill(os.Getpid(), syscall.SIGINT) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var stderr bytes.Buffer
			got := daemonkit.Run(ctx, "some-daemon", "info", &stderr, func(ctx context.Context, _ *zap.Logger) error {
				if err := tt.end(cancel); err != nil {
					t.Fatal(err)
				}
				<-ctx.Done()
				return nil
			})
			if got != daemonkit.ExitOK {
				t.Errorf("code %d, want 0: %s", got, &stderr)
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	if got := daemonkit.Refuse("some-daemon", fmt.Errorf("x: %w", flag.ErrHelp), &stderr); got != daemonkit.ExitOK || stderr.Len() > 0 {
		t.Errorf("help: code %d, %q", got, &stderr)
	}
	got := daemonkit.Refuse("some-daemon", errors.New("no"), &stderr)
	if got != daemonkit.ExitUsage || stderr.String() != "some-daemon: no\n" {
		t.Errorf("error: code %d, %q", got, &stderr)
	}
}

func parse(args ...string) (*daemonkit.CommandLine, string, error) {
	line := daemonkit.NewCommandLine("some-daemon")
	var more daemonkit.List
	line.Flags.Var(&more, "more", "of this `thing` (repeatable)")
	var stdout bytes.Buffer
	help := daemonkit.Help{Usage: "some-daemon does something.\n", Notes: "Exit codes:\n  0  good\n"}
	err := line.Parse(args, "v1.2.3", help, &stdout)
	return line, stdout.String(), err
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	line, out, err := parse("--config", "c", "-listen=a", "--listen", "b", "--state-dir", "s", "--log-level", "l", "--more", "x", "--more", "y")
	if err != nil || out != "" {
		t.Fatalf("Parse: %v, %q", err, out)
	}
	got := []string{line.ConfigFile, line.Listen.String(), line.StateDir, line.LogLevel, line.Flags.Lookup("more").Value.String()}
	if diff := cmp.Diff([]string{"c", "a,b", "s", "l", "x,y"}, got); diff != "" {
		t.Errorf("flags (-want +got):\n%s", diff)
	}
	line, _, err = parse()
	if err != nil || line.ConfigFile != "" || line.Listen != nil || line.StateDir != "" || line.LogLevel != "" {
		t.Errorf("nothing: %+v, %v", line, err)
	}
}

func TestCommandLineThatIsRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args []string
		says string
	}{
		"an unknown flag":         {[]string{"--nope"}, "-nope"},
		"a flag without value":    {[]string{"--listen"}, "-listen"},
		"an argument":             {[]string{"serve"}, `"serve"`},
		"an argument behind --":   {[]string{"--", "--listen"}, `"--listen"`},
		"version and an argument": {[]string{"--version", "x"}, `"x"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, out, err := parse(tt.args...)
			wantError(t, err, []string{tt.says, "see --help"})
			if out != "" {
				t.Errorf("it says %q on its output", out)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	_, out, err := parse("--help", "--listen", "x")
	if !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
	testkit.Golden(t, "help.txt", []byte(out))
	for _, args := range [][]string{{"--version"}, {"--state-dir", "x", "-version"}} {
		if _, out, err := parse(args...); !errors.Is(err, flag.ErrHelp) || out != "v1.2.3\n" {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}
