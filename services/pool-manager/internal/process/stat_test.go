// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const statLine = "4242 (a) R (b c)) S 1 4200 4100 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 987654 1 2 3 18446744073709551615 1 1 0 0\n"

func TestParseStat(t *testing.T) {
	t.Parallel()
	want := stat{Member: Member{PID: 4242, PPID: 1, PGID: 4200, SID: 4100, StartTicks: 987654, State: 'S', Comm: "a) R (b c)"}, threads: 3, faults: 10, cpuTicks: 26, rssPages: 2}
	got, err := parseStat(statLine)
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(stat{})); err != nil || diff != "" {
		t.Errorf("parseStat: %v (-want +got):\n%s", err, diff)
	}
	for _, bad := range []string{"", "1", "1 (a", ") (", "1 (a) S 1 2", "x (a) S 1 4200 4100 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 987654 1 2", "1 (a) S 1 4200 4100 0 -1 4194560 1 2 3 x 5 6 7 8 20 0 3 0 987654 1 2"} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("parseStat(%q): got %+v, want an error", bad, got)
		}
	}
}

func TestDead(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		state   byte
		threads int
		want    bool
	}{
		{"sleeping", 'S', 1, false},
		{"uninterruptible", 'D', 1, false},
		{"zombie", 'Z', 1, true},
		{"first thread ended, others run", 'Z', 2, false},
		{"dead", 'X', 1, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := (stat{Member: Member{State: tt.state}, threads: tt.threads}).dead(); got != tt.want {
				t.Errorf("dead(%c, %d threads): got %v, want %v", tt.state, tt.threads, got, tt.want)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add(statLine)
	if own, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(string(own))
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := parseStat(line)
		if err != nil && s != (stat{}) {
			t.Errorf("parseStat(%q): an error and %+v", line, s)
		}
	})
}
