// SPDX-License-Identifier: Apache-2.0

// Package harness runs the real daemons for tests, over real sockets and with real processes, and proves after each test
// that nothing is left of it.
//
// Main builds the programs once, with the race detector. Start gives a test a Node of its own: an engine-provisioner and
// a pool-managerd in a folder of their own. When the test ends both are stopped and the folder is audited: no process,
// zombie, socket, record, handoff file or temporary file may be left, and no daemon may have raced. A Node belongs to one
// test; different tests may have theirs at once.
package harness

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// Patience is how long anything that must happen at once may take on a machine that has much to do.
const Patience = 30 * time.Second

// Config says how a Node is made. The zero value is a node with an empty store.
type Config struct {
	// Store is the provisioner's store, which stays; empty means a fresh one that goes with the node.
	Store string
	// State is the pool manager's state directory, which stays; empty means a fresh one that goes with the node.
	State string
	// Provisioner and PoolManager are more flags for the daemons.
	Provisioner, PoolManager []string
	// ProvisionerConfig and PoolManagerConfig are configuration files in YAML; empty means none.
	ProvisionerConfig, PoolManagerConfig string
}

// Node is the folder of one test's daemons, and the daemons.
type Node struct {
	// Dir holds all the rest. Its path is short enough for sockets.
	Dir string
	// Root is the folder below which the provisioner takes files of this machine.
	Root string
	// Store and State are the daemons' state directories, and Handoff is where files for ready replicas are.
	Store, State, Handoff string
	// Provisioner and PoolManager are the daemons; nil before they are started.
	Provisioner, PoolManager *Daemon
	// Prepares and Pools are clients of them. They find a daemon that was started anew.
	Prepares provisionerv1.ProvisionerServiceClient
	Pools    poolv1.PoolManagerServiceClient

	config      Config
	tmp         string
	connections []*grpc.ClientConn
	daemons     []*Daemon
}

// New makes the folder of a node. It starts nothing; whatever is started is stopped and audited when the test ends.
func New(tb testing.TB, config Config) *Node {
	tb.Helper()
	dir, err := os.MkdirTemp("", "rh") //nolint:usetesting // sockets need a short path
	if err != nil {
		tb.Fatalf("make folder of the node: %v", err)
	}
	n := &Node{
		Dir:    dir,
		Root:   filepath.Join(dir, "root"),
		Store:  config.Store,
		State:  config.State,
		config: config,
		tmp:    filepath.Join(dir, "tmp"),
	}
	if n.State == "" {
		n.State = filepath.Join(dir, "state")
	}
	n.Handoff = filepath.Join(n.State, "handoff")
	if n.Store == "" {
		n.Store = filepath.Join(dir, "store")
	}
	for _, folder := range []string{n.Root, n.tmp} {
		if err := os.Mkdir(folder, 0o755); err != nil {
			tb.Fatalf("make folder of the node: %v", err)
		}
	}
	tb.Cleanup(func() { n.end(tb) })
	n.Prepares = provisionerv1.NewProvisionerServiceClient(n.dial(tb, n.ProvisionerAddress()))
	n.Pools = poolv1.NewPoolManagerServiceClient(n.dial(tb, n.PoolManagerAddress()))
	return n
}

// Start makes a node with both daemons, which serve when it returns.
func Start(tb testing.TB, config Config) *Node {
	tb.Helper()
	n := New(tb, config)
	n.StartProvisioner(tb)
	n.StartPoolManager(tb)
	return n
}

// ProvisionerAddress is where the provisioner serves.
func (n *Node) ProvisionerAddress() string { return "unix://" + filepath.Join(n.Dir, "p.sock") }

// PoolManagerAddress is where the pool manager serves.
func (n *Node) PoolManagerAddress() string { return "unix://" + filepath.Join(n.Dir, "m.sock") }

// Path is a path in the node's folder.
func (n *Node) Path(name string) string { return filepath.Join(n.Dir, name) }

// StartProvisioner starts the provisioner and returns when it serves.
func (n *Node) StartProvisioner(tb testing.TB) {
	tb.Helper()
	n.Provisioner = n.RunProvisioner(tb)
	n.awaitServing(tb, n.Provisioner, n.ProvisionerAddress(), provisionerv1.ProvisionerService_ServiceDesc.ServiceName)
}

// StartPoolManager starts the pool manager, with more flags, and returns when it serves.
func (n *Node) StartPoolManager(tb testing.TB, flags ...string) {
	tb.Helper()
	n.PoolManager = n.RunPoolManager(tb, flags...)
	n.AwaitPoolManager(tb)
}

// AwaitPoolManager waits until the pool manager that was started last serves.
func (n *Node) AwaitPoolManager(tb testing.TB) {
	tb.Helper()
	n.awaitServing(tb, n.PoolManager, n.PoolManagerAddress(), poolv1.PoolManagerService_ServiceDesc.ServiceName)
}

// RunProvisioner starts a provisioner of the node with more flags and does not wait for it.
func (n *Node) RunProvisioner(tb testing.TB, flags ...string) *Daemon {
	tb.Helper()
	args := []string{"--listen", n.ProvisionerAddress(), "--state-dir", n.Store, "--root", n.Root, "--log-level", "debug"}
	args = append(args, n.configFlags(tb, "provisioner.yaml", n.config.ProvisionerConfig)...)
	return n.run(tb, "engine-provisioner", append(append(args, n.config.Provisioner...), flags...))
}

// RunPoolManager starts a pool manager of the node with more flags and does not wait for it.
func (n *Node) RunPoolManager(tb testing.TB, flags ...string) *Daemon {
	tb.Helper()
	return n.runPoolManager(tb, "pool-managerd", flags)
}

func (n *Node) runPoolManager(tb testing.TB, program string, flags []string, env ...string) *Daemon {
	tb.Helper()
	args := []string{
		"--listen", n.PoolManagerAddress(), "--state-dir", n.State, "--provisioner", n.ProvisionerAddress(),
		"--store-root", n.Store, "--store-root", n.Root, "--log-level", "debug",
	}
	args = append(args, n.configFlags(tb, "pool-manager.yaml", n.config.PoolManagerConfig)...)
	return n.run(tb, program, append(append(args, n.config.PoolManager...), flags...), env...)
}

func (n *Node) configFlags(tb testing.TB, name, text string) []string {
	tb.Helper()
	if text == "" {
		return nil
	}
	if err := os.WriteFile(n.Path(name), []byte(text), 0o600); err != nil {
		tb.Fatalf("write configuration: %v", err)
	}
	return []string{"--config", n.Path(name)}
}

func (n *Node) dial(tb testing.TB, address string) *grpc.ClientConn {
	tb.Helper()
	conn, err := client.Dial(address)
	if err != nil {
		tb.Fatalf("dial %s: %v", address, err)
	}
	n.connections = append(n.connections, conn)
	return conn
}

// awaitServing waits until the daemon's health service says that it serves.
func (n *Node) awaitServing(tb testing.TB, d *Daemon, address, service string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), Patience)
	defer cancel()
	go func() {
		select {
		case <-d.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := client.Dial(address)
	if err != nil {
		tb.Fatalf("dial %s: %v", address, err)
	}
	defer func() { _ = conn.Close() }()
	if err := client.WaitReady(ctx, conn); err != nil {
		tb.Fatalf("%s does not come up: %v\n%s", d.Name, err, d.Log(tb))
	}
	answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: service})
	if err != nil || answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		tb.Fatalf("health of %s: %v, %v", service, answer, err)
	}
}
