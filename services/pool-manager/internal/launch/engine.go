// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/enginelog"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/handoff"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/probe"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/state"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// How much of an engine's last words is kept.
const (
	lastLines = 50
	lastBytes = 16 << 10
)

// undoLimit is how long the undoing of a failed launch may take, on top of the engine's own stop protocol.
const undoLimit = time.Minute

// Engine is one running engine.
type Engine struct {
	launcher *Launcher
	request  Request
	process  *process.Process
	record   state.Record
	how      plan
	endpoint netip.AddrPort
	info     Info
	// asked is true once it was told to end while it ran.
	asked bool
	// hinting is the goroutine that follows the log while the engine gets ready.
	hinting sync.WaitGroup
	// trimming ends the goroutine that keeps the log small, and waits for it.
	trimming func()
}

func newEngine(ctx context.Context, l *Launcher, request Request, running *process.Process, record state.Record, how plan) *Engine {
	e := &Engine{
		launcher: l, request: request, process: running, record: record, how: how,
		info: Info{PID: record.Identity.PID, Started: record.StartedAt, LogPath: record.LogPath},
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // The log outlives the launch.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := (enginelog.Keeper{Path: record.LogPath}).Run(ctx); err != nil {
			l.config.Logger.Warn("log is not kept small any more", zap.String("replica_id", string(request.Replica)), zap.Error(err))
		}
	}()
	e.trimming = func() {
		cancel()
		<-ended
	}
	return e
}

// Info says what is known of the engine. It never changes.
func (e *Engine) Info() Info { return e.info }

// Done is closed when the engine's main process has exited.
func (e *Engine) Done() <-chan struct{} { return e.process.Done() }

// Offer writes the handoff file.
func (e *Engine) Offer() error {
	prepared := e.request.Prepared
	_, err := e.launcher.config.Handoff.Publish(handoff.Entry{
		Engine:           prepared.GetEngine().GetKind(),
		EngineVersion:    prepared.GetEngine().GetVersion(),
		ProvisioningMode: modeName(prepared.GetEngine().GetMode()),
		URL:              e.info.Endpoint,
		PoolID:           string(e.request.Pool),
		ReplicaID:        string(e.request.Replica),
		Model:            handoff.Model{ID: prepared.GetModel().GetId(), Path: modelPath(prepared.GetModel())},
		Flags:            e.how.args,
		SlotsTotal:       e.info.Slots,
		SlotsFree:        e.info.Slots,
		PID:              e.info.PID,
	})
	return err
}

func modeName(mode enginev1.ProvisioningMode) string {
	return strings.ToLower(strings.TrimPrefix(mode.String(), "PROVISIONING_MODE_"))
}

func modelPath(model *enginev1.PreparedModel) string {
	if files := model.GetFiles(); len(files) > 0 {
		return files[0].GetPath()
	}
	return ""
}

// Withdraw removes the handoff file.
func (e *Engine) Withdraw() error {
	return e.launcher.config.Handoff.Withdraw(string(e.request.Replica))
}

// Stop ends the whole tree as the contract says and returns when it is proven gone and its record removed. An engine that
// had ended by itself before keeps the class of that. With an error some of it may be left, and the record is; call it again.
func (e *Engine) Stop(ctx context.Context) (Stopped, error) {
	stopped, err := e.end(ctx)
	if err != nil {
		return Stopped{}, err
	}
	return stopped, e.clear()
}

// end ends the whole tree and returns when it is proven gone.
func (e *Engine) end(ctx context.Context) (Stopped, error) {
	report, err := e.process.Stop(ctx, e.how.stop)
	for _, sent := range report.Signals {
		e.asked = e.asked || slices.Contains(sent.PIDs, e.info.PID)
	}
	if err != nil {
		return Stopped{}, err
	}
	return Stopped{Exit: e.exit(), Killed: !report.KilledAt.IsZero()}, nil
}

// Bury ends what an engine that is Done has left, and returns how it ended. With an error some of it may be left.
func (e *Engine) Bury(ctx context.Context) (registry.Exit, error) {
	exit := e.exit()
	if _, err := e.process.Stop(ctx, process.Policy{}); err != nil {
		return exit, err
	}
	return exit, e.clear()
}

