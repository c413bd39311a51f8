// SPDX-License-Identifier: Apache-2.0

package process

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strings"
)

// ErrGone says that no process of the asked identity is left: another boot, no such pid, or only its zombie.
var ErrGone = errors.New("process is gone")

// ErrNotOurs says that the pid now belongs to another process. It was not signalled and must not be.
var ErrNotOurs = errors.New("process is not ours")

// Identity names one process of one start for good (G2). All fields must agree before a signal is sent to a process
// that an earlier manager started. Its JSON form is part of the records on disk.
type Identity struct {
	BootID     string `json:"boot_id"`
	PID        int    `json:"pid"`         // 0 while a start is only intended.
	StartTicks uint64 `json:"start_ticks"` // clock ticks from boot to the start, as /proc/PID/stat has it.
	Executable string `json:"executable"`  // what /proc/PID/exe pointed at.
	Nonce      string `json:"nonce"`
}

// NewNonce returns 128 random bits in hex, a mark for one start.
func NewNonce() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // Never fails: crypto/rand ends the program instead.
	return hex.EncodeToString(b[:])
}

// BootID tells which boot of the machine this is; identities of another boot name nothing here.
func (h *Host) BootID() string { return h.bootID }

// verify returns nil if the process at id.PID is the one that id names, ErrGone if none is there and ErrNotOurs if
// it is another.
func (h *Host) verify(id Identity) error {
	if id.BootID != h.bootID {
		return fmt.Errorf("%w: it was started under boot %q, this is boot %q", ErrGone, id.BootID, h.bootID)
	}
	st, err := readStat(id.PID)
	if err != nil {
		return fmt.Errorf("%w: pid %d: %w", ErrGone, id.PID, err)
	}
	if st.StartTicks != id.StartTicks {
		return fmt.Errorf("%w: pid %d started at tick %d, recorded was %d", ErrNotOurs, id.PID, st.StartTicks, id.StartTicks)
	}
	if st.dead() {
		return fmt.Errorf("%w: pid %d is a zombie", ErrGone, id.PID)
	}
	if exe, err := executableOf(id.PID); err != nil || exe != id.Executable {
		return fmt.Errorf("%w: pid %d runs %q, recorded was %q", ErrNotOurs, id.PID, exe, id.Executable)
	}
	if !carriesNonce(id.PID, id.Nonce) {
		return fmt.Errorf("%w: pid %d does not carry the recorded nonce", ErrNotOurs, id.PID)
	}
	return nil
}

// executableOf returns the path of the file that a process runs, also when that file has been replaced since.
func executableOf(pid int) (string, error) {
	exe, err := os.Readlink(procPath(pid, "exe"))
	return strings.TrimSuffix(exe, " (deleted)"), err
}
