// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// script plays one Watch stream after another. A session is words: +id an upsert, -id a deletion, "synced", "reset",
// "beat", and at last how it ends: "eof" or a gRPC code's name. Tokens are the number of the message.
type script struct {
	poolv1.PoolManagerServiceClient
	sessions []string
	asked    []string // tokens of the requests
	at       []time.Duration
	start    time.Time
	count    int
}

func (s *script) Watch(_ context.Context, r *poolv1.WatchRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[poolv1.WatchResponse], error) {
	s.asked = append(s.asked, r.GetResumeToken())
	s.at = append(s.at, time.Since(s.start))
	words := strings.Fields(s.sessions[0])
	s.sessions = s.sessions[1:]
	return &session{script: s, words: words}, nil
}

type session struct {
	grpc.ClientStream
	script *script
	words  []string
}

func (s *session) Recv() (*poolv1.WatchResponse, error) {
	word := s.words[0]
	s.words = s.words[1:]
	s.script.count++
	message := &poolv1.WatchResponse{ResumeToken: fmt.Sprint(s.script.count)}
	switch {
	case word[0] == '+':
		message.Event = &poolv1.WatchResponse_Upsert{Upsert: &poolv1.Pool{PoolId: word[1:], Revision: uint64(s.script.count)}}
	case word[0] == '-':
		message.Event = &poolv1.WatchResponse_Deleted{Deleted: &poolv1.Deleted{PoolId: word[1:]}}
	case word == "synced":
		message.Event = &poolv1.WatchResponse_Synced{Synced: &poolv1.Synced{}}
	case word == "reset":
		message.Event = &poolv1.WatchResponse_Reset_{Reset_: &poolv1.Reset{}}
	case word == "beat":
		message.Event = &poolv1.WatchResponse_Heartbeat{Heartbeat: &poolv1.Heartbeat{}}
	case word == "eof":
		return nil, io.EOF
	default:
		var code codes.Code
		if err := code.UnmarshalJSON([]byte(`"` + word + `"`)); err != nil {
			return nil, err
		}
		return nil, status.Error(code, "scripted")
	}
	return message, nil
}

// play runs Watch over the sessions and writes down the events in the words of the script.
// Behind each, /N is its token.
func play(t *testing.T, sessions []string, opts ...client.WatchOption) (events []string, s *script, err error) {
	t.Helper()
	s = &script{sessions: sessions, start: time.Now()}
	err = client.Watch(t.Context(), s, nil, func(e client.Event) error {
		defer func() {
			if e.Token != "" {
				events[len(events)-1] += "/" + e.Token
			}
		}()
		switch e.Kind {
		case client.KindUpsert:
			events = append(events, "+"+e.PoolID)
		case client.KindDeleted:
			events = append(events, fmt.Sprintf("-%s@%d", e.PoolID, e.Pool.GetRevision()))
		case client.KindSynced:
			events = append(events, "synced")
		case client.KindInterrupted:
			events = append(events, "lost")
		case client.KindReset:
			events = append(events, "reset")
		case client.KindHeartbeat:
			events = append(events, "beat")
		default:
			t.Errorf("unknown event %+v", e)
		}
		return nil
	}, opts...)
	return events, s, err
}

// plain takes the tokens off.
func plain(events []string) []string {
	bare := make([]string, len(events))
	for i, event := range events {
		bare[i], _, _ = strings.Cut(event, "/")
	}
	return bare
}

