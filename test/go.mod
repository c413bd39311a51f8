module github.com/roundhouse-llm/roundhouse/test

go 1.26.0

require (
	github.com/roundhouse-llm/roundhouse/pkg v0.0.0
	github.com/roundhouse-llm/roundhouse/proto v0.0.0
)

require (
	github.com/google/go-cmp v0.7.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.48.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20261104224025-d1e00e9f33ab // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/roundhouse-llm/roundhouse/proto => ../proto

replace github.com/roundhouse-llm/roundhouse/pkg => ../pkg
