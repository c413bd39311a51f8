// SPDX-License-Identifier: Apache-2.0

// Package provision asks the provisioner for prepared engines.
//
// A Client has one connection, which comes and goes with the provisioner: a call while it is down fails with
// PROVISIONER_UNAVAILABLE, the first one after it is up again succeeds. Nothing is repeated here and nothing is kept. A Client may be used by
// many goroutines at once.
package provision

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// connectLimit is how long a call waits for the connection when it is down: making one on the same machine takes a
// millisecond or is refused at once.
const connectLimit = 250 * time.Millisecond

const (
	// withdrawLimit outlasts what a compiler may take to end before it is killed.
	withdrawLimit = 15 * time.Second
	// withdrawPause is longer than a call takes to reach the provisioner on the same machine.
	withdrawPause = 10 * time.Millisecond
)

// Client asks one provisioner. Make one with New, and Close it.
type Client struct {
	target string
	conn   *grpc.ClientConn
	rpc    provisionerv1.ProvisionerServiceClient
}

// New returns a Client of the provisioner at target, as in `unix:///path`. It does not wait for it to be there.
func New(target string) (*Client, error) {
	conn, err := client.Dial(target, client.WithUserAgent("pool-managerd"))
	if err != nil {
		return nil, fmt.Errorf("dial the provisioner: %w", err)
	}
	return &Client{target: target, conn: conn, rpc: provisionerv1.NewProvisionerServiceClient(conn)}, nil
}

// Prepare prepares what spec says for the pool, and reports the work on the way. It returns when that is done, has
// failed with the provisioner's own reason, or ctx has ended. Then the request is withdrawn first: nothing that the
// provisioner did for it alone, such as a compiler, runs any more when Prepare returns, unless the provisioner takes more
// than 15 s to end it or cannot be reached. What others ask for goes on, an equal spec for another pool included.
func (c *Client) Prepare(ctx context.Context, spec *enginev1.PrepareSpec, pool registry.PoolID, report func(*enginev1.Progress)) (*enginev1.PreparedEngine, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c.connect(ctx)
	request := &provisionerv1.PrepareRequest{Spec: spec, Consumer: &enginev1.Consumer{PoolId: string(pool), RequestId: uuid.NewString()}}
	calling, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	defer hangUp()
	withdrawn, ended := make(chan struct{}), make(chan struct{})
	keep := context.AfterFunc(ctx, func() {
		defer close(withdrawn)
		c.withdraw(calling, request, ended)
		hangUp()
	})
	prepared, err := c.receive(calling, request, report)
	close(ended)
	if !keep() {
		<-withdrawn
	}
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	return prepared, nil
}

// receive makes the call and returns its result.
func (c *Client) receive(ctx context.Context, request *provisionerv1.PrepareRequest, report func(*enginev1.Progress)) (*enginev1.PreparedEngine, error) {
	stream, err := c.rpc.Prepare(ctx, request)
	if err != nil {
		return nil, err
	}
	for {
		response, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, reason.New(reason.Internal, "the provisioner ended without a result",
				reason.Remedy("look at the provisioner's log, and report it"))
		case err != nil:
			return nil, err
		}
		if prepared := response.GetPrepared(); prepared != nil {
			return prepared, nil
		}
		if progress := response.GetProgress(); progress != nil { // A later provisioner may know other events.
			report(progress)
		}
	}
}

// withdraw cancels the call of request and waits until nothing of it runs. A call that the provisioner has not heard of yet
// is asked for again until it has, or has ended. An error cannot be mended here: hanging up cancels too, only later.
func (c *Client) withdraw(ctx context.Context, request *provisionerv1.PrepareRequest, ended <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, withdrawLimit)
	defer cancel()
	for {
		response, err := c.rpc.CancelPrepare(ctx, &provisionerv1.CancelPrepareRequest{Spec: request.GetSpec(), Consumer: request.GetConsumer()})
		if err != nil || response.GetCancelled() {
			return
		}
		again := time.NewTimer(withdrawPause)
		select {
		case <-ended:
			again.Stop()
			return
		case <-again.C:
		}
	}
}

// Prepared returns what was prepared before.
func (c *Client) Prepared(ctx context.Context, preparedID string) (*enginev1.PreparedEngine, error) {
	c.connect(ctx)
	response, err := c.rpc.GetPrepared(ctx, &provisionerv1.GetPreparedRequest{PreparedId: preparedID})
	if err != nil {
		return nil, c.explain(ctx, err)
	}
	if response.GetPrepared() == nil {
		return nil, reason.New(reason.Internal, "the provisioner answered without a prepared engine", reason.Meta("prepared_id", preparedID),
			reason.Remedy("look at the provisioner's log, and report it"))
	}
	return response.GetPrepared(), nil
}

// connect tries to have a connection now, however long earlier attempts have failed: the provisioner may have come up a
// moment ago. Whether it worked, the call that follows tells.
func (c *Client) connect(ctx context.Context) {
	c.conn.ResetConnectBackoff()
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	_ = client.WaitReady(ctx, c.conn)
}

// Close gives up the connection. Calls under way fail.
func (c *Client) Close() error { return c.conn.Close() }

// explain makes an error of the connection, and the provisioner's going down, one of the provisioner being away: a caller
// would take SHUTTING_DOWN for our own. The provisioner's other errors stay, with the fields where our caller has them.
func (c *Client) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	lost := reason.Of(err) == reason.Unspecified && status.Code(err) == codes.Unavailable
	if !lost && reason.Of(err) != reason.ShuttingDown {
		return inPreload(err)
	}
	return reason.New(reason.ProvisionerUnavailable, fmt.Sprintf("the provisioner at %s cannot be reached", c.target),
		reason.Cause(err), reason.Meta("target", c.target),
		reason.Remedy("start engine-provisioner, or give its address with --provisioner"))
}
