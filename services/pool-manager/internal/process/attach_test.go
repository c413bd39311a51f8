// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

// TestAttachAfterAnUpgrade has the engine's file replaced while the engine runs.
func TestAttachAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := command(t, processtest.Script{Lines: []string{"up"}})
	dir := t.TempDir()
	c.Executable = copyOf(t, c.Executable, filepath.Join(dir, "engine"))
	p := spawn(t, h, c)
	eventually(t, "it is up", func() bool { return logText(t, c) == "up\n" })
	id := p.Identity()
	newer := copyOf(t, "/bin/true", filepath.Join(dir, "newer"))
	if err := os.Rename(newer, c.Executable); err != nil {
		t.Fatal(err)
	}
	again, err := h.Attach(id)
	if err != nil {
		t.Fatalf("Attach to %+v after its file was replaced: %v", id, err)
	}
	defer again.Release()
	if got := again.Identity(); got != id {
		t.Errorf("identity: got %+v, want %+v", got, id)
	}
	stopWithin(t, p, Policy{})
	<-again.Done()
	if got := again.Exit(); got.Code != CodeUnknown || got.Signal != 0 || got.OOMKilled {
		t.Errorf("exit: got %+v, want unknown", got)
	}
}

func copyOf(t testing.TB, from, to string) string {
	t.Helper()
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		t.Fatal(err)
	}
	return to
}

// listeningEngines starts engines with one listener each, and returns when all listen.
func listeningEngines(b *testing.B, h *Host, n int) []*Process {
	b.Helper()
	engines := make([]*Process, n)
	for i := range engines {
		engines[i] = spawn(b, h, command(b, processtest.Script{Listen: "127.0.0.1:0"}))
	}
	for _, p := range engines {
		eventually(b, "it listens", func() bool { return len(socketsOfTree(b, p, 0).Ours) == 1 })
	}
	return engines
}

// BenchmarkAttach100 is what a manager does that finds a hundred engines running: know each again, and see where it listens.
func BenchmarkAttach100(b *testing.B) {
	h := newHost(b)
	var ids []Identity
	for _, p := range listeningEngines(b, h, 100) {
		ids = append(ids, p.Identity())
	}
	adopt := func(id Identity) {
		p, err := h.Attach(id)
		if err != nil {
			b.Error(err)
			return
		}
		if s, err := p.Sockets(0); err != nil || len(s.Ours) != 1 {
			b.Errorf("Sockets: %+v, %v; want one", s, err)
		}
		p.Release()
	}
	b.Run("how=one by one", func(b *testing.B) {
		for b.Loop() {
			for _, id := range ids {
				adopt(id)
			}
		}
	})
	b.Run("how=at once", func(b *testing.B) {
		for b.Loop() {
			var all sync.WaitGroup
			for _, id := range ids {
				all.Go(func() { adopt(id) })
			}
			all.Wait()
		}
	})
}

// BenchmarkExit100 has a hundred engines die at once, and waits until all are known to have died and to have left nothing.
func BenchmarkExit100(b *testing.B) {
	h := newHost(b)
	c := command(b, processtest.Script{})
	c.Executable, c.Args = "/bin/sleep", []string{"1000"}
	for b.Loop() {
		b.StopTimer()
		engines := make([]*Process, 100)
		for i := range engines {
			c.Nonce = NewNonce()
			engines[i] = spawn(b, h, c)
		}
		b.StartTimer()
		for _, p := range engines {
			if err := p.fd.signal(syscall.SIGKILL, 0); err != nil {
				b.Fatal(err)
			}
		}
		for _, p := range engines {
			<-p.Done()
		}
	}
}
