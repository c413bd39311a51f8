// SPDX-License-Identifier: Apache-2.0

package command

import (
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func upsert(token string) *poolv1.WatchResponse {
	return &poolv1.WatchResponse{ResumeToken: token, Event: &poolv1.WatchResponse_Upsert{Upsert: readyPool()}}
}

func synced(token string) *poolv1.WatchResponse {
	return &poolv1.WatchResponse{ResumeToken: token, Event: &poolv1.WatchResponse_Synced{Synced: &poolv1.Synced{}}}
}

// newest is what a manager tells a new reader.
func newest() []*poolv1.WatchResponse {
	return []*poolv1.WatchResponse{
		upsert("1"),
		synced("2"),
		{ResumeToken: "3", Event: &poolv1.WatchResponse_Heartbeat{Heartbeat: &poolv1.Heartbeat{}}},
		{ResumeToken: "4", Event: &poolv1.WatchResponse_Deleted{Deleted: &poolv1.Deleted{PoolId: "p"}}},
	}
}

// scripted sends the messages and waits for the caller to go.
func scripted(messages []*poolv1.WatchResponse) func(*poolv1.WatchRequest, grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
	return func(_ *poolv1.WatchRequest, stream grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
		for _, message := range messages {
			if err := stream.Send(message); err != nil {
				return err
			}
		}
		return untilGone(stream.Context())
	}
}

// watchUntil runs a watch until it has shown the text, and answers with all that it has shown.
func watchUntil(t *testing.T, fake *fakeServices, shown string, args ...string) string {
	t.Helper()
	x := newTerminal(t, fake)
	ended := make(chan int, 1)
	go func() { ended <- x.run(t, append([]string{"watch"}, args...)...) }()
	testkit.Eventually(t, patience, "it is shown", func() (bool, string) {
		return strings.Contains(x.stdout.String(), shown), x.stdout.String()
	})
	x.interrupt()
	if code := <-ended; code != codeOK {
		t.Errorf("exit code %d, want %d: %s", code, codeOK, x.stderr)
	}
	return x.stdout.String()
}

func TestWatchShowsChanges(t *testing.T) {
	t.Parallel()
	fake := obliging()
	fake.watch = scripted(newest())
	shown := watchUntil(t, fake, `"deleted":`, "-o", "json")
	testkit.Golden(t, "watch.json", []byte(shown))
}

func TestWatchResumes(t *testing.T) {
	t.Parallel()
	fake := obliging()
	fake.watch = func(request *poolv1.WatchRequest, stream grpc.ServerStreamingServer[poolv1.WatchResponse]) error {
		if request.GetResumeToken() != "4" || len(request.GetPoolIds()) != 1 {
			return unexpected(request.String())
		}
		return scripted([]*poolv1.WatchResponse{
			{ResumeToken: "5", Event: &poolv1.WatchResponse_Reset_{Reset_: &poolv1.Reset{}}}, upsert("6"), synced("7"),
		})(request, stream)
	}
	shown := watchUntil(t, fake, `"synced":`, "p", "-o", "json", "--resume", "4")
	testkit.Golden(t, "resumed.json", []byte(shown))
}
