// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// plainClient is a connection as any gRPC client has it, without what package client adds.
func plainClient(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(strings.Replace(address, "unix://", "unix:", 1), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// What a client in any language finds in the status of a call that is refused.
func TestErrorOnTheWire(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	pools := poolv1.NewPoolManagerServiceClient(plainClient(t, node.PoolManagerAddress()))
	spec := node.FakePool(t, "wire")
	spec.GetPrepare().GetLaunch().Flags = []string{"--port", "1"}
	stream, err := pools.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	failed, ok := status.FromError(err)
	if !ok || failed.Code() != codes.InvalidArgument {
		t.Fatalf("Preload = %v, want INVALID_ARGUMENT", err)
	}
	var info *errdetails.ErrorInfo
	var bad *errdetails.BadRequest
	for _, detail := range failed.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			info = d
		case *errdetails.BadRequest:
			bad = d
		}
	}
	if info.GetReason() != "INVALID_PARAMS" || info.GetDomain() != "roundhouse" {
		t.Errorf("ErrorInfo = %v, want INVALID_PARAMS of roundhouse", info)
	}
	if violations := bad.GetFieldViolations(); len(violations) != 1 || violations[0].GetField() != "spec.prepare.launch.flags[0]" {
		t.Errorf("BadRequest = %v, want the field spec.prepare.launch.flags[0]", bad)
	}
	if !strings.Contains(failed.Message(), "--port") {
		t.Errorf("message = %q, want one that names the flag", failed.Message())
	}
}

// A request of 5 MiB is refused by both services as over the limit, and neither minds.
func TestLargeRequest(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{})
	want := harness.Want{Code: codes.ResourceExhausted, Reason: reason.LimitExceeded}
	large := strings.Repeat("x", 5<<20)
	pools := poolv1.NewPoolManagerServiceClient(plainClient(t, node.PoolManagerAddress()))
	_, err := pools.GetPool(t.Context(), &poolv1.GetPoolRequest{PoolId: large})
	want.Check(t, reason.FromStatus(err))
	stream, err := pools.Preload(t.Context(), &poolv1.PreloadRequest{RequestId: large})
	if err == nil {
		_, err = stream.Recv()
	}
	want.Check(t, reason.FromStatus(err))
	prepares := provisionerv1.NewProvisionerServiceClient(plainClient(t, node.ProvisionerAddress()))
	_, err = prepares.GetPrepared(t.Context(), &provisionerv1.GetPreparedRequest{PreparedId: large})
	want.Check(t, reason.FromStatus(err))
	node.MustPreload(t, node.FakePool(t, "after"))
}

// Without a compiler a build from source is refused with how to get one, and Preflight says the same before.
func TestNoCompiler(t *testing.T) {
	t.Parallel()
	tools := t.TempDir()
	for _, name := range []string{"git", "cmake", "ninja"} {
		linkTool(t, name, tools)
	}
	node := harness.Start(t, harness.Config{ProvisionerConfig: "tool_path: " + tools + "\n"})
	spec := node.ProjectEngine(t, harness.Project{})
	load := node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: harness.Pool("uncompiled", spec)})
	harness.Want{Code: codes.FailedPrecondition, Reason: reason.ToolMissing, Message: "c++"}.Check(t, load.Err)
	if e, _ := reason.As(load.Err); !strings.Contains(e.Remedy, "c++") {
		t.Errorf("remedy = %q, want how to get c++", e.Remedy)
	}
	if ids := node.PoolIDs(t); len(ids) != 0 {
		t.Errorf("pools = %v, want none", ids)
	}
	preflight, err := node.Prepares.Preflight(t.Context(), &provisionerv1.PreflightRequest{})
	if err != nil {
		t.Fatalf("Preflight: %v", err)
	}
	remedies := map[string]string{}
	for _, tool := range preflight.GetTools() {
		remedies[tool.GetName()] = tool.GetRemedy()
	}
	for name, missing := range map[string]bool{"c++": true, "git": false, "cmake": false, "ninja": false} {
		if remedy, told := remedies[name]; !told || (remedy != "") != missing {
			t.Errorf("Preflight says of %s: %q (told: %v), want a remedy: %v", name, remedy, told, missing)
		}
	}
	for _, way := range preflight.GetEngines() {
		if way.GetKind() == "llamacpp" && way.GetMode().String() == "PROVISIONING_MODE_SOURCE" && (way.GetAvailable() || len(way.GetMissingTools()) == 0) {
			t.Errorf("Preflight says of builds from source: %v", way)
		}
	}
	node.MustPreload(t, node.FakePool(t, "ready-made")) // needs none
}

// linkTool makes a tool of this machine be found in a folder of its own.
func linkTool(t *testing.T, name, dir string) {
	t.Helper()
	for _, folder := range []string{"/usr/local/bin", "/usr/bin", "/bin"} {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); err == nil {
			link(t, path, filepath.Join(dir, name))
			return
		}
	}
	t.Fatalf("%s is not installed", name)
}

// Without a provisioner everything but preparing works, and it works again when the provisioner is there.
func TestNoProvisioner(t *testing.T) {
	t.Parallel()
	node := harness.New(t, harness.Config{})
	node.StartPoolManager(t)
	want := harness.Want{Code: codes.Unavailable, Reason: reason.ProvisionerUnavailable, Message: "engine-provisioner"}
	request := &poolv1.PreloadRequest{Spec: node.FakePool(t, "waiting")}
	want.Check(t, node.Preload(t.Context(), request).Err)
	byID := &poolv1.PoolSpec{PoolId: "waiting", Workload: &poolv1.PoolSpec_PreparedId{PreparedId: "sha256:" + strings.Repeat("0", 64)}}
	want.Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: byID}).Err)
	if ids := node.PoolIDs(t); len(ids) != 0 {
		t.Errorf("pools = %v, want none", ids)
	}
	node.StartProvisioner(t)
	pool := node.MustPreload(t, request.GetSpec())
	node.Provisioner.Stop(t)
	if _, err := harness.NewChat("tiny", 1).Ask(t.Context(), pool.GetReplicas()[0].GetEndpoint()); err != nil {
		t.Errorf("the engine does not serve without the provisioner: %v", err)
	}
	if drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: "waiting"}); drained.Err != nil {
		t.Errorf("Drain without the provisioner: %v", drained.Err)
	}
}
