// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// How much of an engine's last words is kept.
const (
	lastLines = 50
	lastBytes = 16 << 10
)

// exit says how the engine ended, which is proven gone. It says the same each time.
func (e *Engine) exit() registry.Exit {
	if e.gone == nil {
		exit := e.exitNow()
		e.gone = &exit
	}
	return *e.gone
}

// exitNow says how the engine ended, as far as it is known now.
func (e *Engine) exitNow() registry.Exit {
	status := e.process.Exit()
	exit := registry.Exit{
		Code:        status.Code,
		Uptime:      status.Uptime,
		Ended:       status.At,
		LastLines:   lastWords(e.launcher.config.Logs, e.info.LogPath),
		RequestsCut: e.ending.RequestsCut,
	}
	if exit.Ended.IsZero() {
		exit.Ended = time.Now()
	}
	if !e.held.IsZero() { // What it ran before we held it is known by the wall clock only.
		exit.Uptime += max(0, e.held.Sub(e.info.Started))
	}
	unknown := status.Signal == 0 && status.Code == process.CodeUnknown
	if status.Signal != 0 {
		exit.Signal = unix.SignalName(status.Signal)
	}
	if status.Signal != 0 || unknown {
		exit.Code = 0
	}
	exit.Class = supervision.Classify(supervision.Ending{
		Asked: e.asked, Killed: e.asked && e.killed,
		Stalled: e.asked && e.stuck && !e.wasReady(), Hung: e.asked && e.ending.Hung,
		Adopted: unknown, OOMKilled: status.OOMKilled,
		Code: exit.Code, Signal: exit.Signal, LastLines: exit.LastLines,
	}, e.request.Prepared.GetContract().GetExitPatterns())
	return exit
}

// explain says of an engine that ended by itself while it was launched how it ended.
func (e *Engine) explain(err error, exit registry.Exit) error {
	why := reason.Of(err)
	if e.asked || why != reason.WorkerStartFailed && why != reason.EngineExited {
		return err
	}
	options := []reason.Option{
		reason.Meta("exit_class", className(exit.Class)),
		reason.Remedy("read the pool's logs; they end with the engine's own words"),
	}
	if _, told := errors.AsType[*probe.ExitedError](err); !told { // It says no more than Describe.
		options = append(options, reason.Cause(err))
	}
	switch {
	case exit.Signal != "":
		options = append(options, reason.Meta("signal", exit.Signal))
	case exit.Class != enginev1.ExitClass_EXIT_CLASS_UNKNOWN:
		options = append(options, reason.Meta("exit_code", exit.Code))
	}
	if n := len(exit.LastLines); n > 0 {
		options = append(options, reason.Meta("last_log_line", exit.LastLines[n-1]))
	}
	what := "was not ready when its engine ended: "
	if why == reason.EngineExited {
		what = "has lost its engine while no pool manager saw it: "
	}
	return reason.New(why, fmt.Sprintf("replica %s %s%s", e.request.Replica, what, Describe(exit)), options...)
}

// lastWords returns the end of a log, or none if it cannot be read.
func lastWords(logs Logs, path string) []string {
	lines, err := logs.Tail(path, lastLines)
	if err != nil {
		return nil
	}
	room, first := lastBytes, len(lines)
	for first > 0 {
		text := strings.ToValidUTF8(lines[first-1], "\uFFFD")
		if first == len(lines) && len(text) > room { // The last line says most: it is cut, not left out.
			text = strings.ToValidUTF8(text[:room], "")
		}
		if len(text) > room {
			break
		}
		room -= len(text)
		first--
		lines[first] = text
	}
	return lines[first:]
}

// Describe says in a few words how an engine ended.
func Describe(exit registry.Exit) string {
	how := fmt.Sprintf("exit code %d", exit.Code)
	switch {
	case exit.Signal != "":
		how = "killed by " + exit.Signal
	case exit.Class == enginev1.ExitClass_EXIT_CLASS_UNKNOWN:
		how = "nobody knows how"
	}
	text := fmt.Sprintf("%s (%s)", how, className(exit.Class))
	if exit.Uptime > 0 || exit.Class != enginev1.ExitClass_EXIT_CLASS_UNKNOWN {
		text += fmt.Sprintf(" after %s", exit.Uptime.Round(time.Millisecond))
	}
	if n := len(exit.LastLines); n > 0 {
		text += "; last line: " + exit.LastLines[n-1]
	}
	return text
}
