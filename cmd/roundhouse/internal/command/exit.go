// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/render"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Exit codes.
const (
	codeOK = iota
	codeFailed
	codeUsage
	codeNotFound
	codeUnavailable
	codeRefused
	codeTimedOut
	codeCancelled
	codeUntrusted
	codeLacking
)

// exitCodes says what each code means, by code.
func exitCodes() []string {
	return []string{
		codeOK:          "done",
		codeFailed:      "the work failed: a build, a start, a proof, a stop, or a defect",
		codeUsage:       "the command line or the request is wrong",
		codeNotFound:    "no such pool, prepared engine, engine or model",
		codeUnavailable: "a service or a remote file cannot be reached; trying again may help",
		codeRefused:     "refused in the present state: the pool exists, is busy, draining or not ready, the port is taken, or an outage not accepted",
		codeTimedOut:    "not done in time: --timeout, a start's limit, or a drain that gave up at its deadline",
		codeCancelled:   "cancelled or interrupted",
		codeUntrusted:   "a file is not what was asked for, or is not allowed",
		codeLacking:     "the machine lacks a tool, space or room",
	}
}

// codeOf is the exit code of each reason.
func codeOf(r reason.Reason) (code int, known bool) {
	switch r {
	case reason.InvalidParams:
		return codeUsage, true
	case reason.PoolNotFound, reason.PreparedNotFound, reason.EngineNotFound, reason.ModelNotFound:
		return codeNotFound, true
	case reason.FetchFailed, reason.ProvisionerUnavailable, reason.ShuttingDown:
		return codeUnavailable, true
	case reason.PoolExists, reason.PoolBusy, reason.PoolUnready, reason.PoolDraining, reason.PortInUse,
		reason.OutageNotAccepted:
		return codeRefused, true
	case reason.WorkerStartTimeout:
		return codeTimedOut, true
	case reason.Cancelled:
		return codeCancelled, true
	case reason.UntrustedArtifact, reason.DigestMismatch:
		return codeUntrusted, true
	case reason.ToolMissing, reason.DiskFull, reason.LimitExceeded:
		return codeLacking, true
	case reason.BuildFailed, reason.StorageFailed, reason.WorkerStartFailed, reason.EngineExited, reason.StopFailed,
		reason.ProofFailed, reason.BreakerOpen, reason.RecordUnreadable, reason.Internal:
		return codeFailed, true
	default:
		return codeFailed, false
	}
}

// Causes of a command's own end.
var (
	errInterrupted = errors.New("interrupted")
	errTimeout     = errors.New("--timeout has passed")
)

// commandError marks an error of a command that ran, as against one of its parsing.
type commandError struct{ err error }

func (e *commandError) Error() string { return e.err.Error() }
func (e *commandError) Unwrap() error { return e.err }

// exitError is a failure with an exit code and a word of its own, in place of those of its reason.
type exitError struct {
	code int
	word string
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// outcome is the exit code of a command's error, and the word that stands for it.
func outcome(err error) (code int, word string) {
	if own, ok := errors.AsType[*exitError](err); ok {
		return own.code, own.word
	}
	r := reason.Of(err)
	code, _ = codeOf(r)
	if r != reason.Unspecified {
		return code, render.Reason(r)
	}
	switch c := status.Code(err); c {
	case codes.Unavailable:
		return codeUnavailable, "UNAVAILABLE"
	case codes.InvalidArgument:
		return codeUsage, "INVALID_ARGUMENT"
	case codes.NotFound:
		return codeNotFound, "NOT_FOUND"
	default:
		return codeFailed, strings.ToUpper(c.String())
	}
}

// explain makes of a call's error what a person can act on: the command's own end is told from the service's, and a
// service that cannot be reached is named.
func (a *app) explain(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*exitError](err); ok {
		return err
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errInterrupted), errors.Is(err, errInterrupted):
		return interrupted()
	case errors.Is(cause, errTimeout), errors.Is(err, errTimeout):
		return &exitError{codeTimedOut, "TIMED_OUT", reason.New(reason.Cancelled,
			fmt.Sprintf("not done within --timeout %s", a.timeout), reason.Remedy("give it more time"))}
	}
	return err
}

func interrupted() error {
	return &exitError{codeCancelled, "INTERRUPTED", reason.New(reason.Cancelled, "interrupted")}
}

// newExitCodes is the help topic about exit codes. It runs nothing.
func newExitCodes() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What each exit code means", Long: exitCodesHelp()}
}

func exitCodesHelp() string {
	var text strings.Builder
	text.WriteString("roundhouse ends with one of these codes:\n\n")
	for code, meaning := range exitCodes() {
		fmt.Fprintf(&text, "  %d  %s\n", code, meaning)
		var reasons []string
		for r := reason.Unspecified + 1; ; r++ {
			c, known := codeOf(r)
			if !known {
				break
			}
			if c == code {
				reasons = append(reasons, render.Reason(r))
			}
		}
		if len(reasons) > 0 {
			fmt.Fprintf(&text, "     (%s)\n", strings.Join(reasons, ", "))
		}
	}
	text.WriteString("\nAn error is printed as \"error: REASON: message\" and \"remedy: ...\"; with -o json as one object.\n")
	return text.String()
}
