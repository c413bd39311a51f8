// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Pools writes pools as a table.
func Pools(w io.Writer, pools []*poolv1.Pool) error {
	rows := [][]string{{"POOL", "STATE", "READY", "ENGINE", "MODEL", "ENDPOINT", "UPDATED"}}
	for _, pool := range pools {
		rows = append(rows, []string{
			pool.GetPoolId(), stateAndPhase(pool), readyCount(pool), engineName(pool), orDash(pool.GetModel().GetId()),
			orDash(firstEndpoint(pool)), stamp(pool.GetUpdated()),
		})
	}
	return table(w, rows)
}

// Pool writes one pool with its replicas, the failure if there is one, and the last words of engines that ended.
func Pool(w io.Writer, pool *poolv1.Pool) error {
	rows := [][]string{
		{"pool", pool.GetPoolId()},
		{"state", stateAndPhase(pool)},
	}
	if failure := pool.GetFailure(); failure != nil {
		rows = append(rows, []string{"failure", Reason(failure.GetReason()) + ": " + failure.GetMessage()})
	}
	rows = append(rows,
		[]string{"engine", engineName(pool)},
		[]string{"model", orDash(pool.GetModel().GetId())},
		[]string{"prepared", orDash(pool.GetPreparedId())},
		[]string{"created", stamp(pool.GetCreated())},
		[]string{"updated", stamp(pool.GetUpdated())},
	)
	if err := table(w, rows); err != nil {
		return err
	}
	replicas := [][]string{{""}, {"REPLICA", "STATE", "START", "PID", "SLOTS", "ENDPOINT", "LAST EXIT"}}
	for _, replica := range pool.GetReplicas() {
		replicas = append(replicas, []string{
			replica.GetReplicaId(), replicaState(replica.GetState()), strconv.FormatUint(replica.GetGeneration(), 10),
			numberOrDash(int64(replica.GetPid())), numberOrDash(int64(replica.GetSlotsTotal())), orDash(replica.GetEndpoint()),
			exit(replica.GetExit()),
		})
	}
	if err := table(w, replicas); err != nil {
		return err
	}
	return lastWords(w, pool)
}

// lastWords writes the last lines of the engines that ended on their own.
func lastWords(w io.Writer, pool *poolv1.Pool) error {
	const lines = 10
	for _, replica := range pool.GetReplicas() {
		last := replica.GetExit().GetLastLogLines()
		if replica.GetState() != poolv1.ReplicaState_REPLICA_STATE_FAILED || len(last) == 0 {
			continue
		}
		text := fmt.Sprintf("\nlast words of %s:\n  %s\n", replica.GetReplicaId(),
			strings.Join(last[max(0, len(last)-lines):], "\n  "))
		if err := write(w, []byte(text)); err != nil {
			return err
		}
	}
	return nil
}

// PoolLine is a pool's snapshot in one line, without a newline.
func PoolLine(pool *poolv1.Pool) string {
	parts := []string{pool.GetPoolId(), stateAndPhase(pool), readyCount(pool) + " ready"}
	if endpoint := firstEndpoint(pool); endpoint != "" {
		parts = append(parts, endpoint)
	}
	if failure := pool.GetFailure(); failure != nil {
		parts = append(parts, Reason(failure.GetReason())+": "+failure.GetMessage())
	}
	return strings.Join(parts, "  ")
}

// DrainProgress is where a drain stands, in one line without a newline.
func DrainProgress(progress *poolv1.DrainProgress) string {
	if progress.GetPhase() == poolv1.DrainPhase_DRAIN_PHASE_STOPPING {
		return "stopping the engines"
	}
	inFlight := "an unknown number of"
	if progress.InFlight != nil {
		inFlight = strconv.FormatUint(uint64(progress.GetInFlight()), 10)
	}
	text := "waiting for " + inFlight + " requests in flight"
	if progress.GetRemaining() != nil {
		text += ", at most " + Duration(progress.GetRemaining().AsDuration())
	}
	return text
}

// DrainResult says how a drain ended, in one line without a newline.
func DrainResult(result *poolv1.DrainResult) string {
	name, took := result.GetPool().GetPoolId(), Duration(result.GetDuration().AsDuration())
	if result.GetGaveUp() {
		return fmt.Sprintf("%s still serves: requests were left at the deadline, after %s", name, took)
	}
	text := fmt.Sprintf("%s is %s after %s", name, State(result.GetPool().GetState()), took)
	if result.GetForced() {
		text += fmt.Sprintf(", %d requests cut", result.GetRequestsCut())
	}
	if result.GetKilled() {
		text += ", killed: it did not end when told to"
	}
	return text
}

func stateAndPhase(pool *poolv1.Pool) string {
	if pool.GetPhase() == poolv1.LoadPhase_LOAD_PHASE_UNSPECIFIED {
		return State(pool.GetState())
	}
	return State(pool.GetState()) + " (" + Phase(pool.GetPhase()) + ")"
}

func readyCount(pool *poolv1.Pool) string {
	ready := 0
	for _, replica := range pool.GetReplicas() {
		if replica.GetState() == poolv1.ReplicaState_REPLICA_STATE_READY {
			ready++
		}
	}
	return fmt.Sprintf("%d/%d", ready, max(pool.GetSpec().GetReplicas(), 1))
}

func engineName(pool *poolv1.Pool) string {
	engine := pool.GetEngine()
	if engine == nil {
		return orDash(pool.GetSpec().GetPrepare().GetEngine().GetKind())
	}
	return strings.TrimSpace(engine.GetKind() + " " + engine.GetVersion())
}

func firstEndpoint(pool *poolv1.Pool) string {
	for _, replica := range pool.GetReplicas() {
		if replica.GetEndpoint() != "" {
			return replica.GetEndpoint()
		}
	}
	return ""
}

func exit(exit *poolv1.Exit) string {
	if exit == nil {
		return "-"
	}
	how := fmt.Sprintf("code %d", exit.GetCode())
	if exit.GetSignal() != "" {
		how = exit.GetSignal()
	}
	return fmt.Sprintf("%s (%s) after %s", exitClass(exit.GetClass()), how, Duration(exit.GetUptime().AsDuration()))
}

func numberOrDash(n int64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatInt(n, 10)
}
