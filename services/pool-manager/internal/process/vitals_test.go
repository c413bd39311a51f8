// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

func vitalsOf(t testing.TB, p *Process) Vitals {
	t.Helper()
	v, err := p.Vitals()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVitalsKeepWhatTheEndedDid has an engine whose every piece of work is done by a child that ends.
func TestVitalsKeepWhatTheEndedDid(t *testing.T) {
	t.Parallel()
	const piece = 1 << 20
	orders := filepath.Join(t.TempDir(), "orders")
	if err := unix.Mkfifo(orders, 0o600); err != nil {
		t.Fatal(err)
	}
	c := command(t, processtest.Script{})
	c.Executable, c.Args = "/bin/sh", []string{"-c", `while read order; do head -c 1048576 /dev/zero; done < "$1"`, "sh", orders}
	p := spawn(t, newHost(t), c)
	boss, err := os.OpenFile(orders, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer boss.Close()
	first := vitalsOf(t, p)
	last := first
	for i := range 3 {
		if _, err := boss.WriteString("work\n"); err != nil {
			t.Fatal(err)
		}
		want := first.IOBytes + uint64(2*piece*(i+1))
		eventually(t, "the work is counted", func() bool {
			v := vitalsOf(t, p)
			if v.IOBytes < last.IOBytes || v.CPU < last.CPU || v.Faults < last.Faults || v.At.Before(last.At) {
				t.Fatalf("vitals shrank from %+v to %+v", last, v)
			}
			last = v
			return v.IOBytes >= want
		})
	}
	if most := first.IOBytes + 6*piece + piece; last.IOBytes > most {
		t.Errorf("IO: got %d, want at most %d: work of the ended is counted twice", last.IOBytes, most)
	}
	if last.Faults <= first.Faults || last.RSS == 0 || last.PIDs < 1 {
		t.Errorf("vitals: got %+v after %+v", last, first)
	}
	stopWithin(t, p, Policy{})
	end := vitalsOf(t, p)
	if end.PIDs != 0 || end.RSS != 0 || end.IOBytes < last.IOBytes {
		t.Errorf("vitals of what has ended: got %+v after %+v", end, last)
	}
}

func TestVitalsCountTheWholeTree(t *testing.T) {
	t.Parallel()
	const size = 64 << 20
	h := newHost(t)
	p, _ := play(t, h, processtest.Script{Children: []processtest.Child{{Script: processtest.Script{Grow: size}, Detach: processtest.OwnSession}}})
	treeOf(t, p, 2) // It looks at all processes, so that the child is known.
	eventually(t, "the child has grown", func() bool {
		v := vitalsOf(t, p)
		return v.PIDs == 2 && v.RSS > size && v.Faults > 0 && v.CPU >= 0
	})
	attached, err := h.Attach(p.Identity())
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Release()
	if a, v := vitalsOf(t, attached), vitalsOf(t, p); a.PIDs != 2 || a.Faults < v.Faults/2 {
		t.Errorf("vitals after Attach: got %+v, want as much as %+v", a, v)
	}
}

func TestMeter(t *testing.T) {
	t.Parallel()
	const root, child, grandchild, other = 10, 11, 12, 13
	read := func(start uint64, parent int, io uint64) reading {
		return reading{startTicks: start, parent: parent, work: work{io: io, faults: 2 * io, cpuTicks: 3 * io}}
	}
	for _, tt := range []struct {
		name    string
		samples []map[int]reading
		want    uint64
	}{
		{"grows", []map[int]reading{{root: read(1, 1, 100)}, {root: read(1, 1, 150)}}, 150},
		{"a new member counts in full", []map[int]reading{{root: read(1, 1, 100)}, {root: read(1, 1, 100), child: read(2, root, 7)}}, 107},
		{"a collected child counts once", []map[int]reading{
			{root: read(1, 1, 100), child: read(2, root, 50)},
			{root: read(1, 1, 165)}, // 60 of the child, 5 of its own.
		}, 165},
		{"one that was never sampled counts", []map[int]reading{{root: read(1, 1, 100)}, {root: read(1, 1, 300)}}, 300},
		{"a child that nobody collected stays counted", []map[int]reading{
			{root: read(1, 1, 100), child: read(2, root, 50)}, {root: read(1, 1, 100)}, {root: read(1, 1, 101)},
		}, 151},
		{"a line of descent that ends at once", []map[int]reading{
			{root: read(1, 1, 100), child: read(2, root, 50), grandchild: read(3, child, 20)},
			{root: read(1, 1, 180)}, // 50 and 20 and 5 of the child, 5 of its own.
		}, 180},
		{"an orphan", []map[int]reading{{root: read(1, 1, 100), other: read(2, 1, 50)}, {root: read(1, 1, 110)}}, 160},
		{"a reused pid", []map[int]reading{{root: read(1, 1, 100), child: read(2, 1, 50)}, {root: read(1, 1, 100), child: read(9, root, 5)}}, 155},
		{"what cannot be read any more", []map[int]reading{{root: read(1, 1, 100)}, {root: read(1, 1, 0)}, {root: read(1, 1, 120)}}, 120},
		{"all gone", []map[int]reading{{root: read(1, 1, 100), child: read(2, root, 50)}, {}, {}}, 150},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var m meter
			for _, s := range tt.samples {
				before := m.total
				m.add(s)
				if m.total.io < before.io {
					t.Errorf("total shrank from %+v to %+v", before, m.total)
				}
			}
			want := work{io: tt.want, faults: 2 * tt.want, cpuTicks: 3 * tt.want}
			if diff := cmp.Diff(want, m.total, cmp.AllowUnexported(work{})); diff != "" {
				t.Errorf("total (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseIO(t *testing.T) {
	t.Parallel()
	const text = "rchar: 5\nwchar: 30\nsyscr: 1000\nsyscw: 1000\nread_bytes: 200\nwrite_bytes: 1000\ncancelled_write_bytes: 1000\n"
	for given, want := range map[string]uint64{text: 235, "": 0, "rchar: x\nwchar: 3\n": 3, "rchar: 7": 7} {
		if got := parseIO([]byte(given)); got != want {
			t.Errorf("parseIO(%q): got %d, want %d", given, got, want)
		}
	}
	if readIO(os.Getpid()) == 0 {
		t.Error("a running test has read nothing")
	}
}

func BenchmarkVitals(b *testing.B) {
	p, _ := play(b, newHost(b), processtest.Script{})
	vitalsOf(b, p)
	b.ReportAllocs()
	for b.Loop() {
		vitalsOf(b, p)
	}
}
