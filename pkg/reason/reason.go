// SPDX-License-Identifier: Apache-2.0

// Package reason makes the errors that a client of Roundhouse can act on, and turns them into gRPC statuses and back.
//
// An *Error carries exactly one Reason of the contract. Code is the only table from reasons to gRPC codes, Status the
// only translation to the wire, FromStatus its inverse: what Status wrote, FromStatus reads back equal, except that an
// address in a text has lost its user info and query (see Status) and that a text beyond its limit is cut. Errors are
// plain values: nothing here logs, blocks or keeps anything, and an Error that nobody changes may be shared.
package reason

import (
	"google.golang.org/grpc/codes"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// Reason is the contract's enum. Its comments there tell when each is used.
type Reason = enginev1.Reason

// Every reason of the contract.
const (
	Unspecified            = enginev1.Reason_REASON_UNSPECIFIED
	InvalidParams          = enginev1.Reason_REASON_INVALID_PARAMS
	PoolNotFound           = enginev1.Reason_REASON_POOL_NOT_FOUND
	PoolExists             = enginev1.Reason_REASON_POOL_EXISTS
	PoolBusy               = enginev1.Reason_REASON_POOL_BUSY
	PoolUnready            = enginev1.Reason_REASON_POOL_UNREADY
	PoolDraining           = enginev1.Reason_REASON_POOL_DRAINING
	PreparedNotFound       = enginev1.Reason_REASON_PREPARED_NOT_FOUND
	EngineNotFound         = enginev1.Reason_REASON_ENGINE_NOT_FOUND
	ModelNotFound          = enginev1.Reason_REASON_MODEL_NOT_FOUND
	UntrustedArtifact      = enginev1.Reason_REASON_UNTRUSTED_ARTIFACT
	DigestMismatch         = enginev1.Reason_REASON_DIGEST_MISMATCH
	ToolMissing            = enginev1.Reason_REASON_TOOL_MISSING
	BuildFailed            = enginev1.Reason_REASON_BUILD_FAILED
	FetchFailed            = enginev1.Reason_REASON_FETCH_FAILED
	DiskFull               = enginev1.Reason_REASON_DISK_FULL
	StorageFailed          = enginev1.Reason_REASON_STORAGE_FAILED
	ProvisionerUnavailable = enginev1.Reason_REASON_PROVISIONER_UNAVAILABLE
	WorkerStartFailed      = enginev1.Reason_REASON_WORKER_START_FAILED
	WorkerStartTimeout     = enginev1.Reason_REASON_WORKER_START_TIMEOUT
	EngineExited           = enginev1.Reason_REASON_ENGINE_EXITED
	PortInUse              = enginev1.Reason_REASON_PORT_IN_USE
	Cancelled              = enginev1.Reason_REASON_CANCELLED
	StopFailed             = enginev1.Reason_REASON_STOP_FAILED
	LimitExceeded          = enginev1.Reason_REASON_LIMIT_EXCEEDED
	ShuttingDown           = enginev1.Reason_REASON_SHUTTING_DOWN
	Internal               = enginev1.Reason_REASON_INTERNAL
	ProofFailed            = enginev1.Reason_REASON_PROOF_FAILED
	BreakerOpen            = enginev1.Reason_REASON_BREAKER_OPEN
	RecordUnreadable       = enginev1.Reason_REASON_RECORD_UNREADABLE
	OutageNotAccepted      = enginev1.Reason_REASON_OUTAGE_NOT_ACCEPTED
)

// Code is the gRPC code of a reason. It is UNKNOWN for Unspecified, EngineExited, BreakerOpen and RecordUnreadable,
// which no call fails with, and for values that this version does not know.
func Code(r Reason) codes.Code {
	switch r {
	case InvalidParams:
		return codes.InvalidArgument
	case PoolNotFound, PreparedNotFound, EngineNotFound, ModelNotFound:
		return codes.NotFound
	case PoolExists:
		return codes.AlreadyExists
	case PoolBusy:
		return codes.Aborted
	case PoolUnready, PoolDraining, ToolMissing, WorkerStartFailed, PortInUse, ProofFailed, OutageNotAccepted:
		return codes.FailedPrecondition
	case UntrustedArtifact:
		return codes.PermissionDenied
	case DigestMismatch:
		return codes.DataLoss
	case BuildFailed, StorageFailed, StopFailed, Internal:
		return codes.Internal
	case FetchFailed, ProvisionerUnavailable, ShuttingDown:
		return codes.Unavailable
	case DiskFull, LimitExceeded:
		return codes.ResourceExhausted
	case WorkerStartTimeout:
		return codes.DeadlineExceeded
	case Cancelled:
		return codes.Canceled
	default:
		return codes.Unknown
	}
}
