// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// grpcurl is the tool, and the service at an address that it knows nothing of but what the service tells.
type grpcurl struct {
	program string
	flags   []string
	address string
	service string
}

// at is the tool for a service of a daemon at its address of one network.
func at(t *testing.T, daemon *harness.Daemon, network, service string) grpcurl {
	t.Helper()
	g := grpcurl{program: harness.Tool(t, "grpcurl"), flags: []string{"-plaintext"}, address: daemon.Address(t, network), service: service}
	if network == "unix" {
		g.flags = append(g.flags, "-unix")
	}
	return g
}

// run runs the tool and returns what it prints.
func (g grpcurl) run(t *testing.T, flags []string, words ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	args := append(append(append([]string(nil), g.flags...), flags...), g.address)
	var stdout, stderr bytes.Buffer
	command := exec.CommandContext(ctx, g.program, append(args, words...)...)
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return stdout.String(), fmt.Errorf("grpcurl %s: %w: %s", strings.Join(words, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// messages calls a method and returns what it answers with. A failure comes with the messages before it.
func messages[T any, M interface {
	*T
	proto.Message
}](t *testing.T, g grpcurl, method string, request proto.Message, flags ...string) ([]M, error) {
	t.Helper()
	data, err := protojson.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	text, failed := g.run(t, append(flags, "-d", string(data)), g.service+"/"+method)
	decoder := json.NewDecoder(strings.NewReader(text))
	var answers []M
	for {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			return answers, failed
		} else if err != nil {
			t.Fatalf("%s answered %s: %v", method, text, err)
		}
		answer := M(new(T))
		if err := protojson.Unmarshal(raw, answer); err != nil {
			t.Fatalf("%s answered %s: %v", method, raw, err)
		}
		answers = append(answers, answer)
	}
}

// last is the last message of a call that must succeed.
func last[T any, M interface {
	*T
	proto.Message
}](t *testing.T, g grpcurl, method string, request proto.Message) M {
	t.Helper()
	answers, err := messages[T, M](t, g, method, request)
	if err != nil || len(answers) == 0 {
		t.Fatalf("%s = %v, %v", method, answers, err)
	}
	return answers[len(answers)-1]
}

// Both services are listed, described and called by grpcurl alone, over a Unix socket and over loopback, streams included.
func TestGRPCurl(t *testing.T) {
	t.Parallel()
	node := harness.Start(t, harness.Config{
		Provisioner: []string{"--listen", "127.0.0.1:0"}, PoolManager: []string{"--listen", "127.0.0.1:0"},
	})
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) { //nolint:paralleltest // both are of one node
			prepares := at(t, node.Provisioner, network, provisionerv1.ProvisionerService_ServiceDesc.ServiceName)
			pools := at(t, node.PoolManager, network, poolv1.PoolManagerService_ServiceDesc.ServiceName)
			describeAll(t, prepares, provisionerv1.ProvisionerService_ServiceDesc)
			describeAll(t, pools, poolv1.PoolManagerService_ServiceDesc)
			prepared := callProvisioner(t, prepares, node.FakeEngine(t))
			callPoolManager(t, pools, "curl-"+network, prepared)
		})
	}
}

// describeAll lists the methods of the service, which must be all that it has, and describes each.
func describeAll(t *testing.T, g grpcurl, service grpc.ServiceDesc) {
	t.Helper()
	methods := len(service.Methods) + len(service.Streams)
	list, err := g.run(t, nil, "list")
	if err != nil || !strings.Contains(list, g.service) || !strings.Contains(list, "grpc.health.v1.Health") {
		t.Errorf("list = %s, %v; want %s and the health service", list, err, g.service)
	}
	list, err = g.run(t, nil, "list", g.service)
	names := strings.Fields(list)
	if err != nil || len(names) != methods {
		t.Errorf("list of %s = %s, %v; want %d methods", g.service, list, err, methods)
	}
	for _, name := range names {
		text, err := g.run(t, nil, "describe", name)
		if err != nil || !strings.Contains(text, "is a method") {
			t.Errorf("describe %s = %s, %v", name, text, err)
		}
	}
	health, err := g.run(t, []string{"-d", `{"service":"` + g.service + `"}`}, "grpc.health.v1.Health/Check")
	if err != nil || !strings.Contains(health, "SERVING") {
		t.Errorf("health = %s, %v", health, err)
	}
}

