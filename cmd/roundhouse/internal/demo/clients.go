// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

const (
	// answerTimeout is how long a daemon may take to answer after its start.
	answerTimeout = 20 * time.Second
	// drainNowTimeout is how long the clean-up waits for the manager to stop an engine.
	drainNowTimeout = 30 * time.Second
)

// provisionerClient is a connection to the provisioner.
type provisionerClient struct {
	conn   *grpc.ClientConn
	client provisionerv1.ProvisionerServiceClient
}

func (c *provisionerClient) close() { _ = c.conn.Close() } // nothing is in flight

// dialProvisioner returns when the provisioner answers, or with the reason why it does not.
func dialProvisioner(ctx context.Context, target string, d *daemon) (*provisionerClient, error) {
	conn, err := dial(ctx, target, d)
	if err != nil {
		return nil, err
	}
	return &provisionerClient{conn: conn, client: provisionerv1.NewProvisionerServiceClient(conn)}, nil
}

// poolClient is a connection to the pool manager.
type poolClient struct {
	conn   *grpc.ClientConn
	client poolv1.PoolManagerServiceClient
	// used is true while there may be a pool with processes.
	used bool
}

// dialPools returns when the pool manager answers, or with the reason why it does not.
func dialPools(ctx context.Context, target string, d *daemon) (*poolClient, error) {
	conn, err := dial(ctx, target, d)
	if err != nil {
		return nil, err
	}
	return &poolClient{conn: conn, client: poolv1.NewPoolManagerServiceClient(conn)}, nil
}

func (c *poolClient) close() { _ = c.conn.Close() } // nothing is in flight

// drain stops the pool. It returns its result when no process is left.
func (c *poolClient) drain(ctx context.Context, deadline *durationpb.Duration) (*poolv1.DrainResult, error) {
	stream, err := c.client.Drain(ctx, &poolv1.DrainRequest{PoolId: poolID, Deadline: deadline})
	if err != nil {
		return nil, err
	}
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, errors.New("the drain ended without a result")
		}
		if err != nil {
			return nil, err
		}
		if result := message.GetResult(); result != nil {
			c.used = result.GetGaveUp()
			return result, nil
		}
	}
}

// drainNow stops a pool that a failed or interrupted run left, loading or ready. What it cannot stop the caller's audit
// finds.
func (c *poolClient) drainNow(ctx context.Context) {
	if !c.used {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainNowTimeout)
	defer cancel()
	_, _ = c.drain(ctx, durationpb.New(0)) // see above
}

// dial connects to a daemon that is starting. It ends early if the daemon does.
func dial(ctx context.Context, target string, d *daemon) (*grpc.ClientConn, error) {
	conn, err := client.Dial(target, client.WithUserAgent("roundhouse-demo"))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", d.name, err)
	}
	err = d.whileAlive(ctx, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		return client.WaitReady(ctx, conn)
	})
	if err == nil {
		return conn, nil
	}
	_ = conn.Close() // never used
	if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		return nil, reason.New(reason.ProvisionerUnavailable, fmt.Sprintf("%s does not answer at %s", d.name, target),
			reason.Remedy("see its last words"))
	}
	return nil, err
}
