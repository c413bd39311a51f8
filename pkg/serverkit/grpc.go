// SPDX-License-Identifier: Apache-2.0

package serverkit

import (
	"slices"

	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors"
	"github.com/grpc-ecosystem/go-grpc-middleware/v2/interceptors/recovery"
	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/roundhouse-llm/roundhouse/pkg/wire"
)

// recorder keeps what is registered, to be inspected first and served later.
type recorder []recordedService

type recordedService struct {
	desc *grpc.ServiceDesc
	impl any
}

// RegisterService keeps a service.
func (r *recorder) RegisterService(desc *grpc.ServiceDesc, impl any) {
	*r = append(*r, recordedService{desc: desc, impl: impl})
}

// newGRPC puts a gRPC server together, with every service registered and healthy.
func (s *Server) newGRPC(life *lifetime) (*grpc.Server, *health.Server) {
	lines := requestLog{log: s.log}
	server := grpc.NewServer(
		grpc.Creds(s.creds),
		grpc.ChainUnaryInterceptor(life.unary, interceptors.UnaryServerInterceptor(lines), translateUnary, s.checks.unary,
			recovery.UnaryServerInterceptor(recoverWith(s.log))),
		grpc.ChainStreamInterceptor(life.stream, interceptors.StreamServerInterceptor(lines), translateStream, s.checks.stream,
			recovery.StreamServerInterceptor(recoverWith(s.log))),
		grpc.MaxRecvMsgSize(readRequestBytes),
		grpc.MaxSendMsgSize(wire.MaxResponseBytes),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPing, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: maxIdle, Time: pingIdle, Timeout: pingTimeout}),
	)
	healthy := health.NewServer()
	for _, service := range s.services {
		server.RegisterService(service.desc, service.impl)
		healthy.SetServingStatus(service.desc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	}
	healthv1.RegisterHealthServer(server, healthy)
	// channelz shows every connection of the process, so it is for those whom the kernel has identified.
	if !slices.ContainsFunc(s.listens, func(l Listen) bool { return l.Network != wire.Unix }) {
		channelz.RegisterChannelzServiceToServer(server)
	}
	reflection.Register(server)
	return server, healthy
}
