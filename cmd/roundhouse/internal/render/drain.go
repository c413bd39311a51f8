// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"

	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// DrainProgress is where a drain stands, in one line without a newline.
func DrainProgress(progress *poolv1.DrainProgress) string {
	if progress.GetPhase() == poolv1.DrainPhase_DRAIN_PHASE_STOPPING {
		return "stopping the engines"
	}
	inFlight := "an unknown number of requests"
	if progress.InFlight != nil {
		inFlight = counted(uint64(progress.GetInFlight()), "request")
	}
	text := "waiting for " + inFlight + " in flight"
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
		text += ", " + counted(uint64(result.GetRequestsCut()), "request") + " cut"
	}
	if result.GetKilled() {
		text += ", killed: it did not end when told to"
	}
	return text
}

// PoolDrained says how the drain of one pool of a node ended, in one line without a newline.
func PoolDrained(drained *poolv1.PoolDrained) string {
	if failure := drained.GetFailure(); failure != nil {
		return drained.GetPoolId() + " could not be drained: " + Reason(failure.GetReason()) + ": " + failure.GetMessage()
	}
	return DrainResult(drained.GetResult())
}

// DrainNodeResult says how the drain of a node ended, in one line without a newline.
func DrainNodeResult(result *poolv1.DrainNodeResult) string {
	text := fmt.Sprintf("%s drained after %s", counted(uint64(result.GetPools()), "pool"), Duration(result.GetDuration().AsDuration()))
	if cut := result.GetRequestsCut(); cut > 0 {
		text += ", " + counted(uint64(cut), "request") + " cut"
	}
	if n := result.GetGaveUp(); n > 0 {
		text += fmt.Sprintf(", %d of them gave up at the deadline and serve on", n)
	}
	return text
}

// counted is a number of things, in words.
func counted(n uint64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
