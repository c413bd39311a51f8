// SPDX-License-Identifier: Apache-2.0

// Package failpoint names the moments at which a crash of pool-managerd matters, so that a test can make it crash there.
//
// In a program that was built with the tag failpoint, the environment variable ROUNDHOUSE_FAILPOINT=NAME, or NAME:N, kills it
// when it comes to that moment, or comes to it for the N-th time: nothing of it runs afterwards, as after kill -9. Without the
// tag nothing here reads the environment, and Hit costs nothing. All functions may be called by many goroutines.
package failpoint

import "slices"

// Variable is the environment variable that names the moment.
const Variable = "ROUNDHOUSE_FAILPOINT"

// Name of a moment.
type Name string

// Writing any record.
const (
	RecordWritten Name = "record-written" // it is synced under another name.
	RecordPlaced  Name = "record-placed"  // it has its own name, which is not synced.
	RecordTaken   Name = "record-taken"   // it has lost its name, which is not synced.
)

// Starting an engine.
const (
	StartIntended Name = "start-intended" // it is on record that there is to be a process.
	StartSpawned  Name = "start-spawned"  // there is one.
	StartRecorded Name = "start-recorded" // it is on record which.
	StartProven   Name = "start-proven"   // it has proven what it is.
	StartOffered  Name = "start-offered"  // its handoff file is there.
	StartReady    Name = "start-ready"    // it is on record that it is ready.
)

// Preload.
const (
	PreloadPrepared  Name = "preload-prepared"  // engine and model are there.
	PreloadReady     Name = "preload-ready"     // every engine is ready, and it is not on record that the pool is to serve.
	PreloadCommitted Name = "preload-committed" // it is.
)

// Ending an engine.
const (
	StopEnded   Name = "stop-ended"   // nothing of it is left but its record.
	StopNoted   Name = "stop-noted"   // it is on record how it has ended.
	StopCleared Name = "stop-cleared" // its own record is gone.
)

// Drain.
const (
	DrainWithdrawn Name = "drain-withdrawn" // nobody is offered the pool any more.
	DrainIdle      Name = "drain-idle"      // its requests have ended.
	DrainUnwanted  Name = "drain-unwanted"  // it is on record that the pool is not to serve.
	DrainStopped   Name = "drain-stopped"   // its engines are gone.
)

// Reload.
const (
	ReloadPrepared    Name = "reload-prepared"     // engine and model are there.
	ReloadStarted     Name = "reload-started"      // the new engines are ready.
	ReloadProven      Name = "reload-proven"       // they have proven more.
	ReloadCommitted   Name = "reload-committed"    // it is on record that they are the pool's.
	ReloadSwitched    Name = "reload-switched"     // everybody is told so.
	ReloadOffered     Name = "reload-offered"      // their handoff files are there.
	ReloadDrained     Name = "reload-drained"      // the requests of the old engines have ended.
	ReloadRetired     Name = "reload-retired"      // the old engines are gone.
	ReloadOldStopped  Name = "reload-old-stopped"  // they are, before there are new ones.
	ReloadRollingBack Name = "reload-rolling-back" // the new ones have failed and are gone.
)

// The end of an engine that nobody has asked to end.
const (
	RestartBuried  Name = "restart-buried"  // what it has left is gone.
	RestartDecided Name = "restart-decided" // it is decided what comes next.
)

// Taking over what an earlier manager has left.
const (
	RestoreLoaded   Name = "restore-loaded"   // its records are read.
	AdoptAttached   Name = "adopt-attached"   // the process of an engine is held.
	AdoptProven     Name = "adopt-proven"     // it has proven what it is.
	RestoreAdopted  Name = "restore-adopted"  // all are taken over.
	LeftoverEnded   Name = "leftover-ended"   // an engine that belongs to no pool is gone.
	RestoreUnloaded Name = "restore-unloaded" // a pool that does not come back by itself was found.
)

// Deleting a pool.
const (
	DeleteRemoved   Name = "delete-removed"   // its record is gone.
	DeleteForgotten Name = "delete-forgotten" // all else of it is.
)

// All returns every name. A name that is not among them cannot be given to Hit's variable.
func All() []Name {
	return []Name{
		RecordWritten, RecordPlaced, RecordTaken,
		StartIntended, StartSpawned, StartRecorded, StartProven, StartOffered, StartReady,
		PreloadPrepared, PreloadReady, PreloadCommitted,
		StopEnded, StopNoted, StopCleared,
		DrainWithdrawn, DrainIdle, DrainUnwanted, DrainStopped,
		ReloadPrepared, ReloadStarted, ReloadProven, ReloadCommitted, ReloadSwitched, ReloadOffered, ReloadDrained, ReloadRetired,
		ReloadOldStopped, ReloadRollingBack,
		RestartBuried, RestartDecided,
		RestoreLoaded, AdoptAttached, AdoptProven, RestoreAdopted, LeftoverEnded, RestoreUnloaded,
		DeleteRemoved, DeleteForgotten,
	}
}

// Known tells whether there is such a name.
func Known(name Name) bool { return slices.Contains(All(), name) }
