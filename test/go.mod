module github.com/roundhouse-llm/roundhouse/test

go 1.26.0

require (
	github.com/google/go-cmp v0.7.0
	github.com/roundhouse-llm/roundhouse/pkg v0.0.0
	github.com/roundhouse-llm/roundhouse/proto v0.0.0
	golang.org/x/sys v0.49.0
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261104224025-d1e00e9f33ab
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

require (
	buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go v1.36.12-20260825204119-511051f7f437.1 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	go.uber.org/multierr v1.10.0 // indirect
	go.uber.org/zap v1.28.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/text v0.42.0 // indirect
)

replace github.com/roundhouse-llm/roundhouse/proto => ../proto

replace github.com/roundhouse-llm/roundhouse/pkg => ../pkg
