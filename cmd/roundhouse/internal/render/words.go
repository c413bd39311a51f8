// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// Duration writes d with the precision a person wants: 4.1 ms, 12.3 s, 6 min 02 s.
func Duration(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	default:
		d = d.Round(time.Second)
		return fmt.Sprintf("%d min %02d s", d/time.Minute, d%time.Minute/time.Second)
	}
}

// Bytes writes n in decimal units: 512 B, 98.4 MB.
func Bytes(n int64) string {
	const step = 1000
	if n < step {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n), -1
	for value >= step && unit < len("kMGTP")-1 {
		value /= step
		unit++
	}
	return fmt.Sprintf("%.1f %cB", value, "kMGTP"[unit])
}

// Phase is a stage of a load in one word.
func Phase(phase poolv1.LoadPhase) string {
	return strings.ToLower(strings.TrimPrefix(phase.String(), "LOAD_PHASE_"))
}

// ReloadPhase is a stage of a reload in a few words.
func ReloadPhase(phase poolv1.ReloadPhase) string {
	return inWords(strings.TrimPrefix(phase.String(), "RELOAD_PHASE_"))
}

// inWords makes an enum's name readable.
func inWords(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", " ")) }

// State is a pool's state in one word.
func State(state poolv1.PoolState) string { return strings.TrimPrefix(state.String(), "POOL_STATE_") }

// Reason is the name of a reason as an error carries it.
func Reason(reason enginev1.Reason) string { return strings.TrimPrefix(reason.String(), "REASON_") }

func replicaState(state poolv1.ReplicaState) string {
	return strings.TrimPrefix(state.String(), "REPLICA_STATE_")
}

func stepKind(kind provisionerv1.StepKind) string {
	return strings.ToLower(strings.TrimPrefix(kind.String(), "STEP_KIND_"))
}

func mode(mode enginev1.ProvisioningMode) string {
	return strings.ToLower(strings.TrimPrefix(mode.String(), "PROVISIONING_MODE_"))
}

func exitClass(class enginev1.ExitClass) string {
	return inWords(strings.TrimPrefix(class.String(), "EXIT_CLASS_"))
}

// optionalDuration is a dash if there is none.
func optionalDuration(d *durationpb.Duration) string {
	if d == nil {
		return "-"
	}
	return Duration(d.AsDuration())
}

// stamp is a moment, or a dash if there is none.
func stamp(at *timestamppb.Timestamp) string {
	if at == nil {
		return "-"
	}
	return at.AsTime().Format(time.RFC3339)
}

// yesNo has the words for what is true and what is not.
func yesNo() map[bool]string { return map[bool]string{true: "yes", false: "no"} }

// orDash stands for a text that is empty.
func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
