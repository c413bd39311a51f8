// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// stateInDetail is a pool's state with what goes on in it.
func stateInDetail(pool *poolv1.Pool) string {
	var parts []string
	if pool.GetPhase() != poolv1.LoadPhase_LOAD_PHASE_UNSPECIFIED {
		parts = append(parts, Phase(pool.GetPhase()))
	}
	if text := loading(pool.GetReplicas()); text != "" {
		parts = append(parts, text)
	}
	if pool.GetReload() != nil {
		parts = append(parts, "reload: "+ReloadPhase(pool.GetReload().GetPhase()))
	}
	if breaker := worstBreaker(pool.GetReplicas()); breaker != poolv1.BreakerState_BREAKER_STATE_CLOSED {
		parts = append(parts, breakerState(breaker))
	}
	if next := nextAttempt(pool.GetReplicas()); next != nil {
		parts = append(parts, "next start "+stamp(next))
	}
	if len(parts) == 0 {
		return State(pool.GetState())
	}
	return State(pool.GetState()) + " (" + strings.Join(parts, ", ") + ")"
}

// loading says how far the replicas that load have come, together; empty if that is not known.
func loading(replicas []*poolv1.Replica) string {
	var loaded, total int64
	var remaining time.Duration
	for _, replica := range replicas {
		loaded += replica.GetLoading().GetLoadedBytes()
		total += replica.GetLoading().GetTotalBytes()
		remaining = max(remaining, replica.GetLoading().GetRemaining().AsDuration())
	}
	if total <= 0 {
		return ""
	}
	text := fmt.Sprintf("%d %% loaded", min(int64(float64(loaded)/float64(total)*100), 100))
	if remaining > 0 {
		text += ", about " + Duration(remaining) + " left"
	}
	return text
}

// worstBreaker is the breaker that lets the least through.
func worstBreaker(replicas []*poolv1.Replica) poolv1.BreakerState {
	worst := poolv1.BreakerState_BREAKER_STATE_CLOSED
	for _, replica := range replicas {
		switch breaker := replica.GetSupervision().GetBreaker(); breaker {
		case poolv1.BreakerState_BREAKER_STATE_OPEN:
			return breaker
		case poolv1.BreakerState_BREAKER_STATE_HALF_OPEN:
			worst = breaker
		default:
		}
	}
	return worst
}

// nextAttempt is when the first of the replicas that wait is started again; nil if none waits.
func nextAttempt(replicas []*poolv1.Replica) *timestamppb.Timestamp {
	var first *timestamppb.Timestamp
	for _, replica := range replicas {
		next := replica.GetSupervision().GetNextAttempt()
		if next != nil && (first == nil || next.AsTime().Before(first.AsTime())) {
			first = next
		}
	}
	return first
}

// restarts is how often replicas of a pool were started again.
func restarts(pool *poolv1.Pool) uint64 {
	var n uint64
	for _, replica := range pool.GetReplicas() {
		n += replica.GetSupervision().GetRestarts()
	}
	return n
}

// remarks writes a line for each replica about which there is something to say.
func remarks(w io.Writer, pool *poolv1.Pool) error {
	var text strings.Builder
	for _, group := range [][]*poolv1.Replica{pool.GetReplicas(), pool.GetReload().GetCandidates(), pool.GetRetiring()} {
		for _, replica := range group {
			if remark := remark(replica); remark != "" {
				text.WriteString(replica.GetReplicaId() + ": " + remark + "\n")
			}
		}
	}
	if text.Len() == 0 {
		return nil
	}
	return write(w, []byte("\n"+text.String()))
}

func remark(replica *poolv1.Replica) string {
	var parts []string
	if load := replica.GetLoading(); load != nil {
		text := "has loaded " + Bytes(load.GetLoadedBytes()) + " of " + Bytes(load.GetTotalBytes())
		if load.GetRemaining() != nil {
			text += ", about " + Duration(load.GetRemaining().AsDuration()) + " left"
		}
		if load.GetStillSince() != nil {
			text += ", nothing has moved since " + stamp(load.GetStillSince())
		}
		parts = append(parts, text)
	}
	supervision := replica.GetSupervision()
	if n := supervision.GetFailedStarts(); n > 0 {
		parts = append(parts, counted(uint64(n), "start")+" in a row failed")
	}
	if cause := supervision.GetBreakerCause(); cause != "" {
		parts = append(parts, breakerState(supervision.GetBreaker())+": "+cause)
	}
	if supervision.GetNextAttempt() != nil {
		parts = append(parts, "starts again at "+stamp(supervision.GetNextAttempt()))
	}
	if replica.GetAdopted() {
		parts = append(parts, "taken over from an earlier pool manager")
	}
	return strings.Join(parts, "; ")
}

func breakerState(state poolv1.BreakerState) string {
	return "breaker " + inWords(strings.TrimPrefix(state.String(), "BREAKER_STATE_"))
}

// residency is when a pool is loaded, in words.
func residency(spec *poolv1.PoolSpec) string {
	word := inWords(strings.TrimPrefix(spec.GetResidency().String(), "RESIDENCY_"))
	if spec.GetResidency() == poolv1.Residency_RESIDENCY_UNSPECIFIED {
		word = "pinned"
	}
	if spec.GetIdleTimeout() != nil {
		word += ", unloaded after " + Duration(spec.GetIdleTimeout().AsDuration()) + " without a request"
	}
	return word
}
