// SPDX-License-Identifier: Apache-2.0

package launch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// writeLogs makes files in the folder of logs of pool p.
func (w *world) writeLogs(t *testing.T, names ...string) {
	t.Helper()
	dir := filepath.Join(w.logDir, "p")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// wantLogs compares what is in the folder of logs of pool p.
func (w *world) wantLogs(t *testing.T, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.logDir, "p"))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("logs (-want +got):\n%s", diff)
	}
}

func TestLogsOfOlderStartsAreLeftUntilThereIsAnother(t *testing.T) {
	t.Parallel()
	crash := processtest.Script{Lines: []string{"no"}, End: &processtest.End{Code: 1}}
	old, oldAndOwn, own := []string{"0-1.log", "0-1.log.1"}, []string{"0-1.log", "0-1.log.1", "0-2.log"}, []string{"0-2.log"}
	for _, tt := range []struct {
		name   string
		script processtest.Script
		change func(*testing.T, *Request)
		cancel bool
		want   []string
	}{
		{name: "it is ready", script: ready(), want: own},
		{name: "it fails by itself", script: crash, want: own},
		{name: "it is cancelled", script: ready(), cancel: true, want: oldAndOwn},
		{name: "its port is taken", script: ready(), want: old, change: func(t *testing.T, r *Request) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			r.Port = netip.MustParseAddrPort(l.Addr().String()).Port()
		}},
		{name: "it cannot run where it is to", script: ready(), want: old, change: func(_ *testing.T, r *Request) {
			r.Prepared.Process.WorkingDir = "/nonexistent"
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, r := newWorld(t), request(t, tt.script)
			w.writeLogs(t, old...)
			r.Generation = 2
			if tt.change != nil {
				tt.change(t, &r)
			}
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			e, err := w.launcher.Launch(ctx, r, func(s Stage) {
				if s.Phase != registry.PhaseLoading {
					return
				}
				w.wantLogs(t, oldAndOwn...) // It may still be cancelled.
				if tt.cancel {
					cancel(errors.New("enough"))
				}
			})
			if err == nil {
				_, err = e.Stop(t.Context(), Ending{By: "test"})
			}
			t.Logf("Launch and Stop: %v", err)
			w.wantLogs(t, tt.want...)
		})
	}
}

func TestLogsOfCancelledStartsAreBounded(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	for generation := range 12 {
		name := strconv.Itoa(generation) + ".log"
		w.writeLogs(t, "0-"+name, "1-"+name)
	}
	w.writeLogs(t, "0-unknown")
	r.Generation = 12
	ctx, cancel := context.WithCancel(t.Context())
	w.fail(ctx, t, r, func(Stage) { cancel() })
	var want []string
	for _, generation := range []int{10, 11, 12, 4, 5, 6, 7, 8, 9} { // In the order of names.
		want = append(want, "0-"+strconv.Itoa(generation)+".log")
	}
	for _, generation := range []int{0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9} {
		want = append(want, "1-"+strconv.Itoa(generation)+".log")
	}
	w.wantLogs(t, want...)
}

func TestALogBeginsEmpty(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.writeLogs(t, "0-1.log", "0-1.log.1") // Of an earlier manager, who counted alike.
	e := w.mustLaunch(t, request(t, ready()))
	text, err := os.ReadFile(e.Info().LogPath)
	if err != nil || strings.Contains(string(text), "old") {
		t.Errorf("log is %q, %v, want the engine's own words", text, err)
	}
	w.wantLogs(t, "0-1.log")
}

// What a log that cannot be removed costs is its space.
func TestLogsThatCannotBeRemoved(t *testing.T) {
	t.Parallel()
	w, r := newWorld(t), request(t, ready())
	w.writeLogs(t, "0-2.log")
	if err := os.MkdirAll(filepath.Join(w.logDir, "p", "0-1.log", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	r.Generation = 3
	w.mustLaunch(t, r)
	w.wantLogs(t, "0-1.log", "0-3.log")
	if got := w.logs.Lines("old logs were not removed"); len(got) != 1 || got[0].Fields["replica_id"] != "p-0" {
		t.Errorf("logged %v", got)
	}
}
