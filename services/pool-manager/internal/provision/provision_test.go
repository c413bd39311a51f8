// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// testPatience is how long a test waits for what should take milliseconds.
const testPatience = 20 * time.Second

// provisioner answers as it is told.
type provisioner struct {
	provisionerv1.UnimplementedProvisionerServiceServer
	prepare     func(*provisionerv1.PrepareRequest, provisionerv1.ProvisionerService_PrepareServer) error
	getPrepared func(*provisionerv1.GetPreparedRequest) (*provisionerv1.GetPreparedResponse, error)
	// cancel is missing if nil, as in an older provisioner.
	cancel func(*provisionerv1.CancelPrepareRequest) (*provisionerv1.CancelPrepareResponse, error)
}

func (p *provisioner) CancelPrepare(ctx context.Context, request *provisionerv1.CancelPrepareRequest) (*provisionerv1.CancelPrepareResponse, error) {
	if p.cancel == nil {
		return p.UnimplementedProvisionerServiceServer.CancelPrepare(ctx, request)
	}
	return p.cancel(request)
}

func (p *provisioner) Prepare(request *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
	return p.prepare(request, stream)
}

func (p *provisioner) GetPrepared(_ context.Context, request *provisionerv1.GetPreparedRequest) (*provisionerv1.GetPreparedResponse, error) {
	return p.getPrepared(request)
}

