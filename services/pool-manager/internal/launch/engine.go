// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
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
	args     []string
	endpoint netip.AddrPort
	info     Info
	// trimming ends the goroutine that keeps the log small, and waits for it.
	trimming func()
}

func newEngine(ctx context.Context, l *Launcher, request Request, running *process.Process, record state.Record, args []string) *Engine {
	e := &Engine{
		launcher: l, request: request, process: running, record: record, args: args,
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
		Flags:            e.args,
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

// Stop ends the whole tree as the contract says and returns when it is proven gone and its record removed. With an error
// some of it may be left, and the record is; call it again.
func (e *Engine) Stop(ctx context.Context) (Stopped, error) {
	policy, err := stopPolicy(e.request.Prepared.GetContract().GetStop())
	if err != nil {
		return Stopped{}, err
	}
	report, err := e.process.Stop(ctx, policy)
	if err != nil {
		return Stopped{}, err
	}
	exit := e.exit(true)
	return Stopped{Exit: exit, Killed: !report.KilledAt.IsZero()}, e.clear()
}

// Bury ends what an engine that is Done has left, and returns how it ended. With an error some of it may be left.
func (e *Engine) Bury(ctx context.Context) (registry.Exit, error) {
	exit := e.exit(false)
	if _, err := e.process.Stop(ctx, process.Policy{}); err != nil {
		return exit, err
	}
	return exit, e.clear()
}

// clear removes what stands for an engine that is proven gone.
func (e *Engine) clear() error {
	e.trimming()
	return errors.Join(e.Withdraw(), e.launcher.config.Records.Remove(e.record.Key()))
}

// undo takes a launch back that has failed with err.
func (e *Engine) undo(ctx context.Context, err error) error {
	cancelled := ctx.Err() != nil
	asked := true
	select {
	case <-e.process.Done():
		asked = false
	default:
	}
	limit := undoLimit
	for _, step := range e.request.Prepared.GetContract().GetStop() {
		limit += step.GetWait().AsDuration()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	policy, wrong := stopPolicy(e.request.Prepared.GetContract().GetStop())
	if wrong != nil {
		policy = process.Policy{}
	}
	_, stopErr := e.process.Stop(ctx, policy)
	exit := e.exit(asked)
	if stopErr == nil {
		stopErr = e.clear()
	}
	if cancelled {
		return &Error{Exit: &exit, Err: errors.Join(err, stopErr)}
	}
	return &Error{Exit: &exit, Err: errors.Join(e.explain(err, exit), stopErr)}
}

// explain says of an engine that ended by itself while it was launched how it ended.
func (e *Engine) explain(err error, exit registry.Exit) error {
	var exited *probe.ExitedError
	if !errors.As(err, &exited) || reason.Of(err) == reason.PortInUse {
		return err
	}
	options := []reason.Option{
		reason.Cause(err),
		reason.Meta("exit_class", strings.TrimPrefix(exit.Class.String(), "EXIT_CLASS_")),
		reason.Remedy("read the pool's logs; they end with the engine's own words"),
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

// exit says how the engine ended. Asked is whether we had told it to.
func (e *Engine) exit(asked bool) registry.Exit {
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
		Asked: asked, Code: exit.Code, Signal: exit.Signal, LastLines: exit.LastLines,
	}, e.request.Prepared.GetContract().GetExitPatterns())
	return exit
}

// lastLines returns the end of the engine's log, or none if it cannot be read.
func (e *Engine) lastLines() []string {
	tail, err := enginelog.Tail(e.info.LogPath, lastLines)
	if err != nil {
		return nil
	}
	size, first := 0, len(tail)
	for first > 0 && size+len(tail[first-1].Text) <= lastBytes {
		first--
		size += len(tail[first].Text)
	}
	lines := make([]string, 0, len(tail)-first)
	for _, line := range tail[first:] {
		lines = append(lines, strings.ToValidUTF8(line.Text, "�"))
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

// stopPolicy reads a contract's stop protocol.
func stopPolicy(steps []*enginev1.StopStep) (process.Policy, error) {
	var policy process.Policy
	for _, step := range steps {
		signal := unix.SignalNum(step.GetSignal())
		if signal == 0 {
			return process.Policy{}, notUnderstood(fmt.Sprintf("stop signal %q", step.GetSignal()))
		}
		policy.Steps = append(policy.Steps, process.Step{Signal: signal, Wait: step.GetWait().AsDuration()})
	}
	return policy, nil
}
