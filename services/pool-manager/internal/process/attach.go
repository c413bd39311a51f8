// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Attach takes a hold on a process that an earlier manager started. The hold comes first and the identity is checked
// under it, so that the result can never mean another process (G2). It fails with ErrGone if the process is not there
// any more and with ErrNotOurs if its pid belongs to another; in both cases nothing is signalled, and Sweep with the
// recorded nonce finds what the start may have left.
func (h *Host) Attach(id Identity) (*Process, error) {
	if id.PID <= 1 || id.PID == h.self || id.Nonce == "" {
		return nil, fmt.Errorf("attach pid %d: %w", id.PID, ErrNotOurs)
	}
	fd, err := openPidfd(id.PID)
	if err != nil {
		return nil, fmt.Errorf("attach pid %d: %w", id.PID, err)
	}
	err = h.verify(id)
	if err == nil && fd.exited() {
		err = ErrGone // Whatever was read may be of a successor at the same pid.
	}
	if err != nil {
		fd.close()
		return nil, fmt.Errorf("attach pid %d: %w", id.PID, err)
	}
	ctx, cancel := context.WithCancel(context.Background()) // Bound to no caller; Release ends it.
	p := &Process{
		host: h, id: id, fd: fd, started: time.Now(), release: cancel, done: make(chan struct{}),
		watched: make(chan struct{}), oomBase: h.oom.baseline(procPath(id.PID, "cgroup")), known: map[int]uint64{id.PID: id.StartTicks},
	}
	go p.watch(ctx)
	return p, nil
}

// pin takes a hold on a member seen before; ErrGone if it has exited since.
func (m Member) pin() (*pidfd, error) {
	fd, err := openPidfd(m.PID)
	if err != nil {
		return nil, err
	}
	st, err := readStat(m.PID)
	if err != nil || st.StartTicks != m.StartTicks {
		fd.close()
		return nil, errors.Join(ErrGone, err)
	}
	return fd, nil
}
