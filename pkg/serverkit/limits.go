// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/wire"
)

const (
	// readRequestBytes is where gRPC itself stops reading a request. It is above wire.MaxRequestBytes, since gRPC's own
	// refusal cannot carry a reason: what lies between is read and then refused as LIMIT_EXCEEDED.
	readRequestBytes = 4 * wire.MaxRequestBytes
	// maxStreams is the number of calls in flight on one connection: every pool of a large node watched and loading.
	maxStreams = 1024
	// maxHeaderBytes bounds the metadata of a call; ours has a request id and trace ids, some hundred bytes.
	maxHeaderBytes = 64 << 10
	// connectTimeout ends connections that do not get as far as HTTP/2; on one machine that takes milliseconds.
	connectTimeout = 10 * time.Second
	// minPing is the shortest time between a client's keepalive pings. Our client pings every 30 s.
	minPing = 10 * time.Second
	// pingIdle and pingTimeout find a caller that is there but does not answer, such as a stopped process.
	pingIdle    = time.Minute
	pingTimeout = 20 * time.Second
	// maxIdle closes connections without calls; clients connect again by themselves.
	maxIdle = 15 * time.Minute
	// defaultStopGrace ends before service managers lose patience, which is 90 s at systemd and 10 s at containers.
	defaultStopGrace = 10 * time.Second
	// quietGrace is how long a health watcher has to hear NOT_SERVING before its stream ends, which nothing else waits for.
	quietGrace = 250 * time.Millisecond
	// cutGrace is what a handler may take to return after its context has ended.
	cutGrace = time.Second
	// maxRequestIDBytes is the longest request id that is taken from a caller.
	maxRequestIDBytes = 128
	// maxLoggedIDBytes is where an id from a request that may be invalid is cut in the log. Valid ids have 63.
	maxLoggedIDBytes = 64
	// probeTimeout is how long a process behind a socket may take to accept before it counts as alive but slow.
	probeTimeout = time.Second
)
