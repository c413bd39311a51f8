// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
)

func TestStraysAreTheManagersUnknownStarts(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	mine, other := "manager-"+NewNonce(), "manager-"+NewNonce()
	start := func(manager, replica string, s processtest.Script) (*Process, Command) {
		t.Helper()
		s, n := announced(s)
		c := command(t, s)
		c.Manager, c.Pool, c.Replica, c.Generation = manager, "p", replica, 7
		p := spawn(t, h, c)
		eventually(t, "the scripts are up", func() bool { return strings.Count(logText(t, c), "up\n") == n })
		return p, c
	}
	_, known := start(mine, "p-0", processtest.Script{})
	family, unknown := start(mine, "p-1", processtest.Script{Children: []processtest.Child{
		{Script: processtest.Script{}, Detach: processtest.OwnSession},
		{Script: processtest.Script{}, ClearEnv: true},
	}})
	start(other, "p-2", processtest.Script{})
	play(t, h, processtest.Script{}) // Of no manager.

	members := treeOf(t, family, 3)
	want := []Stray{{Nonce: unknown.Nonce, Pool: "p", Replica: "p-1", Generation: 7, Members: members}}
	ignoreStates := cmp.Transformer("pid", func(m Member) int { return m.PID })
	got, err := h.Strays(mine, []string{"else", known.Nonce})
	if diff := cmp.Diff(want, got, ignoreStates); err != nil || diff != "" {
		t.Errorf("Strays: %v (-want +got):\n%s", err, diff)
	}
	if got, err := h.Strays(mine, []string{known.Nonce, unknown.Nonce}); err != nil || len(got) != 0 {
		t.Errorf("Strays when all are known: %+v, %v", got, err)
	}
	if got, err := h.Strays("", nil); err != nil || len(got) != 0 {
		t.Errorf("Strays of no manager: %+v, %v", got, err)
	}
	if report, err := h.Sweep(t.Context(), got[0].Nonce, Policy{}); err != nil || len(report.Survivors) != 0 {
		t.Errorf("Sweep: %+v, %v", report, err)
	}
	if got, err := h.Strays(mine, nil); err != nil || len(got) != 1 || got[0].Nonce != known.Nonce {
		t.Errorf("Strays after the Sweep: %+v, %v; want the one that was known", got, err)
	}
}

func TestEnvironTellsOfItsStart(t *testing.T) {
	t.Parallel()
	c := Command{Nonce: "n", Env: []string{"A=1", PoolVar + "=forged", "ROUNDHOUSE_OTHER=x", "B=ROUNDHOUSE_NONCE=2"}}
	if got, want := c.environ(), []string{"ROUNDHOUSE_NONCE=n", "A=1", "B=ROUNDHOUSE_NONCE=2"}; !slices.Equal(got, want) {
		t.Errorf("environment with a nonce only: got %q, want %q", got, want)
	}
	c.Manager, c.Pool, c.Replica, c.Generation = "m", "p", "p-0", 3
	want := []string{
		"ROUNDHOUSE_NONCE=n", "ROUNDHOUSE_MANAGER=m", "ROUNDHOUSE_POOL=p", "ROUNDHOUSE_REPLICA=p-0", "ROUNDHOUSE_GENERATION=3",
		"A=1", "B=ROUNDHOUSE_NONCE=2",
	}
	if got := c.environ(); !slices.Equal(got, want) {
		t.Errorf("environment: got %q, want %q", got, want)
	}
	for name, want := range map[string]bool{NonceVar: true, "ROUNDHOUSE_X": true, "ROUNDHOUSE": false, "PATH": false} {
		if got := Reserved(name); got != want {
			t.Errorf("Reserved(%q): got %t", name, got)
		}
	}
}

func TestParseMarks(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		environ []string
		want    marks
	}{
		{"ours", (&Command{Nonce: "n", Manager: "m", Pool: "p", Replica: "r", Generation: 9, Env: []string{"A=1"}}).environ(), marks{"n", "m", "p", "r", 9}},
		{"behind others", []string{"A=1", "ROUNDHOUSE_MANAGER=m", "ROUNDHOUSE_NONCE=n"}, marks{Nonce: "n", Manager: "m"}},
		{"the first of two", []string{"ROUNDHOUSE_NONCE=n", "ROUNDHOUSE_NONCE=o"}, marks{Nonce: "n"}},
		{"in a value or a longer name", []string{"A=ROUNDHOUSE_NONCE=n", "XROUNDHOUSE_NONCE=n"}, marks{}},
		{"no nonce", []string{"ROUNDHOUSE_MANAGER=m"}, marks{}},
		{"an odd generation", []string{"ROUNDHOUSE_NONCE=n", "ROUNDHOUSE_GENERATION=x"}, marks{Nonce: "n"}},
		{"nothing", nil, marks{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var environ bytes.Buffer
			for _, entry := range tt.environ {
				environ.WriteString(entry + "\x00")
			}
			if diff := cmp.Diff(tt.want, parseMarks(environ.Bytes())); diff != "" {
				t.Errorf("parseMarks(%q) (-want +got):\n%s", tt.environ, diff)
			}
		})
	}
}

// TestMarksInALargeEnvironment has more before the nonce than is read at once.
func TestMarksInALargeEnvironment(t *testing.T) {
	t.Parallel()
	c := command(t, processtest.Script{Lines: []string{"up"}})
	c.Args = append([]string{"-c", `unset ROUNDHOUSE_NONCE; A="$B" ROUNDHOUSE_NONCE="$N" exec "$@"`, "sh", c.Executable}, c.Args...)
	c.Executable = "/bin/sh"
	c.Env = append(c.Env, "N="+c.Nonce, "B="+strings.Repeat("b", environFirst))
	p := spawn(t, newHost(t), c)
	eventually(t, "it is up", func() bool { return logText(t, c) == "up\n" })
	if !carriesNonce(p.id.PID, c.Nonce) {
		t.Error("the nonce is not found")
	}
}
