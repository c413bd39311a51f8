module github.com/roundhouse-llm/roundhouse/test

go 1.26.0

require github.com/google/go-cmp v0.7.0

replace github.com/roundhouse-llm/roundhouse/proto => ../proto

replace github.com/roundhouse-llm/roundhouse/pkg => ../pkg
