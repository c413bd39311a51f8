// SPDX-License-Identifier: Apache-2.0

package command

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ownerOf is the user that listens on the Unix socket at the other end of conn.
func ownerOf(conn net.Conn) (uid int, err error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("read owner of socket: it is a %T", conn)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read owner of socket: %w", err)
	}
	var owner *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) { owner, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, optErr); err != nil {
		return 0, fmt.Errorf("read owner of socket: %w", err)
	}
	return int(owner.Uid), nil
}
