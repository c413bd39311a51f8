// SPDX-License-Identifier: Apache-2.0

package process

import (
	"cmp"
	"fmt"
	"slices"
)

// Stray is a start that its manager has no record of: whatever lives of it.
type Stray struct {
	Nonce         string // ends it, given to Sweep.
	Pool, Replica string // as its Command had them.
	Generation    uint64
	Members       []Member // by pid; never empty.
}

// Strays returns what lives on this machine of the manager's starts whose nonces are not among the known ones, by nonce.
// A start is found while one of its processes has kept its environment; its members are then found as Tree finds them. A
// process that may not be read, because it is another user's, belongs to none. Nothing is signalled.
func (h *Host) Strays(manager string, known []string) ([]Stray, error) {
	if manager == "" {
		return nil, nil
	}
	all, err := h.census(0)
	if err != nil {
		return nil, fmt.Errorf("look for strays of %s: %w", manager, err)
	}
	found := map[string]marks{}
	for pid, s := range all {
		if pid == h.self || s.dead() {
			continue
		}
		if m := s.marks(); m.Nonce != "" && m.Manager == manager && !slices.Contains(known, m.Nonce) {
			found[m.Nonce] = m
		}
	}
	var strays []Stray
	for nonce, m := range found {
		members := h.treeIn(all, Identity{BootID: h.bootID, Nonce: nonce}, nil)
		if len(members) > 0 {
			strays = append(strays, Stray{Nonce: nonce, Pool: m.Pool, Replica: m.Replica, Generation: m.Generation, Members: members})
		}
	}
	slices.SortFunc(strays, func(a, b Stray) int { return cmp.Compare(a.Nonce, b.Nonce) })
	return strays, nil
}
