// SPDX-License-Identifier: Apache-2.0

package render

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// Pools writes pools as a table.
func Pools(w io.Writer, pools []*poolv1.Pool) error {
	rows := [][]string{{"POOL", "STATE", "READY", "RESTARTS", "ENGINE", "MODEL", "ENDPOINT", "UPDATED"}}
	for _, pool := range pools {
		rows = append(rows, []string{
			pool.GetPoolId(), stateInDetail(pool), readyCount(pool), numberOrDash(restarts(pool)), engineName(pool), orDash(pool.GetModel().GetId()),
			orDash(firstEndpoint(pool)), stamp(pool.GetUpdated()),
		})
	}
	return table(w, rows)
}

// Pool writes one pool with its replicas, the failure if there is one, what there is to say about its supervision, and the
// last words of engines that ended.
func Pool(w io.Writer, pool *poolv1.Pool) error {
	if err := table(w, poolRows(pool)); err != nil {
		return err
	}
	replicas := [][]string{{""}, {"REPLICA", "STATE", "START", "PID", "SLOTS", "RESTARTS", "ENDPOINT", "LAST EXIT"}}
	for _, group := range []struct {
		role     string
		replicas []*poolv1.Replica
	}{{"", pool.GetReplicas()}, {" (new)", pool.GetReload().GetCandidates()}, {" (old)", pool.GetRetiring()}} {
		for _, replica := range group.replicas {
			replicas = append(replicas, replicaRow(replica, group.role))
		}
	}
	if err := table(w, replicas); err != nil {
		return err
	}
	if err := remarks(w, pool); err != nil {
		return err
	}
	return lastWords(w, pool)
}

func poolRows(pool *poolv1.Pool) [][]string {
	rows := [][]string{
		{"pool", pool.GetPoolId()},
		{"state", stateInDetail(pool)},
	}
	if failure := pool.GetFailure(); failure != nil {
		rows = append(rows, []string{"failure", Reason(failure.GetReason()) + ": " + failure.GetMessage()})
	}
	rows = append(rows,
		[]string{"wanted", yesNo()[pool.GetWanted()]},
		[]string{"residency", residency(pool.GetSpec())},
		[]string{"edition", strconv.FormatUint(pool.GetEdition(), 10)},
		[]string{"engine", engineName(pool)},
		[]string{"model", orDash(pool.GetModel().GetId())},
		[]string{"prepared", orDash(pool.GetPreparedId())},
	)
	if priority := pool.GetSpec().GetPriority(); priority != 0 {
		rows = append(rows, []string{"priority", strconv.Itoa(int(priority))})
	}
	for _, key := range slices.Sorted(maps.Keys(pool.GetSpec().GetLabels())) {
		rows = append(rows, []string{"label", key + "=" + pool.GetSpec().GetLabels()[key]})
	}
	return append(rows,
		[]string{"created", stamp(pool.GetCreated())},
		[]string{"updated", stamp(pool.GetUpdated())},
	)
}

func replicaRow(replica *poolv1.Replica, role string) []string {
	return []string{
		replica.GetReplicaId() + role, replicaState(replica.GetState()), strconv.FormatUint(replica.GetGeneration(), 10),
		numberOrDash(replica.GetPid()), numberOrDash(replica.GetSlotsTotal()),
		numberOrDash(replica.GetSupervision().GetRestarts()), orDash(replica.GetEndpoint()), exit(replica.GetExit()),
	}
}

// lastWords writes the last lines of the engines that ended on their own.
func lastWords(w io.Writer, pool *poolv1.Pool) error {
	const lines = 10
	for _, replica := range pool.GetReplicas() {
		last := replica.GetExit().GetLastLogLines()
		if !down(replica) || len(last) == 0 {
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

// down tells whether a replica ended on its own and was not started again yet.
func down(replica *poolv1.Replica) bool {
	state := replica.GetState()
	return state == poolv1.ReplicaState_REPLICA_STATE_FAILED || state == poolv1.ReplicaState_REPLICA_STATE_BACKOFF
}

// PoolLine is a pool's snapshot in one line, without a newline.
func PoolLine(pool *poolv1.Pool) string {
	parts := []string{pool.GetPoolId(), stateInDetail(pool), readyCount(pool) + " ready"}
	if endpoint := firstEndpoint(pool); endpoint != "" {
		parts = append(parts, endpoint)
	}
	if failure := pool.GetFailure(); failure != nil {
		parts = append(parts, Reason(failure.GetReason())+": "+failure.GetMessage())
	}
	return strings.Join(parts, "  ")
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

// firstEndpoint is that of a replica that serves, if any has one.
func firstEndpoint(pool *poolv1.Pool) string {
	first := ""
	for _, replica := range pool.GetReplicas() {
		if replica.GetEndpoint() != "" && replica.GetState() == poolv1.ReplicaState_REPLICA_STATE_READY {
			return replica.GetEndpoint()
		}
		first = cmp.Or(first, replica.GetEndpoint())
	}
	return first
}

func exit(exit *poolv1.Exit) string {
	if exit == nil {
		return "-"
	}
	how := fmt.Sprintf("code %d", exit.GetCode())
	if exit.GetSignal() != "" {
		how = exit.GetSignal()
	}
	if exit.GetClass() == enginev1.ExitClass_EXIT_CLASS_UNKNOWN {
		how = "nobody saw it"
	}
	return fmt.Sprintf("%s (%s) after %s", exitClass(exit.GetClass()), how, Duration(exit.GetUptime().AsDuration()))
}

func numberOrDash[N int32 | uint32 | uint64](n N) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}