func TestWatchKeepsAConsistentView(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		sessions []string
		events   string
		tokens   []string
	}{
		{"plain", []string{"+a +b synced +a -b beat NOT_FOUND"}, "+a +b synced +a -b@2 beat", []string{""}},
		{
			"resumes with the last token, a heartbeat's included",
			[]string{"+a synced beat UNAVAILABLE", "+b synced NOT_FOUND"}, "+a synced beat lost +b synced", []string{"", "3"},
		},
		{"resumes after a clean end", []string{"synced eof", "synced NOT_FOUND"}, "synced lost synced", []string{"", "1"}},
		{"resumes after being too slow", []string{"synced RESOURCE_EXHAUSTED", "synced NOT_FOUND"}, "synced lost synced", []string{"", "1"}},
		{
			"a first part that broke off is begun anew",
			[]string{"+a +b UNAVAILABLE", "+b +c synced NOT_FOUND"}, "+a +b lost +b +c -a@1 synced", []string{"", ""},
		},
		{
			"a second part that broke off is resumed from before it",
			[]string{"+a synced UNAVAILABLE", "+b UNAVAILABLE", "+b synced NOT_FOUND"},
			"+a synced lost +b lost +b synced", []string{"", "2", "2"},
		},
		{
			"a reset deletes what has vanished",
			[]string{"+a +b +c synced UNAVAILABLE", "reset +b synced NOT_FOUND"},
			"+a +b +c synced lost +b -a@1 -c@3 synced", []string{"", "4"},
		},
		{
			"a reset in mid-stream",
			[]string{"+a +b synced reset +b synced -b NOT_FOUND"}, "+a +b synced +b -a@1 synced -b@5", []string{""},
		},
		{
			"a reset that broke off is begun anew",
			[]string{"+a +b synced UNAVAILABLE", "reset +c UNAVAILABLE", "+b synced NOT_FOUND"},
			"+a +b synced lost +c lost +b -a@1 -c@6 synced", []string{"", "3", ""},
		},
		{
			"a deletion during a reset is told once",
			[]string{"+a +b synced reset -a +b synced NOT_FOUND"}, "+a +b synced -a@1 +b synced", []string{""},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				events, s, err := play(t, tt.sessions)
				if status.Code(err) != codes.NotFound {
					t.Errorf("Watch = %v, want the error that does not heal", err)
				}
				if _, ok := reason.As(err); !ok {
					t.Errorf("Watch = %T, want a *reason.Error", err)
				}
				if diff := cmp.Diff(strings.Fields(tt.events), plain(events)); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.tokens, s.asked); diff != "" {
					t.Errorf("tokens (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// Whoever resumes from an event's token has missed nothing, however the events before it came about.
func TestEventsHaveTheirTokens(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		from     string
		sessions []string
		events   string
		asked    []string
	}{
		{
			"none before synced", "",
			[]string{"+a +b synced +a beat -b NOT_FOUND"}, "+a +b synced/3 +a/4 beat/5 -b@2/6", []string{""},
		},
		{
			"none while a reset is told", "",
			[]string{"+a +b synced reset +a synced NOT_FOUND"}, "+a +b synced/3 +a -b@2 synced/6", []string{""},
		},
		{
			"resumed: the old one until synced", "x",
			[]string{"+a -b synced +a NOT_FOUND"}, "+a/x -b@0/x synced/3 +a/4", []string{"x"},
		},
		{
			"resumed and lost", "x",
			[]string{"+a UNAVAILABLE", "+a synced NOT_FOUND"}, "+a/x lost/x +a/x synced/4", []string{"x", "x"},
		},
		{
			"resumed and reset, which the caller must know", "x",
			[]string{"reset +a synced +b reset +b synced NOT_FOUND"}, "reset +a synced/3 +b/4 +b -a@2 synced/7", []string{"x"},
		},
		{
			"resumed, lost and reset", "x",
			[]string{"+a UNAVAILABLE", "reset +b UNAVAILABLE", "+c synced NOT_FOUND"},
			"+a/x lost/x reset +b lost +c -b@4 synced/7", []string{"x", "x", ""},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				events, s, _ := play(t, tt.sessions, client.ResumeFrom(tt.from))
				if diff := cmp.Diff(strings.Fields(tt.events), events); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(tt.asked, s.asked); diff != "" {
					t.Errorf("tokens asked for (-want +got):\n%s", diff)
				}
			})
		})
	}
}

func TestWatchWaitsLongerEachTimeUntilItHearsSomething(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var sessions []string
		for range 12 {
			sessions = append(sessions, "UNAVAILABLE")
		}
		sessions = append(sessions, "synced UNAVAILABLE", "NOT_FOUND")
		_, s, _ := play(t, sessions)
		base := 50 * time.Millisecond
		for i := range 12 {
			waited := s.at[i+1] - s.at[i]
			if waited < base/2 || waited > base {
				t.Errorf("wait %d = %v, want %v to %v", i, waited, base/2, base)
			}
			base = min(2*base, 5*time.Second)
		}
		if waited := s.at[13] - s.at[12]; waited > 50*time.Millisecond {
			t.Errorf("wait after a good stream = %v, want at most 50ms", waited)
		}
	})
}

func TestWatchEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	stopped := errors.New("stopped")
	tests := []struct {
		name   string
		failOn client.EventKind
	}{
		{"at an upsert", client.KindUpsert},
		{"at synced", client.KindSynced},
		{"at a deletion", client.KindDeleted},
		{"at an interruption", client.KindInterrupted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &script{sessions: []string{"+a synced -a UNAVAILABLE"}}
			err := client.Watch(t.Context(), s, nil, func(e client.Event) error {
				if e.Kind == tt.failOn {
					return stopped
				}
				return nil
			})
			if !errors.Is(err, stopped) {
				t.Errorf("Watch = %v, want the caller's error", err)
			}
		})
	}
	t.Run("when the context ends during a wait", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := &script{sessions: []string{"UNAVAILABLE"}}
			err := client.Watch(ctx, s, nil, func(client.Event) error {
				time.AfterFunc(time.Millisecond, func() { cancel(stopped) })
				return nil
			})
			if !errors.Is(err, stopped) {
				t.Errorf("Watch = %v, want the context's cause", err)
			}
		})
	})
}
