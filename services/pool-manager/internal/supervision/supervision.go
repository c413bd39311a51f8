// SPDX-License-Identifier: Apache-2.0

// Package supervision decides what the end of an engine means and when it starts again, and whether an engine still works.
//
// It is policy and nothing else: every function takes what is remembered, what was seen and now, and returns what to
// remember and what to do. It reads no clock, waits for nothing, draws no random number and touches no process, so the same
// history always has the same outcome. Values are copied, never changed in place: one that was handed out stays as it was.
//
// A Track remembers one replica's starts and failures, and is what must survive the manager. Liveness and Load judge a
// process by what moves of it; they last as long as it is watched. Their owner calls one of them from one goroutine at a time.
package supervision