// callProvisioner calls every method of the provisioner and returns the id of what was prepared.
func callProvisioner(t *testing.T, g grpcurl, spec *enginev1.PrepareSpec) string {
	t.Helper()
	if tools := last[provisionerv1.PreflightResponse](t, g, "Preflight", &provisionerv1.PreflightRequest{}).GetTools(); len(tools) == 0 {
		t.Error("Preflight tells of no tool")
	}
	if steps := last[provisionerv1.PlanResponse](t, g, "Plan", &provisionerv1.PlanRequest{Spec: spec}).GetSteps(); len(steps) == 0 {
		t.Error("Plan has no step")
	}
	answers, err := messages[provisionerv1.PrepareResponse](t, g, "Prepare", &provisionerv1.PrepareRequest{Spec: spec})
	if err != nil || len(answers) < 2 || answers[0].GetProgress() == nil {
		t.Fatalf("Prepare = %v, %v; want progress and a result", answers, err)
	}
	id := answers[len(answers)-1].GetPrepared().GetPreparedId()
	cancel := &provisionerv1.CancelPrepareRequest{Spec: spec, Consumer: &enginev1.Consumer{PoolId: "nobody"}}
	if got := last[provisionerv1.CancelPrepareResponse](t, g, "CancelPrepare", cancel); got.GetCancelled() {
		t.Error("CancelPrepare has cancelled something that was done")
	}
	if got := last[provisionerv1.GetPreparedResponse](t, g, "GetPrepared", &provisionerv1.GetPreparedRequest{PreparedId: id}); got.GetPrepared().GetPreparedId() != id {
		t.Errorf("GetPrepared = %v, want %s", got, id)
	}
	if got := last[provisionerv1.ListPreparedResponse](t, g, "ListPrepared", &provisionerv1.ListPreparedRequest{}); len(got.GetPrepared()) != 1 {
		t.Errorf("ListPrepared = %v, want one", got)
	}
	return id
}

// callPoolManager calls every method of the pool manager.
func callPoolManager(t *testing.T, g grpcurl, pool, prepared string) {
	t.Helper()
	spec := &poolv1.PoolSpec{PoolId: pool, Workload: &poolv1.PoolSpec_PreparedId{PreparedId: prepared}}
	loaded, err := messages[poolv1.PreloadResponse](t, g, "Preload", &poolv1.PreloadRequest{Spec: spec})
	if err != nil || len(loaded) < 2 || loaded[len(loaded)-1].GetPool().GetState() != poolv1.PoolState_POOL_STATE_READY {
		t.Fatalf("Preload = %v, %v; want phases and a pool that is READY", loaded, err)
	}
	if got := last[poolv1.GetPoolResponse](t, g, "GetPool", &poolv1.GetPoolRequest{PoolId: pool}); got.GetPool().GetPoolId() != pool {
		t.Errorf("GetPool = %v", got)
	}
	if got := last[poolv1.ListPoolsResponse](t, g, "ListPools", &poolv1.ListPoolsRequest{}); len(got.GetPools()) != 1 {
		t.Errorf("ListPools = %v, want one", got)
	}
	if got := last[poolv1.LogsResponse](t, g, "Logs", &poolv1.LogsRequest{PoolId: pool}); !strings.Contains(string(got.GetData()), "listening") {
		t.Errorf("Logs = %v, want the engine's words", got)
	}
	watched, err := messages[poolv1.WatchResponse](t, g, "Watch", &poolv1.WatchRequest{}, "-max-time", "2")
	if err == nil || len(watched) < 2 || watched[0].GetUpsert().GetPoolId() != pool || watched[1].GetSynced() == nil {
		t.Errorf("Watch = %v, %v; want the pool, synced, and no end before its time is up", watched, err)
	}
	if got := last[poolv1.CancelPreloadResponse](t, g, "CancelPreload", &poolv1.CancelPreloadRequest{PoolId: pool}); got.GetCancelled() {
		t.Error("CancelPreload has cancelled something that was done")
	}
	drained, err := messages[poolv1.DrainResponse](t, g, "Drain", &poolv1.DrainRequest{PoolId: pool})
	if err != nil || len(drained) < 2 || drained[len(drained)-1].GetResult().GetPool().GetState() != poolv1.PoolState_POOL_STATE_STOPPED {
		t.Errorf("Drain = %v, %v; want progress and the pool STOPPED", drained, err)
	}
	_ = last[poolv1.DeletePoolResponse](t, g, "DeletePool", &poolv1.DeletePoolRequest{PoolId: pool})
	if _, err := messages[poolv1.GetPoolResponse](t, g, "GetPool", &poolv1.GetPoolRequest{PoolId: pool}); err == nil ||
		!containsAll(err.Error(), "NotFound", "POOL_NOT_FOUND", "roundhouse") {
		t.Errorf("GetPool of a pool that was deleted = %v, want NOT_FOUND with its reason", err)
	}
}
