// SPDX-License-Identifier: Apache-2.0

package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Layout of the kernel's sock_diag answers, from linux/inet_diag.h and linux/sock_diag.h.
const (
	diagByFamily  = 20 // SOCK_DIAG_BY_FAMILY
	diagRequest   = 56 // size of inet_diag_req_v2
	diagAnswer    = 72 // size of inet_diag_msg
	diagPort      = 4  // offsets in inet_diag_msg
	diagAddress   = 8
	diagInode     = 68
	stateListen   = 10 // TCP_LISTEN
	diagBufferLen = 32 << 10
)

// errNoDiag says that this kernel does not answer socket questions by netlink.
var errNoDiag = errors.New("sock_diag is not available")

// askListeners asks the kernel for the listening TCP sockets of our network namespace. It costs as much as there are
// listeners; the tables in /proc cost as much as the kernel could hold connections.
func askListeners() ([]Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, errNoDiag
	}
	if err != nil {
		return nil, fmt.Errorf("open sock_diag: %w", err)
	}
	defer unix.Close(fd)
	var all []Listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		found, err := dumpListeners(fd, family)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// dumpListeners makes one request and reads its answers.
func dumpListeners(fd int, family uint8) ([]Listener, error) {
	request := make([]byte, unix.SizeofNlMsghdr+diagRequest)
	host := binary.NativeEndian
	host.PutUint32(request[0:], uint32(len(request)))
	host.PutUint16(request[4:], diagByFamily)
	host.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	request[unix.SizeofNlMsghdr], request[unix.SizeofNlMsghdr+1] = family, unix.IPPROTO_TCP
	host.PutUint32(request[unix.SizeofNlMsghdr+4:], 1<<stateListen)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask sock_diag: %w", err)
	}
	var found []Listener
	buf := make([]byte, diagBufferLen)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read sock_diag: %w", err)
		}
		some, done, err := parseDiag(buf[:n])
		if err != nil {
			return nil, err
		}
		found = append(found, some...)
		if done {
			return found, nil
		}
	}
}

// parseDiag reads the messages of one datagram, and tells whether the last answer was among them.
func parseDiag(b []byte) (found []Listener, done bool, err error) {
	host := binary.NativeEndian
	for len(b) >= unix.SizeofNlMsghdr {
		size, kind := int(host.Uint32(b)), host.Uint16(b[4:])
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return nil, false, fmt.Errorf("read sock_diag: a message of %d bytes in %d", size, len(b))
		}
		body := b[unix.SizeofNlMsghdr:size]
		b = b[min(len(b), (size+3)&^3):]
		switch kind {
		case unix.NLMSG_DONE:
			return found, true, nil
		case unix.NLMSG_ERROR:
			return nil, false, diagError(body)
		case diagByFamily:
			l, err := parseDiagListener(body)
			if err != nil {
				return nil, false, err
			}
			found = append(found, l)
		}
	}
	return found, false, nil
}

func diagError(body []byte) error {
	if len(body) < 4 {
		return errors.New("read sock_diag: cut error message")
	}
	code := unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
	if code == unix.ENOENT || code == unix.EINVAL || code == unix.EOPNOTSUPP { // No handler for TCP in this kernel.
		return errNoDiag
	}
	return fmt.Errorf("read sock_diag: %w", code)
}

func parseDiagListener(body []byte) (Listener, error) {
	if len(body) < diagAnswer {
		return Listener{}, fmt.Errorf("read sock_diag: an answer of %d bytes", len(body))
	}
	length := 4
	if body[0] == unix.AF_INET6 {
		length = 16
	}
	addr, _ := netip.AddrFromSlice(body[diagAddress : diagAddress+length])
	return Listener{
		Addr:  netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(body[diagPort:])),
		Inode: uint64(binary.NativeEndian.Uint32(body[diagInode:])),
	}, nil
}