// serve runs p at the address until the function it returns is called, which happens at the end of the test at the latest.
func serve(t *testing.T, address string, p *provisioner) (stop func()) {
	t.Helper()
	listen, err := serverkit.ParseListen(address)
	if err != nil {
		t.Fatal(err)
	}
	kit, err := serverkit.New(serverkit.Config{
		Listens: []serverkit.Listen{listen}, StopGrace: time.Millisecond,
		Services: []serverkit.Registration{func(r grpc.ServiceRegistrar) { provisionerv1.RegisterProvisionerServiceServer(r, p) }},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- kit.Run(ctx) }()
	select {
	case <-kit.Ready():
	case err := <-ended:
		t.Fatalf("serve: %v", err)
	}
	stop = func() {
		if ctx.Err() != nil {
			return
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func address(t *testing.T) string {
	t.Helper()
	return "unix://" + filepath.Join(testkit.ShortDir(t), "p")
}

func newClient(t *testing.T, address string) *Client {
	t.Helper()
	c, err := New(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func validSpec() *enginev1.PrepareSpec {
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "some", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{Path: "/bin/engine"}}},
		Model:  &enginev1.ModelSpec{Uri: "file:/m.gguf"},
	}
}

func step(id string) *enginev1.Progress {
	return &enginev1.Progress{Event: &enginev1.Progress_Step{Step: &enginev1.Step{Id: id}}}
}

func sendProgress(stream provisionerv1.ProvisionerService_PrepareServer, events ...*enginev1.Progress) error {
	for _, event := range events {
		if err := stream.Send(&provisionerv1.PrepareResponse{Event: &provisionerv1.PrepareResponse_Progress{Progress: event}}); err != nil {
			return err
		}
	}
	return nil
}

func sendPrepared(stream provisionerv1.ProvisionerService_PrepareServer, prepared *enginev1.PreparedEngine) error {
	return stream.Send(&provisionerv1.PrepareResponse{Event: &provisionerv1.PrepareResponse_Prepared{Prepared: prepared}})
}

func ignore(*enginev1.Progress) {}

func TestNewRefusesWhatIsNoAddress(t *testing.T) {
	t.Parallel()
	for _, target := range []string{"", "unix://relative", "10.0.0.1:1", "http://localhost"} {
		if _, err := New(target); reason.Of(err) != reason.InvalidParams {
			t.Errorf("New(%q) = %v, want INVALID_PARAMS", target, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	t.Parallel()
	at := address(t)
	want := &enginev1.PreparedEngine{PreparedId: "sha256:1", Model: &enginev1.PreparedModel{Id: "m"}}
	serve(t, at, &provisioner{prepare: func(request *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
		asked := &provisionerv1.PrepareRequest{Spec: validSpec(), Consumer: &enginev1.Consumer{PoolId: "pool"}}
		if diff := cmp.Diff(asked, request, protocmp.Transform(), protocmp.IgnoreFields(&enginev1.Consumer{}, "request_id")); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
		return errors.Join(
			sendProgress(stream, step("a"), step("b")),
			stream.Send(&provisionerv1.PrepareResponse{}), // A kind of event that a later contract may have.
			sendProgress(stream, step("c")), sendPrepared(stream, want))
	}})
	var told []*enginev1.Progress
	got, err := newClient(t, at).Prepare(t.Context(), validSpec(), "pool", func(p *enginev1.Progress) { told = append(told, p) })
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
		t.Errorf("Prepare: %v (-want +got):\n%s", err, diff)
	}
	if diff := cmp.Diff([]*enginev1.Progress{step("a"), step("b"), step("c")}, told, protocmp.Transform()); diff != "" {
		t.Errorf("progress (-want +got):\n%s", diff)
	}
}

func TestPrepareThatFails(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		err  error
		want reason.Reason
	}{
		{"with a reason", reason.New(reason.BuildFailed, "no", reason.Field("spec.engine"), reason.Meta("line", "error: x"), reason.Remedy("mend it")), reason.BuildFailed},
		{"cancelled there", reason.New(reason.Cancelled, "withdrawn"), reason.Cancelled},
		{"going down", reason.New(reason.ShuttingDown, "bye"), reason.ProvisionerUnavailable},
		{"gone", status.Error(codes.Unavailable, "connection reset"), reason.ProvisionerUnavailable},
		{"without a result", nil, reason.Internal},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			at := address(t)
			serve(t, at, &provisioner{prepare: func(_ *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
				if err := sendProgress(stream, step("a")); err != nil {
					return err
				}
				return tt.err
			}})
			told := 0
			prepared, err := newClient(t, at).Prepare(t.Context(), validSpec(), "pool", func(*enginev1.Progress) { told++ })
			if reason.Of(err) != tt.want || prepared != nil || told != 1 {
				t.Errorf("Prepare = %v, %v after %d events, want %s after 1", prepared, err, told, tt.want)
			}
			typed, ok := reason.As(err)
			if !ok {
				t.Fatalf("%v has no reason", err)
			}
			if sent, ok := reason.As(tt.err); ok && sent.Reason == tt.want {
				diff := cmp.Diff([]any{sent.Message, sent.Remedy, sent.Metadata}, []any{typed.Message, typed.Remedy, typed.Metadata})
				if diff != "" {
					t.Errorf("error (-sent +got):\n%s", diff)
				}
			}
		})
	}
}

func wantUnavailable(t *testing.T, err error, target string) {
	t.Helper()
	typed, ok := reason.As(err)
	if !ok || typed.Reason != reason.ProvisionerUnavailable || typed.Metadata["target"] != target || typed.RetryAfter == 0 ||
		!strings.Contains(typed.Remedy, "engine-provisioner") {
		t.Errorf("error %+v, want PROVISIONER_UNAVAILABLE with target, retry and remedy", err)
	}
}

func TestProvisionerThatIsDown(t *testing.T) {
	t.Parallel()
	at := address(t)
	c := newClient(t, at)
	_, err := c.Prepare(t.Context(), validSpec(), "pool", ignore)
	wantUnavailable(t, err, at)
	_, err = c.Prepared(t.Context(), "sha256:"+strings.Repeat("0", 64))
	wantUnavailable(t, err, at)

	p := &provisioner{prepare: func(_ *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
		return sendPrepared(stream, &enginev1.PreparedEngine{PreparedId: "x"})
	}}
	prepare := func() (bool, string) {
		prepared, err := c.Prepare(t.Context(), validSpec(), "pool", ignore)
		if err != nil && reason.Of(err) != reason.ProvisionerUnavailable {
			t.Errorf("Prepare = %v", err)
		}
		return prepared.GetPreparedId() == "x", "it is not reached"
	}
	stop := serve(t, at, p)
	testkit.Eventually(t, testPatience, "it is reached once it is there", prepare)
	stop()
	_, err = c.Prepare(t.Context(), validSpec(), "pool", ignore)
	wantUnavailable(t, err, at)
	serve(t, at, p)
	testkit.Eventually(t, testPatience, "it is reached once it is there again", prepare)
}

func TestProvisionerThatDiesMeanwhile(t *testing.T) {
	t.Parallel()
	at := address(t)
	begun := make(chan struct{})
	stop := serve(t, at, &provisioner{prepare: func(_ *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
		close(begun)
		<-stream.Context().Done()
		return context.Cause(stream.Context())
	}})
	ended := make(chan error, 1)
	c := newClient(t, at)
	go func() {
		_, err := c.Prepare(t.Context(), validSpec(), "pool", ignore)
		ended <- err
	}()
	<-begun
	stop()
	wantUnavailable(t, <-ended, at)
}

func TestEndOfContextWithdrawsTheRequest(t *testing.T) {
	t.Parallel()
	at, enough := address(t), errors.New("enough")
	withdrawn := make(chan struct{})
	serve(t, at, &provisioner{prepare: func(_ *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
		if err := sendProgress(stream, step("a")); err != nil {
			return err
		}
		<-stream.Context().Done()
		close(withdrawn)
		return context.Cause(stream.Context())
	}})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	_, err := newClient(t, at).Prepare(ctx, validSpec(), "pool", func(*enginev1.Progress) { cancel(enough) })
	if !errors.Is(err, enough) {
		t.Errorf("Prepare = %v, want the cause", err)
	}
	select {
	case <-withdrawn:
	case <-time.After(testPatience):
		t.Error("the provisioner was not told")
	}
	if _, err := newClient(t, at).Prepare(ctx, validSpec(), "pool", ignore); !errors.Is(err, enough) {
		t.Errorf("Prepare after the end = %v, want the cause", err)
	}
}

// Prepare ends after the provisioner has said that nothing of it runs any more, and does not hang up before.
func TestEndOfContextWaitsForTheWork(t *testing.T) {
	t.Parallel()
	at, enough := address(t), errors.New("enough")
	asked, begun, cut := make(chan *provisionerv1.PrepareRequest, 1), make(chan struct{}), make(chan struct{})
	calls, gone := 0, false
	serve(t, at, &provisioner{
		prepare: func(request *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
			asked <- request
			if err := sendProgress(stream, step("a")); err != nil {
				return err
			}
			close(begun)
			select {
			case <-cut:
				return reason.New(reason.Cancelled, "cancelled")
			case <-stream.Context().Done():
				t.Error("the call was hung up")
				return context.Cause(stream.Context())
			}
		},
		cancel: func(request *provisionerv1.CancelPrepareRequest) (*provisionerv1.CancelPrepareResponse, error) {
			if calls++; calls < 3 { // the provisioner has not heard of the call yet
				return &provisionerv1.CancelPrepareResponse{}, nil
			}
			was := <-asked
			want := &provisionerv1.CancelPrepareRequest{Spec: was.GetSpec(), Consumer: was.GetConsumer()}
			if diff := cmp.Diff(want, request, protocmp.Transform()); diff != "" || request.GetConsumer().GetRequestId() == "" {
				t.Errorf("request of the cancel (-want +got):\n%s", diff)
			}
			close(cut)
			gone = true
			return &provisionerv1.CancelPrepareResponse{Cancelled: true}, nil
		},
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	go func() {
		<-begun
		cancel(enough)
	}()
	_, err := newClient(t, at).Prepare(ctx, validSpec(), "pool", ignore)
	if !errors.Is(err, enough) || !gone || calls != 3 {
		t.Errorf("Prepare = %v after %d cancels, want the cause after the third has done it", err, calls)
	}
}

func TestEachRequestHasItsOwnID(t *testing.T) {
	t.Parallel()
	at, ids := address(t), map[string]bool{}
	serve(t, at, &provisioner{prepare: func(request *provisionerv1.PrepareRequest, stream provisionerv1.ProvisionerService_PrepareServer) error {
		ids[request.GetConsumer().GetRequestId()] = true
		return sendPrepared(stream, &enginev1.PreparedEngine{PreparedId: "x"})
	}})
	c := newClient(t, at)
	for range 3 {
		if _, err := c.Prepare(t.Context(), validSpec(), "pool", ignore); err != nil {
			t.Fatal(err)
		}
	}
	if len(ids) != 3 || ids[""] {
		t.Errorf("three requests have the ids %v", ids)
	}
}

func TestPrepared(t *testing.T) {
	t.Parallel()
	at, known := address(t), "sha256:"+strings.Repeat("1", 64)
	serve(t, at, &provisioner{getPrepared: func(request *provisionerv1.GetPreparedRequest) (*provisionerv1.GetPreparedResponse, error) {
		switch request.GetPreparedId() {
		case known:
			return &provisionerv1.GetPreparedResponse{Prepared: &enginev1.PreparedEngine{PreparedId: known}}, nil
		case "sha256:" + strings.Repeat("2", 64):
			return &provisionerv1.GetPreparedResponse{}, nil
		default:
			return nil, reason.New(reason.PreparedNotFound, "never prepared")
		}
	}})
	c := newClient(t, at)
	for _, tt := range []struct {
		id   string
		want reason.Reason
	}{
		{known, reason.Unspecified}, {"sha256:" + strings.Repeat("2", 64), reason.Internal}, {"sha256:" + strings.Repeat("3", 64), reason.PreparedNotFound},
	} {
		got, err := c.Prepared(t.Context(), tt.id)
		if reason.Of(err) != tt.want || (err == nil) != (got.GetPreparedId() == tt.id) {
			t.Errorf("Prepared(%s) = %v, %v, want %s", tt.id, got, err, tt.want)
		}
	}
}