// clear removes what stands for an engine that is proven gone.
func (e *Engine) clear() error {
	e.trimming()
	e.hinting.Wait()
	return errors.Join(e.Withdraw(), e.launcher.config.Records.Remove(e.record.Key()))
}

// undo takes a launch back that has failed with err.
func (e *Engine) undo(ctx context.Context, err error) error {
	cancelled := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoLimit+patience(e.how.stop))
	defer cancel()
	stopped, stopErr := e.end(ctx)
	if stopErr != nil {
		// That something is left matters more than why it was to go.
		return &Error{Err: errors.Join(stopErr, err)}
	}
	if cancelled {
		e.settleLogs(logsOfUndone)
	} else {
		err = e.explain(err, stopped.Exit)
		e.settleLogs(0)
	}
	return &Error{Exit: &stopped.Exit, Err: errors.Join(err, e.clear())}
}

// explain says of an engine that ended by itself while it was launched how it ended.
func (e *Engine) explain(err error, exit registry.Exit) error {
	if exit.Class == enginev1.ExitClass_EXIT_CLASS_STOPPED || reason.Of(err) != reason.WorkerStartFailed {
		return err
	}
	options := []reason.Option{
		reason.Meta("exit_class", strings.TrimPrefix(exit.Class.String(), "EXIT_CLASS_")),
		reason.Remedy("read the pool's logs; they end with the engine's own words"),
	}
	if _, told := errors.AsType[*probe.ExitedError](err); !told { // It says no more than Describe.
		options = append(options, reason.Cause(err))
	}
	if exit.Signal != "" {
		options = append(options, reason.Meta("signal", exit.Signal))
	} else {
		options = append(options, reason.Meta("exit_code", exit.Code))
	}
	if n := len(exit.LastLines); n > 0 {
		options = append(options, reason.Meta("last_log_line", exit.LastLines[n-1]))
	}
	return reason.New(reason.WorkerStartFailed, fmt.Sprintf("replica %s was not ready when its engine ended: %s", e.request.Replica, Describe(exit)), options...)
}

// exit says how the engine ended.
func (e *Engine) exit() registry.Exit {
	status := e.process.Exit()
	exit := registry.Exit{
		Code:      status.Code,
		Uptime:    status.Uptime,
		Ended:     status.At,
		LastLines: e.lastLines(),
	}
	if status.Signal != 0 {
		exit.Code, exit.Signal = 0, unix.SignalName(status.Signal)
	}
	exit.Class = supervision.Classify(supervision.Ending{
		Asked: e.asked, Code: exit.Code, Signal: exit.Signal, LastLines: exit.LastLines,
	}, e.request.Prepared.GetContract().GetExitPatterns())
	return exit
}

// lastLines returns the end of the engine's log, or none if it cannot be read.
func (e *Engine) lastLines() []string {
	tail, err := enginelog.Tail(e.info.LogPath, lastLines)
	if err != nil {
		return nil
	}
	room, first := lastBytes, len(tail)
	for first > 0 {
		text := strings.ToValidUTF8(tail[first-1].Text, "\uFFFD")
		if first == len(tail) && len(text) > room { // The last line says most: it is cut, not left out.
			text = strings.ToValidUTF8(text[:room], "")
		}
		if len(text) > room {
			break
		}
		room -= len(text)
		first--
		tail[first].Text = text
	}
	lines := make([]string, 0, len(tail)-first)
	for _, line := range tail[first:] {
		lines = append(lines, line.Text)
	}
	return lines
}

// Describe says in a few words how an engine ended.
func Describe(exit registry.Exit) string {
	how := fmt.Sprintf("exit code %d", exit.Code)
	if exit.Signal != "" {
		how = "killed by " + exit.Signal
	}
	class := strings.TrimPrefix(exit.Class.String(), "EXIT_CLASS_")
	text := fmt.Sprintf("%s (%s) after %s", how, class, exit.Uptime.Round(time.Millisecond))
	if n := len(exit.LastLines); n > 0 {
		text += "; last line: " + exit.LastLines[n-1]
	}
	return text
}
