// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/enginelog"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// logged is pool "a", whose replica 0 writes to a log.
type logged struct {
	*node
	path       string
	generation uint64
}

func newLogged(t *testing.T, text string) *logged {
	t.Helper()
	l := &logged{node: newNode(t, Config{}), path: filepath.Join(t.TempDir(), "0-1.log"), generation: 1}
	l.write(t, text)
	l.is(registry.ReplicaReady)
	return l
}

func (l *logged) write(t *testing.T, text string) {
	t.Helper()
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// is makes the replica's state known.
func (l *logged) is(state registry.ReplicaState) {
	l.registry.Put(registry.Pool{
		Spec: registry.Spec{ID: "a"}, State: registry.StateReady,
		Replicas: []registry.Replica{{ID: "a-0", Generation: l.generation, State: state, LogPath: l.path}},
	})
}

func (l *logged) logs(t *testing.T, request *poolv1.LogsRequest) ([]*poolv1.LogsResponse, error) {
	t.Helper()
	request.PoolId = "a"
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	stream, err := l.Logs(ctx, request)
	return all(t, stream, err)
}

func textOf(messages []*poolv1.LogsResponse) string {
	var text strings.Builder
	for _, m := range messages {
		text.Write(m.GetData())
	}
	return text.String()
}

func TestLogs(t *testing.T) {
	t.Parallel()
	const log = "one\ntwo\nthree\nunfinished"
	for _, tt := range []struct {
		name    string
		state   registry.ReplicaState
		request *poolv1.LogsRequest
		want    string
		offset  int64
	}{
		{"all", registry.ReplicaReady, &poolv1.LogsRequest{}, "one\ntwo\nthree\n", 0},
		{"the end", registry.ReplicaReady, &poolv1.LogsRequest{Start: &poolv1.LogsRequest_TailLines{TailLines: 2}}, "three\n", 8},
		{"more lines than there are", registry.ReplicaReady, &poolv1.LogsRequest{Start: &poolv1.LogsRequest_TailLines{TailLines: 100}}, "one\ntwo\nthree\n", 0},
		{"nothing", registry.ReplicaReady, &poolv1.LogsRequest{Start: &poolv1.LogsRequest_TailLines{}}, "", 0},
		{"from a byte on", registry.ReplicaReady, &poolv1.LogsRequest{Start: &poolv1.LogsRequest_Offset{Offset: 4}}, "two\nthree\n", 4},
		{"from the first byte on", registry.ReplicaReady, &poolv1.LogsRequest{Start: &poolv1.LogsRequest_Offset{}}, "one\ntwo\nthree\n", 0},
		{"all of one that has failed", registry.ReplicaFailed, &poolv1.LogsRequest{}, log + "\n", 0},
		{"all of one that was stopped", registry.ReplicaStopped, &poolv1.LogsRequest{}, log + "\n", 0},
		{"the end of one that has failed", registry.ReplicaFailed, &poolv1.LogsRequest{Start: &poolv1.LogsRequest_TailLines{TailLines: 1}}, "unfinished\n", 14},
		{"followed, and it has ended before", registry.ReplicaFailed, &poolv1.LogsRequest{Follow: true}, log + "\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLogged(t, log)
			l.is(tt.state)
			messages, err := l.logs(t, tt.request)
			if err != nil {
				t.Fatalf("Logs: %v", err)
			}
			if got := textOf(messages); got != tt.want {
				t.Errorf("log is %q, want %q", got, tt.want)
			}
			if len(messages) > 0 && (messages[0].GetOffset() != tt.offset || messages[0].GetGeneration() != 1 || messages[0].GetGap()) {
				t.Errorf("first message %v, want offset %d", messages[0], tt.offset)
			}
		})
	}
}

// Each message tells where the next one begins, and none is too large.
func TestLogsOfALargeLog(t *testing.T) {
	t.Parallel()
	var log strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&log, "%d %s\n", i, strings.Repeat("x", i%200))
	}
	l := newLogged(t, log.String())
	messages, err := l.logs(t, &poolv1.LogsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if got := textOf(messages); got != log.String() {
		t.Errorf("%d bytes came, want %d", len(got), log.Len())
	}
	next := int64(0)
	for i, m := range messages {
		if m.GetOffset() != next || len(m.GetData()) > 64<<10 {
			t.Errorf("message %d: %d bytes at %d, want at most 64 KiB at %d", i, len(m.GetData()), m.GetOffset(), next)
		}
		next += int64(len(m.GetData()))
	}
	if len(messages) < 5 || len(messages) > 10 {
		t.Errorf("%d messages for %d bytes", len(messages), log.Len())
	}
	rest, err := l.logs(t, &poolv1.LogsRequest{Start: &poolv1.LogsRequest_Offset{Offset: messages[3].GetOffset()}})
	if diff := cmp.Diff(textOf(messages[3:]), textOf(rest)); diff != "" || err != nil {
		t.Errorf("resumed: %v (-want +got):\n%s", err, diff)
	}
}

