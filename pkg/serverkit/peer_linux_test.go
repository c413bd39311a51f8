// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/credentials"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// accepted is the server's end of a new connection over the network.
func accepted(t *testing.T, network, address string) net.Conn {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial(network, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return server
}

func TestPeerCredentials(t *testing.T) {
	t.Parallel()
	me := uint32(os.Geteuid())
	tests := []struct {
		name    string
		network string
		allowed map[uint32]bool
		want    string // AuthType; empty if the caller must be refused
	}{
		{"own user", "unix", newPeerCredentials(nil, nil).allowed, securityProtocol},
		{"another user who is allowed", "unix", map[uint32]bool{me: true}, securityProtocol},
		{"a user who is not allowed", "unix", map[uint32]bool{me + 1: true}, ""},
		{"loopback", "tcp", nil, "loopback"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			address := "127.0.0.1:0"
			if tt.network == "unix" {
				address = filepath.Join(testkit.ShortDir(t), "s.sock")
			}
			logs := testkit.NewLogCapture(t)
			creds := &peerCredentials{log: logs.Logger, allowed: tt.allowed}
			_, info, err := creds.ServerHandshake(accepted(t, tt.network, address))
			if tt.want == "" {
				lines := logs.Lines("connection refused: its user is not allowed")
				if err == nil || len(lines) != 1 || lines[0].Fields["peer_uid"] != me || lines[0].Fields["peer_pid"] != int32(os.Getpid()) {
					t.Errorf("handshake = %v, %v, logged %v; want a refusal, logged with uid and pid", info, err, lines)
				}
				return
			}
			if err != nil || info.AuthType() != tt.want {
				t.Fatalf("handshake = %v, %v; want %s", info, err, tt.want)
			}
			if peer, ok := info.(PeerInfo); tt.network == "unix" && (!ok || peer.UID != me || peer.PID != int32(os.Getpid())) {
				t.Errorf("peer = %+v, want uid %d and pid %d", info, me, os.Getpid())
			}
		})
	}
}

func TestPeerCredentialsAdmitRootSelfAndTheGiven(t *testing.T) {
	t.Parallel()
	creds := newPeerCredentials(nil, []uint32{4711})
	for _, uid := range []uint32{0, uint32(os.Geteuid()), 4711} {
		if !creds.allowed[uid] {
			t.Errorf("uid %d is not allowed", uid)
		}
	}
	if creds.allowed[4712] {
		t.Error("uid 4712 is allowed")
	}
	if got := creds.Info().SecurityProtocol; got != securityProtocol {
		t.Errorf("security protocol = %q", got)
	}
	var _ credentials.TransportCredentials = creds
}
