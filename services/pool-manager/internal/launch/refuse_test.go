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

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/process/processtest"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

func TestLaunchThatIsRefusedMakesNothing(t *testing.T) {
	t.Parallel()
	library := func(t *testing.T, w *world) *enginev1.ExecutedFile {
		path := filepath.Join(w.extra, "lib.so")
		if err := os.WriteFile(path, []byte("prepared"), 0o600); err != nil {
			t.Fatal(err)
		}
		return hash(t, path)
	}
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *world, *Request)
		want   reason.Reason
		says   string
	}{
		{"a library has changed", func(t *testing.T, w *world, r *Request) {
			file := library(t, w)
			r.Prepared.Process.Files = append(r.Prepared.Process.Files, file)
			if err := os.WriteFile(file.GetPath(), []byte("replaced"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, reason.DigestMismatch, "lib.so"},
		{"a library is gone", func(t *testing.T, w *world, r *Request) {
			file := library(t, w)
			r.Prepared.Process.Files = append(r.Prepared.Process.Files, file)
			if err := os.Remove(file.GetPath()); err != nil {
				t.Fatal(err)
			}
		}, reason.DigestMismatch, "got nothing"},
		{"a file outside the roots", func(t *testing.T, _ *world, r *Request) {
			r.Prepared.Process.Files = append(r.Prepared.Process.Files, hash(t, "/proc/self/status"))
		}, reason.UntrustedArtifact, "outside the trusted roots"},
		{"an executable without digest", func(t *testing.T, w *world, r *Request) {
			r.Prepared.Process.Files = []*enginev1.ExecutedFile{library(t, w)}
		}, reason.UntrustedArtifact, "has no digest"},
		{"nothing to execute", func(_ *testing.T, _ *world, r *Request) { r.Prepared.Process = nil }, reason.UntrustedArtifact, "has no digest"},
		{"a placeholder of a later contract", func(_ *testing.T, _ *world, r *Request) {
			r.Prepared.Process.Args[0] = &enginev1.Argument{Value: &enginev1.Argument_Placeholder{Placeholder: 77}}
		}, reason.WorkerStartFailed, "argument 0 is 77"},
		{"a bad environment", func(_ *testing.T, _ *world, r *Request) {
			r.Prepared.Process.Env = map[string]string{"A=B": "c"}
		}, reason.WorkerStartFailed, `"A=B"`},
		{"a variable of ours", func(_ *testing.T, _ *world, r *Request) {
			r.Prepared.Process.Env = map[string]string{process.ManagerVar: "another"}
		}, reason.WorkerStartFailed, process.ManagerVar},
		{"a stop signal that is none", func(_ *testing.T, _ *world, r *Request) {
			r.Prepared.Contract.Stop[0].Signal = "TERM"
		}, reason.WorkerStartFailed, `stop step "TERM"`},
		{"no page of readiness", func(_ *testing.T, _ *world, r *Request) { r.Prepared.Contract.Ready = nil }, reason.WorkerStartFailed, "readiness"},
		{"no proof of identity", func(_ *testing.T, _ *world, r *Request) { r.Prepared.Contract.Identity = nil }, reason.WorkerStartFailed, "which model"},
		{"a pool that cannot be recorded", func(_ *testing.T, _ *world, r *Request) {
			r.Pool, r.Replica = registry.PoolID(strings.Repeat("p", 129)), "long"
		}, reason.InvalidParams, "cannot be recorded"},
		{"records that cannot be saved", func(t *testing.T, w *world, _ *Request) {
			if err := os.RemoveAll(filepath.Join(w.stateDir, "replicas")); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Mkdir(filepath.Join(w.stateDir, "replicas"), 0o700) })
		}, reason.StorageFailed, "save record"},
		{"logs that cannot be kept", func(t *testing.T, w *world, _ *Request) {
			if err := os.WriteFile(w.logDir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, reason.StorageFailed, "folder for logs"},
		{"an executable that is none", func(t *testing.T, w *world, r *Request) {
			file := library(t, w)
			r.Prepared.Process.Executable, r.Prepared.Process.Files = file.GetPath(), []*enginev1.ExecutedFile{file}
		}, reason.WorkerStartFailed, "start engine"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w, r := newWorld(t), request(t, ready())
			tt.change(t, w, &r)
			e, err := w.launcher.Launch(t.Context(), r, func(s Stage) { t.Errorf("a process was made: %+v", s) })
			if err == nil {
				_, err = e.Stop(t.Context(), Ending{By: "test"})
			}
			wantReason(t, err, tt.want)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%v does not say %q", err, tt.says)
			}
			if typed, ok := reason.As(err); !ok || typed.Remedy == "" {
				t.Errorf("%v has no remedy", err)
			}
			if _, ok := errors.AsType[*Error](err); ok {
				t.Errorf("%v tells of a process that never was", err)
			}
			_ = os.Mkdir(filepath.Join(w.stateDir, "replicas"), 0o700)
			w.audit(t)
			if tt.want == reason.InvalidParams { // Nothing of such a pool can be recorded.
				return
			}
			start := w.onlyStart(t)
			if start.PID != 0 || start.Class != "UNSPECIFIED" || start.Error != err.Error() || start.StartedAt.IsZero() || start.EndedBy != "" {
				t.Errorf("on record is %+v, want the error and no process", start)
			}
		})
	}
}

func TestCancelledCheckMakesNothing(t *testing.T) {
	t.Parallel()
	w, enough := newWorld(t), errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(enough)
	_, err := w.launcher.Launch(ctx, request(t, ready()), func(s Stage) { t.Errorf("a process was made: %+v", s) })
	if !errors.Is(err, enough) {
		t.Errorf("Launch = %v, want the cause", err)
	}
	w.audit(t)
	if start := w.onlyStart(t); start.EndedBy != byCancel {
		t.Errorf("on record is %+v, want cancelled", start)
	}
}

func TestPortOfAnother(t *testing.T) {
	t.Parallel()
	listen := func(t *testing.T, address string) (net.Listener, uint16) {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		at, err := netip.ParseAddrPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return l, at.Port()
	}
	self := strconv.Itoa(os.Getpid())
	t.Run("before the start", func(t *testing.T) {
		t.Parallel()
		w, r := newWorld(t), request(t, ready())
		_, r.Port = listen(t, "127.0.0.1:0")
		a := w.fail(t.Context(), t, r, func(s Stage) { t.Errorf("a process was made: %+v", s) })
		wantReason(t, a.err, reason.PortInUse)
		a.wantMeta(t, map[string]string{"holder_pid": self, "port": strconv.Itoa(int(r.Port))})
		a.wantField(t, "spec.port")
	})
	t.Run("during the start", func(t *testing.T) {
		t.Parallel()
		s := ready()
		s.ListenAfter = processtest.Lasts
		w, r := newWorld(t), request(t, s)
		l, port := listen(t, "127.0.0.1:0")
		r.Port = port
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		a := w.fail(t.Context(), t, r, func(Stage) { listen(t, "127.0.0.1:"+strconv.Itoa(int(port))) })
		wantReason(t, a.err, reason.PortInUse)
		a.wantMeta(t, map[string]string{"holder_pid": self})
		a.wantField(t, "spec.port")
		if len(a.phases) != 1 {
			t.Errorf("phases %v: an engine was verified at the port of another", a.phases)
		}
	})
}
