// SPDX-License-Identifier: Apache-2.0

package process

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// listen opens a listener of the test itself: a stranger to every engine.
func listen(t testing.TB, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

func socketsOfTree(t testing.TB, p *Process, port uint16) Sockets {
	t.Helper()
	s, err := p.Sockets(port)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSocketsFindsOurListeners(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	server := processtest.Script{Listen: "127.0.0.1:0"}
	for _, tt := range []struct {
		name   string
		script processtest.Script
		addr   string
		member int // who of the tree listens.
	}{
		{"root", server, "127.0.0.1", 0},
		{"every address", processtest.Script{Listen: ":0"}, "::", 0},
		{"child", processtest.Script{Children: []processtest.Child{{Script: server}}}, "127.0.0.1", 1},
		{"child of another session", processtest.Script{Children: []processtest.Child{{Script: server, Detach: processtest.OwnSession}}}, "127.0.0.1", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			stranger := listen(t, "127.0.0.1:0")
			p, _ := play(t, h, tt.script)
			var got Sockets
			eventually(t, "it listens", func() bool {
				got = socketsOfTree(t, p, stranger.Port())
				return len(got.Ours) == 1
			})
			tree, err := p.Tree()
			if err != nil {
				t.Fatal(err)
			}
			if l := got.Ours[0]; l.Addr.Addr().String() != tt.addr || l.PID != tree[tt.member].PID {
				t.Errorf("ours: got %+v, want %s of %v", l, tt.addr, tree[tt.member])
			}
			want := []Listener{{Addr: stranger}}
			if diff := cmp.Diff(want, got.Foreign, cmpopts.IgnoreFields(Listener{}, "Inode"), cmpopts.EquateComparable(netip.AddrPort{})); diff != "" {
				t.Errorf("foreign (-want +got):\n%s", diff)
			}
			pid, comm, err := h.Holder(got.Ours[0].Addr.Port())
			if err != nil || pid != tree[tt.member].PID || comm != tree[tt.member].Comm {
				t.Errorf("Holder: got %d %q, %v, want %v", pid, comm, err, tree[tt.member])
			}
		})
	}
}

// TestSocketsJudgesAgain has a listener of our tree taken for foreign: that must not last.
func TestSocketsJudgesAgain(t *testing.T) {
	t.Parallel()
	p, _ := play(t, newHost(t), processtest.Script{Children: []processtest.Child{{Script: processtest.Script{Listen: "127.0.0.1:0"}}}})
	eventually(t, "it listens", func() bool { return len(socketsOfTree(t, p, 0).Ours) == 1 })
	table, err := listeners()
	if err != nil {
		t.Fatal(err)
	}
	p.judge(table)
	eventually(t, "it is found again", func() bool { return len(socketsOfTree(t, p, 0).Ours) == 1 })
}

func TestSocketsOfADeadRoot(t *testing.T) {
	t.Parallel()
	stranger := listen(t, "127.0.0.1:0")
	p, _ := play(t, newHost(t), processtest.Script{End: &processtest.End{}})
	<-p.Done()
	got := socketsOfTree(t, p, stranger.Port())
	if len(got.Ours) != 0 || len(got.Foreign) != 1 {
		t.Errorf("sockets: got %+v, want the stranger's only", got)
	}
}

func TestHolderOfAFreePort(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if pid, comm, err := newHost(t).Holder(port); pid != 0 || comm != "" || err != nil {
		t.Errorf("Holder of a free port: %d %q, %v", pid, comm, err)
	}
}

// TestListenersAgree asks both sources for the same sockets.
func TestListenersAgree(t *testing.T) {
	t.Parallel()
	want := []netip.AddrPort{listen(t, "127.0.0.1:0"), listen(t, "[::1]:0"), listen(t, ":0"), listen(t, "0.0.0.0:0")}
	for _, tt := range []struct {
		name string
		list func() ([]Listener, error)
	}{{"netlink", askListeners}, {"proc", readListeners}, {"either", listeners}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			all, err := tt.list()
			if err != nil {
				t.Fatal(err)
			}
			inodes := socketsOf(os.Getpid())
			for _, addr := range want {
				i := slices.IndexFunc(all, func(l Listener) bool { return l.Addr == addr })
				if i < 0 || !slices.Contains(inodes, all[i].Inode) {
					t.Errorf("%v is not listed with an inode of ours: %+v", addr, all)
				}
			}
		})
	}
}