// What is left out of a long line does not put the offsets behind it in the wrong.
func TestLogsOffsetsBehindALongLine(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 20<<10)
	l := newLogged(t, "a\n"+long+"\nb\nc\n")
	messages, err := l.logs(t, &poolv1.LogsRequest{})
	if err != nil || len(messages) != 2 {
		t.Fatalf("%d messages, %v, want 2", len(messages), err)
	}
	want := int64(2 + len(long) + 1)
	if last := messages[1]; last.GetOffset() != want || string(last.GetData()) != "b\nc\n" {
		t.Errorf("behind the long line: %q at %d, want at %d", last.GetData(), last.GetOffset(), want)
	}
}

func TestLogsFollow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		end  func(*testing.T, *logged)
	}{
		{"the process ends", func(_ *testing.T, l *logged) { l.is(registry.ReplicaFailed) }},
		{"the process is stopped", func(_ *testing.T, l *logged) { l.is(registry.ReplicaStopped) }},
		{"another start", func(_ *testing.T, l *logged) {
			l.generation++
			l.is(registry.ReplicaStarting)
		}},
		{"the pool is deleted", func(_ *testing.T, l *logged) { l.registry.Delete("a") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLogged(t, "before\n")
			ctx, cancel := context.WithTimeout(t.Context(), testPatience)
			defer cancel()
			stream, err := l.Logs(ctx, &poolv1.LogsRequest{PoolId: "a", Follow: true})
			if err != nil {
				t.Fatal(err)
			}
			next := func(want string) {
				t.Helper()
				m, err := stream.Recv()
				if err != nil || string(m.GetData()) != want {
					t.Fatalf("message %v, %v, want %q", m, err, want)
				}
			}
			next("before\n")
			l.write(t, "now\n")
			next("now\n")
			l.is(registry.ReplicaDraining) // It goes on while there is a process.
			l.write(t, "last\nwords")
			next("last\n")
			tt.end(t, l)
			messages, err := all(t, stream, nil)
			if got := textOf(messages); got != "words\n" || err != nil {
				t.Errorf("at the end: %q, %v, want the unfinished line", got, err)
			}
		})
	}
}

func TestLogsFollowEndsWithTheService(t *testing.T) {
	t.Parallel()
	l := newLogged(t, "before\n")
	ctx, cancel := context.WithTimeout(t.Context(), testPatience)
	defer cancel()
	stream, err := l.Logs(ctx, &poolv1.LogsRequest{PoolId: "a", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	l.stop()
	_, err = all(t, stream, nil)
	wantReason(t, err, reason.ShuttingDown)
}

func TestLogsFollowMarksAGap(t *testing.T) {
	t.Parallel()
	l := newLogged(t, "a long line before\n")
	stream, err := l.Logs(t.Context(), &poolv1.LogsRequest{PoolId: "a", Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.GetGap() {
		t.Fatalf("message %v, %v, want no gap", first, err)
	}
	if trimmed, err := (enginelog.Keeper{Path: l.path, MaxBytes: 1}).Trim(time.Unix(1, 0)); err != nil || !trimmed {
		t.Fatalf("Trim = %t, %v", trimmed, err)
	}
	message, err := stream.Recv()
	if err != nil || !message.GetGap() || message.GetOffset() != 0 || !strings.Contains(string(message.GetData()), "trimmed") {
		t.Errorf("after the trim: %v, %v, want a gap at 0", message, err)
	}
}

func TestLogsThatAreNotThere(t *testing.T) {
	t.Parallel()
	l := newLogged(t, "x\n")
	_, err := l.logs(t, &poolv1.LogsRequest{Replica: 1})
	if typed := typedError(t, err, reason.InvalidParams); typed.Fields[0].Name != "replica" || !strings.Contains(typed.Remedy, "1") {
		t.Errorf("error %+v, want field replica and how many there are", typed)
	}
	path := l.path
	l.path = ""
	l.is(registry.ReplicaStarting)
	_, err = l.logs(t, &poolv1.LogsRequest{})
	wantReason(t, err, reason.PoolUnready)

	l.path = path
	l.is(registry.ReplicaReady)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, request := range []*poolv1.LogsRequest{{}, {Follow: true}, {Start: &poolv1.LogsRequest_TailLines{TailLines: 1}}} {
		_, err := l.logs(t, request)
		if typed := typedError(t, err, reason.PoolUnready); typed.Remedy == "" {
			t.Errorf("error %+v has no remedy", typed)
		}
	}
}
