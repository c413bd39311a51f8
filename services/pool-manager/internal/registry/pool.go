// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"fmt"
	"time"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/supervision"
)

// PoolID names a pool of this node.
type PoolID string

// ReplicaID names one replica of a pool of this node.
type ReplicaID string

// Replica returns the id of the replica with this index.
func (id PoolID) Replica(index int) ReplicaID {
	return ReplicaID(fmt.Sprintf("%s-%d", id, index))
}

// Spec is what a pool should be. It is never changed after it was accepted.
type Spec struct {
	// ID of the pool.
	ID PoolID
	// Prepare is what to prepare first; nil if PreparedID is set.
	Prepare *enginev1.PrepareSpec
	// PreparedID names what was prepared before; empty if Prepare is set.
	PreparedID string
	// Replicas is how many engines, from 1.
	Replicas int
	// Port to serve on; 0 lets the engine pick one.
	Port uint16
	// StartupTimeout limits each start; 0 means what the engine's contract says.
	StartupTimeout time.Duration
	// Restart says how engines are started again; every default is filled in.
	Restart supervision.Policy
	// Health says how it is told whether engines work; every default is filled in.
	Health supervision.Health
	// Residency says when the pool is loaded.
	Residency Residency
	// IdleTimeout unloads the pool after so long without a request; 0 means never.
	IdleTimeout time.Duration
	// Priority of the pool when pools come back; higher ones first.
	Priority int
	// Labels are for others.
	Labels map[string]string
}

// Residency says when a pool is loaded.
type Residency int

// The residencies, as roundhouse.pool.v1.Residency describes them.
const (
	Pinned Residency = iota + 1
	TTL
	Lazy
)

// State is where a pool stands.
type State int

// The states of a pool, as roundhouse.pool.v1.PoolState describes them.
const (
	StateLoading State = iota + 1
	StateReady
	StateDraining
	StateStopped
	StateFailed
	StateDegraded
	StateRecovering
)

func (s State) String() string {
	return [...]string{"UNSPECIFIED", "LOADING", "READY", "DRAINING", "STOPPED", "FAILED", "DEGRADED", "RECOVERING"}[s]
}

// Phase is a stage of the way to READY.
type Phase int

// The phases, as roundhouse.pool.v1.LoadPhase describes them; the zero value means not loading.
const (
	PhasePreparing Phase = iota + 1
	PhaseStarting
	PhaseLoading
	PhaseVerifying
)

func (p Phase) String() string {
	return [...]string{"NONE", "PREPARING", "STARTING", "LOADING", "VERIFYING"}[p]
}

// ReplicaState is where a replica stands.
type ReplicaState int

// The states of a replica, as roundhouse.pool.v1.ReplicaState describes them.
const (
	ReplicaStarting ReplicaState = iota + 1
	ReplicaReady
	ReplicaDraining
	ReplicaStopping
	ReplicaStopped
	ReplicaFailed
	ReplicaBackoff
)

func (s ReplicaState) String() string {
	return [...]string{"UNSPECIFIED", "STARTING", "READY", "DRAINING", "STOPPING", "STOPPED", "FAILED", "BACKOFF"}[s]
}

// Pool is a snapshot. Nobody changes one, nor anything it refers to, after it was put into a Registry.
type Pool struct {
	Spec     Spec
	State    State
	Phase    Phase
	Failure  *Failure
	Prepared *enginev1.PreparedEngine
	Replicas []Replica
	Created  time.Time
	// Wanted is whether the pool is to serve, now and after a restart.
	Wanted bool
	// Edition counts what was made of the pool.
	Edition uint64
	// Retiring are engines of before a reload that end what they have.
	Retiring []Replica
	// Reload is where a reload stands; nil if there is none.
	Reload *ReloadStatus

	// Revision and Updated are set by the Registry.
	Revision uint64
	Updated  time.Time
}

// Replica is one engine process of a pool, as far as it is known.
type Replica struct {
	ID         ReplicaID
	Index      int
	Generation uint64
	State      ReplicaState
	// Endpoint is the base URL while the replica may be sent requests or still ends some; else empty.
	Endpoint   string
	PID        int
	SlotsTotal int
	Started    time.Time
	Ready      time.Time
	// LogPath is the file that holds the output of this start.
	LogPath string
	// Exit says how the last process ended; nil before one has.
	Exit *Exit
	// Supervision is how it was and will be started again.
	Supervision supervision.Status
	// Loading is how far its load has come; nil unless State is ReplicaStarting.
	Loading *LoadProgress
	// Adopted is true if an earlier manager had started the process.
	Adopted bool
}

// LoadProgress is how far a load has come, as roundhouse.pool.v1.LoadProgress describes it.
type LoadProgress struct {
	LoadedBytes int64
	TotalBytes  int64
	// Remaining is 0 if it is not known.
	Remaining time.Duration
	// StillSince is zero while something moves.
	StillSince time.Time
}

// ReloadStatus is where a reload stands.
type ReloadStatus struct {
	Phase      ReloadPhase
	Candidates []Replica
}

// ReloadPhase is a stage of a reload.
type ReloadPhase int

// The phases, as roundhouse.pool.v1.ReloadPhase describes them.
const (
	ReloadPreparing ReloadPhase = iota + 1
	ReloadStoppingOld
	ReloadStarting
	ReloadProving
	ReloadDrainingOld
	ReloadRollingBack
)

// Exit is how a process ended.
type Exit struct {
	Class       enginev1.ExitClass
	Code        int
	Signal      string
	Uptime      time.Duration
	Ended       time.Time
	LastLines   []string
	RequestsCut int
}

// Failure is why a pool is not as it should be.
type Failure struct {
	Reason  enginev1.Reason
	Message string
	At      time.Time
}
