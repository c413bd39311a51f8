// SPDX-License-Identifier: Apache-2.0

package render

import (
	"io"
	"strconv"
	"strings"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Starts writes how starts ended as a table, and under it the last line of each that failed.
func Starts(w io.Writer, starts []*poolv1.Start) error {
	rows := [][]string{{"REPLICA", "START", "BY", "STARTED", "READY AFTER", "END", "ENDED BY", "CUT"}}
	var text strings.Builder
	for _, start := range starts {
		generation := strconv.FormatUint(start.GetGeneration(), 10)
		rows = append(rows, []string{
			start.GetReplicaId(), generation, orDash(start.GetStartedBy()), stamp(start.GetStarted()), readyAfter(start),
			exit(start.GetExit()), orDash(start.GetEndedBy()), numberOrDash(start.GetExit().GetRequestsCut()),
		})
		if words := lastWord(start); words != "" {
			text.WriteString(start.GetReplicaId() + " start " + generation + ": " + words + "\n")
		}
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if text.Len() == 0 {
		return nil
	}
	return write(w, []byte("\n"+text.String()))
}

func readyAfter(start *poolv1.Start) string {
	if start.GetReady() == nil || start.GetStarted() == nil {
		return "-"
	}
	return Duration(start.GetReady().AsTime().Sub(start.GetStarted().AsTime()))
}

// lastWord is why a start failed, as far as it says so; empty if it was ended as asked.
func lastWord(start *poolv1.Start) string {
	if start.GetError() != "" {
		return start.GetError()
	}
	lines := start.GetExit().GetLastLogLines()
	if start.GetEndedBy() != "" || len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}
