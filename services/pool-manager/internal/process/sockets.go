// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// judgement is how long a listener that was found foreign is taken for it without looking again.
const judgement = 100 * time.Millisecond

// listening is the state of a listening socket in /proc/net/tcp.
const listening = "0A"

// Listener is one listening TCP socket.
type Listener struct {
	Addr  netip.AddrPort
	Inode uint64
	PID   int // a process that has it open; 0 if none could be found.
}

// Sockets is who listens where, as one tree sees it.
type Sockets struct {
	Ours    []Listener // listeners that the tree has open, by port.
	Foreign []Listener // listeners of others on the asked port.
}

// Sockets returns the listening TCP sockets of p's tree and, if port is not 0, those of others on that port. A socket
// that is opened or closed meanwhile may be missing, or be Foreign once: ask again before acting on it.
func (p *Process) Sockets(port uint16) (Sockets, error) {
	table, err := p.host.listening.get(0, listeners)
	if err != nil {
		return Sockets{}, err
	}
	found := attribute(table, []int{p.id.PID})
	if doubtful := len(found.Ours) == 0 || slices.ContainsFunc(found.Foreign, onPort(port)); doubtful && !p.judged(found.Foreign) {
		members, err := p.Tree()
		if err != nil {
			return Sockets{}, err
		}
		pids := make([]int, len(members))
		for i, m := range members {
			pids[i] = m.PID
		}
		found = attribute(table, pids)
		p.judge(found.Foreign)
	}
	found.Foreign = slices.DeleteFunc(found.Foreign, func(l Listener) bool { return !onPort(port)(l) })
	return found, nil
}

// judged tells whether all of these were found foreign a moment ago. Looking through the whole tree costs far more than
// listing sockets, and a socket does not change its owner.
func (p *Process) judged(listeners []Listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.judgedAt) < judgement && !slices.ContainsFunc(listeners, func(l Listener) bool { return !p.foreign[l.Inode] })
}

func (p *Process) judge(foreign []Listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.foreign, p.judgedAt = make(map[uint64]bool, len(foreign)), time.Now()
	for _, l := range foreign {
		p.foreign[l.Inode] = true
	}
}

// Holder returns who listens on the port of any address of this machine: the pid and its name. Pid 0 means that nobody
// does, or that the holder is another user's and cannot be seen.
func (h *Host) Holder(port uint16) (pid int, comm string, err error) {
	table, err := listeners()
	if err != nil {
		return 0, "", err
	}
	table = slices.DeleteFunc(table, func(l Listener) bool { return !onPort(port)(l) })
	if len(table) == 0 {
		return 0, "", nil
	}
	all, err := h.census(0)
	if err != nil {
		return 0, "", err
	}
	for pid, s := range all {
		if found := attribute(table, []int{pid}); len(found.Ours) > 0 {
			return pid, s.Comm, nil
		}
	}
	return 0, "", nil
}

func onPort(port uint16) func(Listener) bool {
	return func(l Listener) bool { return port != 0 && l.Addr.Port() == port }
}

// attribute splits a table of listeners into those that one of the pids has open and the rest.
func attribute(table []Listener, pids []int) Sockets {
	holder := map[uint64]int{}
	for _, pid := range pids {
		for _, inode := range socketsOf(pid) {
			holder[inode] = pid
		}
	}
	var s Sockets
	for _, l := range table {
		if pid, ok := holder[l.Inode]; ok {
			l.PID = pid
			s.Ours = append(s.Ours, l)
		} else {
			s.Foreign = append(s.Foreign, l)
		}
	}
	return s
}

// socketsOf returns the inodes of the sockets that a process has open; none if it may not be looked at.
func socketsOf(pid int) []uint64 {
	dir, err := os.Open(procPath(pid, "fd"))
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var inodes []uint64
	for _, name := range names {
		link, err := os.Readlink(procPath(pid, "fd/"+name))
		if err != nil {
			continue
		}
		if number, ok := strings.CutPrefix(link, "socket:["); ok {
			if inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64); err == nil {
				inodes = append(inodes, inode)
			}
		}
	}
	return inodes
}

// listeners returns every listening TCP socket of our network namespace, which the engines share, by port and address.
func listeners() ([]Listener, error) {
	all, err := askListeners()
	if errors.Is(err, errNoDiag) { // Sandboxes and small kernels; slower.
		all, err = readListeners()
	}
	if err != nil {
		return nil, fmt.Errorf("list listeners: %w", err)
	}
	slices.SortFunc(all, func(a, b Listener) int {
		return cmp.Or(cmp.Compare(a.Addr.Port(), b.Addr.Port()), a.Addr.Compare(b.Addr))
	})
	return all, nil
}

// readListeners finds the listeners in /proc.
func readListeners() ([]Listener, error) {
	var all []Listener
	for _, path := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		table, err := readTable(path)
		if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(path, "6") {
			continue // A machine without IPv6.
		}
		if err != nil {
			return nil, err
		}
		all = append(all, table...)
	}
	return all, nil
}

// readTable reads the listeners at the head of a socket table; the kernel lists them before all connections.
func readTable(path string) ([]Listener, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var found []Listener
	lines := bufio.NewScanner(f)
	for first := true; lines.Scan(); first = false {
		if first {
			continue
		}
		l, listens, err := parseSocket(lines.Text())
		if err != nil {
			return nil, err
		}
		if !listens {
			break
		}
		found = append(found, l)
	}
	return found, lines.Err()
}

// parseSocket reads one row: "0: 0100007F:1F90 00000000:0000 0A ... uid timeout inode ...".
func parseSocket(row string) (l Listener, listens bool, err error) {
	const local, state, inode = 1, 3, 9
	fields := strings.Fields(row)
	if len(fields) <= inode {
		return Listener{}, false, fmt.Errorf("parse socket row %q: %d fields", row, len(fields))
	}
	if fields[state] != listening {
		return Listener{}, false, nil
	}
	host, port, ok := strings.Cut(fields[local], ":")
	raw, hexErr := hex.DecodeString(host)
	number, portErr := strconv.ParseUint(port, 16, 16)
	id, inodeErr := strconv.ParseUint(fields[inode], 10, 64)
	if err := errors.Join(hexErr, portErr, inodeErr); err != nil || !ok || len(raw)%4 != 0 {
		return Listener{}, false, fmt.Errorf("parse socket row %q: %w", row, err)
	}
	for word := range slices.Chunk(raw, 4) { // Each 32-bit word is in host order, which is little-endian on our targets.
		slices.Reverse(word)
	}
	addr, ok := netip.AddrFromSlice(raw)
	if !ok {
		return Listener{}, false, fmt.Errorf("parse socket row %q: address of %d bytes", row, len(raw))
	}
	return Listener{Addr: netip.AddrPortFrom(addr.Unmap(), uint16(number)), Inode: id}, true, nil
}