func TestParseDiagErrors(t *testing.T) {
	t.Parallel()
	message := func(kind uint16, body ...byte) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		return append(append(b, make([]byte, 10)...), body...)
	}
	code := func(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(-n)) }
	for _, tt := range []struct {
		name string
		b    []byte
		want string
	}{
		{"no handler", message(unix.NLMSG_ERROR, code(int32(unix.ENOENT))...), errNoDiag.Error()},
		{"another error", message(unix.NLMSG_ERROR, code(int32(unix.ENOBUFS))...), unix.ENOBUFS.Error()},
		{"cut error", message(unix.NLMSG_ERROR), "cut error"},
		{"cut answer", message(diagByFamily, 1, 2, 3), "an answer of 3 bytes"},
		{"size beyond the end", message(diagByFamily, 1, 2, 3)[:18], "a message of 19 bytes in 18"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, _, err := parseDiag(tt.b); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("parseDiag: got %v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(make([]byte, 100))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _, _ = parseDiag(b) })
}

func TestParseSocket(t *testing.T) {
	t.Parallel()
	const tail = " 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0"
	for _, tt := range []struct {
		name, row, addr string
		listens, bad    bool
	}{
		{name: "IPv4", row: "   0: 0100007F:1F90" + tail, addr: "127.0.0.1:8080", listens: true},
		{name: "IPv6", row: "  12: 00000000000000000000000001000000:0050" + tail, addr: "[::1]:80", listens: true},
		{name: "IPv4 in IPv6", row: "   0: 0000000000000000FFFF00000100007F:1F90" + tail, addr: "127.0.0.1:8080", listens: true},
		{name: "any", row: "   0: 00000000000000000000000000000000:FFFF" + tail, addr: "[::]:65535", listens: true},
		{name: "a connection", row: strings.Replace("   0: 0100007F:1F90"+tail, " 0A ", " 01 ", 1)},
		{name: "cut", row: "   0: 0100007F:1F90 00000000:0000 0A", bad: true},
		{name: "no port", row: "   0: 0100007F" + tail, bad: true},
		{name: "odd address", row: "   0: 01007F:1F90" + tail, bad: true},
		{name: "odd length", row: "   0: 0100007F0100007F:1F90" + tail, bad: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l, listens, err := parseSocket(tt.row)
			if listens != tt.listens || (err != nil) != tt.bad {
				t.Fatalf("parseSocket(%q): %+v, %v, %v; want listens %v, error %v", tt.row, l, listens, err, tt.listens, tt.bad)
			}
			if listens && (l.Addr.String() != tt.addr || l.Inode != 4711) {
				t.Errorf("parseSocket(%q): got %v inode %d, want %s inode 4711", tt.row, l.Addr, l.Inode, tt.addr)
			}
		})
	}
}

func FuzzParseSocket(f *testing.F) {
	f.Add("   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1")
	f.Fuzz(func(t *testing.T, row string) {
		l, listens, err := parseSocket(row)
		if listens && (err != nil || !l.Addr.IsValid()) {
			t.Errorf("parseSocket(%q): listens at %v, %v", row, l.Addr, err)
		}
	})
}

// BenchmarkSockets has connections beside the listeners: they must not count.
func BenchmarkSockets(b *testing.B) {
	for _, connections := range []int{0, 1000} {
		b.Run(fmt.Sprintf("connections=%d", connections), func(b *testing.B) {
			h := newHost(b)
			at := listen(b, "127.0.0.1:0")
			for range connections {
				c, err := net.Dial("tcp", at.String())
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { _ = c.Close() })
			}
			p, _ := play(b, h, processtest.Script{Listen: "127.0.0.1:0"})
			eventually(b, "it listens", func() bool { return len(socketsOfTree(b, p, 0).Ours) == 1 })
			b.ReportAllocs()
			for b.Loop() {
				socketsOfTree(b, p, 0)
			}
		})
	}
}

func BenchmarkTree(b *testing.B) {
	p, _ := play(b, newHost(b), processtest.Script{Children: []processtest.Child{{Script: processtest.Script{}}}})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Tree(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSpawnToExit(b *testing.B) {
	h := newHost(b)
	c := command(b, processtest.Script{})
	c.Executable, c.Args = "/bin/true", nil
	for b.Loop() {
		p, err := h.Spawn(c)
		if err != nil {
			b.Fatal(err)
		}
		<-p.Done()
		p.Release()
	}
}
