// SPDX-License-Identifier: Apache-2.0

package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/roundhouse-llm/roundhouse/pkg/client"
	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

// service is one of the two that commands talk to.
type service struct {
	name, program, flag, variable string
}

func provisionerService() service {
	return service{"provisioner", "engine-provisioner", "--provisioner", "ROUNDHOUSE_PROVISIONER"}
}

func poolManagerService() service {
	return service{"pool manager", "pool-managerd", "--pool-manager", "ROUNDHOUSE_POOL_MANAGER"}
}

// target is where a service is unless a flag says otherwise: where the environment says, else where the daemon listens
// when nothing is configured.
func (a *app) target(s service) string {
	if target := a.Getenv(s.variable); target != "" {
		return target
	}
	return "unix://" + filepath.Join(socketDir(os.Geteuid(), a.Getenv("XDG_RUNTIME_DIR")), s.program+".sock")
}

// socketDir is the folder of the daemons' default sockets.
func socketDir(uid int, runtimeDir string) string {
	switch {
	case uid == 0:
		return "/run/roundhouse"
	case filepath.IsAbs(runtimeDir):
		return filepath.Join(runtimeDir, "roundhouse")
	default:
		return "/tmp/roundhouse-" + strconv.Itoa(uid)
	}
}

// dial makes a connection that says who is calling. It is closed by whoever asked for it.
func (a *app) dial(s service, target string) (*grpc.ClientConn, error) {
	conn, err := client.Dial(target, client.WithUserAgent("roundhouse/"+a.Version))
	if err != nil {
		if e, ok := reason.As(err); ok {
			return nil, reason.New(e.Reason, e.Message, reason.Field(s.flag), reason.Remedy(e.Remedy))
		}
		return nil, err
	}
	return conn, nil
}

// withProvisioner runs body with a client of the provisioner.
func (a *app) withProvisioner(ctx context.Context, body func(provisionerv1.ProvisionerServiceClient) error) error {
	conn, err := a.dial(provisionerService(), a.provisionerTarget)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is in flight
	return reached(ctx, provisionerService(), a.provisionerTarget, body(provisionerv1.NewProvisionerServiceClient(conn)))
}

// withPools runs body with a client of the pool manager.
func (a *app) withPools(ctx context.Context, body func(poolv1.PoolManagerServiceClient) error) error {
	conn, err := a.dial(poolManagerService(), a.poolManagerTarget)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is in flight
	return reached(ctx, poolManagerService(), a.poolManagerTarget, body(poolv1.NewPoolManagerServiceClient(conn)))
}

// reached names the service and its address if the call did not come through.
func reached(ctx context.Context, s service, target string, err error) error {
	if err == nil || reason.Of(err) != reason.Unspecified || status.Code(err) != codes.Unavailable {
		return err
	}
	if errors.Is(err, fs.ErrPermission) || refuses(ctx, target, os.Geteuid()) {
		return &exitError{codeUnavailable, "PERMISSION_DENIED", reason.New(reason.ProvisionerUnavailable,
			fmt.Sprintf("permission denied: the %s at %s serves its owner and root only", s.name, target),
			reason.Remedy("run this as the user that runs "+s.program+", or as root"))}
	}
	return &exitError{codeUnavailable, "UNAVAILABLE", reason.New(reason.ProvisionerUnavailable,
		"cannot reach the "+s.name+" at "+target, reason.Cause(err),
		reason.Remedy("start "+s.program+", or give its address with "+s.flag+" or $"+s.variable))}
}

// knockTimeout is long for a socket on the same machine.
const knockTimeout = time.Second

// refuses tells whether a service is there and hangs up on the user uid, who is neither its owner nor root.
func refuses(ctx context.Context, target string, uid int) bool {
	address, err := wire.ParseAddress("target", target)
	if err != nil || address.Network != wire.Unix || uid == 0 {
		return false
	}
	dialer := net.Dialer{Timeout: knockTimeout}
	conn, err := dialer.DialContext(ctx, string(address.Network), address.Name)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }() // only asked whose it is
	owner, err := ownerOf(conn)
	return err == nil && owner != uid
}

// each hands every message of a stream to body, until the stream's end or an error of either.
func each[M any](stream grpc.ServerStreamingClient[M], body func(*M) error) error {
	for {
		message, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := body(message); err != nil {
			return err
		}
	}
}
