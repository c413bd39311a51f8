// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// securityProtocol names the credentials in gRPC's own descriptions.
const securityProtocol = "peercred"

// PeerInfo is what the kernel says about the caller on a Unix socket, as the AuthInfo of the connection. The process may
// have handed the connection on since, so PID is good for logs only.
type PeerInfo struct {
	credentials.CommonAuthInfo
	// UID is the caller's user when it connected.
	UID uint32
	// PID is the caller's process when it connected.
	PID int32
}

// AuthType names the kind of credentials.
func (PeerInfo) AuthType() string { return securityProtocol }

// peerCredentials admit to Unix sockets whom they know, and everybody to TCP, which is loopback here. Nothing is
// encrypted and nothing is sent, so plain clients work.
type peerCredentials struct {
	log     *zap.Logger
	allowed map[uint32]bool
}

// newPeerCredentials admits root, the process's own user and the given ones.
func newPeerCredentials(log *zap.Logger, extra []uint32) *peerCredentials {
	allowed := map[uint32]bool{0: true, uint32(os.Geteuid()): true}
	for _, uid := range extra {
		allowed[uid] = true
	}
	return &peerCredentials{log: log, allowed: allowed}
}

// ServerHandshake refuses a caller that is not allowed and logs that it did.
func (c *peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return conn, PlainInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.NoSecurity}}, nil
	}
	ucred, err := peerOf(socket)
	if err != nil {
		c.log.Warn("connection refused: its user is not known", zap.Error(err))
		return nil, nil, err
	}
	if !c.allowed[ucred.Uid] {
		c.log.Warn("connection refused: its user is not allowed",
			zap.Uint32("peer_uid", ucred.Uid), zap.Int32("peer_pid", ucred.Pid))
		return nil, nil, fmt.Errorf("refuse uid %d: not the owner of the service", ucred.Uid)
	}
	return conn, PeerInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		UID:            ucred.Uid,
		PID:            ucred.Pid,
	}, nil
}

// PlainInfo is the AuthInfo of a loopback TCP connection: nothing is known of the caller.
type PlainInfo struct{ credentials.CommonAuthInfo }

// AuthType names the kind of credentials.
func (PlainInfo) AuthType() string { return "loopback" }

func peerOf(socket *net.UnixConn) (*unix.Ucred, error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("read peer credentials: %w", err)
	}
	var ucred *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) { ucred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, optErr); err != nil {
		return nil, fmt.Errorf("read peer credentials: %w", err)
	}
	return ucred, nil
}

// ClientHandshake is never used: these are a server's credentials.
func (c *peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("peer credentials are for servers")
}

// Info describes the credentials.
func (c *peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: securityProtocol}
}

// Clone is the same credentials: they never change.
func (c *peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing: there are no names here.
func (c *peerCredentials) OverrideServerName(string) error { return nil }
