// SPDX-License-Identifier: Apache-2.0

package command

import (
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

func phase(stream grpc.ServerStreamingServer[poolv1.PreloadResponse], phase poolv1.LoadPhase) error {
	return stream.Send(&poolv1.PreloadResponse{Event: &poolv1.PreloadResponse_Phase{Phase: phase}})
}

func ready(stream grpc.ServerStreamingServer[poolv1.PreloadResponse]) error {
	return stream.Send(&poolv1.PreloadResponse{Event: &poolv1.PreloadResponse_Pool{Pool: readyPool()}})
}

// loading is a preload that goes on until it is cancelled or its caller has gone.
func loading(cancelled chan struct{}) *fakeServices {
	return &fakeServices{
		preload: func(_ *poolv1.PreloadRequest, stream grpc.ServerStreamingServer[poolv1.PreloadResponse]) error {
			if err := phase(stream, poolv1.LoadPhase_LOAD_PHASE_LOADING); err != nil {
				return err
			}
			select {
			case <-cancelled:
				return reason.New(reason.Cancelled, "the preload was cancelled")
			case <-stream.Context().Done():
				return stream.Context().Err()
			}
		},
		cancel: func(*poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error) {
			close(cancelled)
			return &poolv1.CancelPreloadResponse{Cancelled: true}, nil
		},
	}
}

func TestPreloadUntilReady(t *testing.T) {
	t.Parallel()
	fake := &fakeServices{preload: func(request *poolv1.PreloadRequest, stream grpc.ServerStreamingServer[poolv1.PreloadResponse]) error {
		if request.GetSpec().GetPoolId() != "p" || request.GetSpec().GetPrepare().GetEngine().GetKind() != "llamacpp" {
			return unexpected(request.String())
		}
		if err := phase(stream, poolv1.LoadPhase_LOAD_PHASE_PREPARING); err != nil {
			return err
		}
		return ready(stream)
	}}
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			x := newTerminal(t, fake)
			if code := x.run(t, "preload", "--preset=source", "--pool=p", "-o", format); code != codeOK {
				t.Fatalf("exit code %d: %s", code, x.stderr)
			}
			testkit.Golden(t, "preload."+format, []byte("stdout:\n"+x.stdout.String()+"stderr:\n"+x.stderr.String()))
		})
	}
}

func TestPreloadDetaches(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, loading(make(chan struct{})))
	if code := x.run(t, "preload", "--preset=source", "--pool=p", "--detach"); code != codeOK {
		t.Errorf("exit code %d, want %d: %s", code, codeOK, x.stderr)
	}
	if said := x.stderr.String(); !strings.Contains(said, "goes on; see `roundhouse watch p`") {
		t.Errorf("standard error is %q, want it to say that the preload goes on", said)
	}
}

func TestFirstInterruptCancels(t *testing.T) {
	t.Parallel()
	cancelled := make(chan struct{})
	x := newTerminal(t, loading(cancelled))
	x.interrupt()
	if code := x.run(t, "preload", "--preset=source", "--pool=p"); code != codeCancelled {
		t.Errorf("exit code %d, want %d: %s", code, codeCancelled, x.stderr)
	}
	select {
	case <-cancelled:
	default:
		t.Error("CancelPreload was not called")
	}
	if said := x.stderr.String(); !strings.Contains(said, "error: CANCELLED: the preload was cancelled") {
		t.Errorf("standard error is %q, want the manager's answer", said)
	}
}

func TestSecondInterruptLeaves(t *testing.T) {
	t.Parallel()
	fake := loading(make(chan struct{}))
	asked, answer := make(chan struct{}), make(chan struct{})
	fake.cancel = func(*poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error) {
		close(asked)
		<-answer // an engine that does not die
		return &poolv1.CancelPreloadResponse{Cancelled: true}, nil
	}
	x := newTerminal(t, fake)
	t.Cleanup(func() { close(answer) })
	ended := make(chan int, 1)
	go func() { ended <- x.run(t, "preload", "--preset=source", "--pool=p") }()
	x.interrupt()
	<-asked
	x.interrupt()
	if code := <-ended; code != codeCancelled {
		t.Errorf("exit code %d, want %d: %s", code, codeCancelled, x.stderr)
	}
	if said := x.stderr.String(); !strings.Contains(said, "left: the pool manager goes on cancelling") {
		t.Errorf("standard error is %q, want it to say what goes on", said)
	}
}

func TestInterruptTooLate(t *testing.T) {
	t.Parallel()
	answered := make(chan struct{})
	x := newTerminal(t, &fakeServices{
		preload: func(_ *poolv1.PreloadRequest, stream grpc.ServerStreamingServer[poolv1.PreloadResponse]) error {
			<-answered
			return ready(stream)
		},
		cancel: func(*poolv1.CancelPreloadRequest) (*poolv1.CancelPreloadResponse, error) {
			defer close(answered)
			return &poolv1.CancelPreloadResponse{}, nil
		},
	})
	x.interrupt()
	if code := x.run(t, "preload", "--preset=source", "--pool=p"); code != codeOK {
		t.Errorf("exit code %d, want %d, since the pool is ready: %s", code, codeOK, x.stderr)
	}
}

func TestPreloadTimeoutLeaves(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, loading(make(chan struct{})))
	if code := x.run(t, "preload", "--preset=source", "--pool=p", "--timeout=2s"); code != codeTimedOut {
		t.Errorf("exit code %d, want %d: %s", code, codeTimedOut, x.stderr)
	}
	if said := x.stderr.String(); !strings.Contains(said, "the preload of p goes on; `roundhouse cancel p` ends it") {
		t.Errorf("standard error is %q, want it to say that the preload goes on", said)
	}
}

func TestPreloadWithoutResult(t *testing.T) {
	t.Parallel()
	x := newTerminal(t, &fakeServices{preload: func(*poolv1.PreloadRequest, grpc.ServerStreamingServer[poolv1.PreloadResponse]) error { return nil }})
	if code := x.run(t, "preload", "--preset=source", "--pool=p"); code != codeFailed {
		t.Errorf("exit code %d, want %d: %s", code, codeFailed, x.stderr)
	}
}
