// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"maps"
	"slices"
)

// Member is one living process of a tree, as it was when looked at.
type Member struct {
	PID, PPID, PGID, SID int
	StartTicks           uint64
	State                byte // R, S, D, T ... as in proc(5).
	Comm                 string
}

func (m Member) String() string { return fmt.Sprintf("%d %s (%c)", m.PID, m.Comm, m.State) }

// Tree returns the living processes of p's start by pid: its session, its group, their descendants, and every process
// with its nonce or mark. What was once seen as a member stays one. Zombies are not alive. Empty means that all is gone.
func (p *Process) Tree() ([]Member, error) {
	known := p.members()
	members, err := p.host.tree(p.id, known)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for pid := range known { // One that is gone never comes back with the same start time.
		delete(p.known, pid)
	}
	for _, m := range members {
		p.known[m.PID] = m.StartTicks
	}
	return members, nil
}

// members returns the start ticks by pid of those whom the newest look found.
func (p *Process) members() map[int]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.known)
}

// Find returns the living processes that carry the nonce or the mark that goes with it, and their descendants. It is how
// a start whose pid was never recorded is found again (G1).
func (h *Host) Find(nonce string) ([]Member, error) {
	return h.tree(Identity{BootID: h.bootID, Nonce: nonce}, nil)
}

// tree finds the living members of the start that id names. Session and group count only while the root holds its pid,
// or while a proven member is in them: otherwise the number may have come to mean a stranger.
func (h *Host) tree(id Identity, known map[int]uint64) ([]Member, error) {
	if id.BootID != h.bootID {
		return nil, nil
	}
	all, err := h.census(0)
	if err != nil {
		return nil, err
	}
	return h.treeIn(all, id, known), nil
}

// treeIn is tree in a census that was taken.
func (h *Host) treeIn(all census, id Identity, known map[int]uint64) []Member {
	in, mark := map[int]bool{}, markOf(id.Nonce)
	root := all[id.PID]
	held := id.PID != 0 && root != nil && root.StartTicks == id.StartTicks
	inSession, inGroup := held, held
	for pid, s := range all {
		ticks, seen := known[pid]
		switch {
		case pid == h.self || pid == 1 || s.StartTicks < id.StartTicks: // An older one cannot have been started by ours.
		case held && (pid == id.PID || s.SID == id.PID || s.PGID == id.PID), seen && ticks == s.StartTicks:
			in[pid] = true
		case !s.dead() && s.bears(id.Nonce, mark):
			in[pid] = true
		}
		if in[pid] && id.PID != 0 {
			inSession = inSession || s.SID == id.PID
			inGroup = inGroup || s.PGID == id.PID
		}
	}
	for pid, s := range all {
		if s.StartTicks >= id.StartTicks && (inSession && s.SID == id.PID || inGroup && s.PGID == id.PID) {
			in[pid] = true
		}
	}
	addDescendants(all, in)
	delete(in, h.self)
	var members []Member
	for pid := range in {
		if !all[pid].dead() {
			members = append(members, all[pid].Member)
		}
	}
	slices.SortFunc(members, func(a, b Member) int { return a.PID - b.PID })
	return members
}

// addDescendants adds to in whatever of all has a parent in it, children of children too.
func addDescendants(all census, in map[int]bool) {
	for grown := true; grown; {
		grown = false
		for pid, s := range all {
			if !in[pid] && in[s.PPID] {
				in[pid], grown = true, true
			}
		}
	}
}
