# SPDX-License-Identifier: Apache-2.0

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory

ENGINE ?= quick
TESTFLAGS ?=
COMMANDS ?= 1000
SEED ?= 0
GOFLAGS ?=

# The version comes from git below, so a clone that git will not read builds too.
export GOFLAGS := -buildvcs=false $(GOFLAGS)
export GOWORK := $(CURDIR)/go.work

BIN := .bin
MODULES := $(shell sed -n 's|^[[:space:]]*\./||p' go.work)
TOOLS := buf protoc lint grpcurl
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

SEEDS ?= 10000
FROM ?= 1
LASTS ?= 2h

# The first run of the source engine's tests compiles llama.cpp, up to 15 minutes on two cores.
TEST_TIMEOUT := 40m

# $(call per_module,FOLDERS,COMMAND,REMEDY) runs COMMAND in each module without the workspace. All are tried; a failure
# names the modules and the remedy.
per_module = bad=; for m in $(1); do (export GOWORK=off; cd "$$m"; $(2)) || bad="$$bad $$m"; done; \
	if [[ -n $$bad ]]; then echo "$@: failed in:$$bad; $(3)" >&2; exit 1; fi

##@ Everyday

.PHONY: help
help: ## Show this text (default)
	@awk 'BEGIN { FS = ":.*## "; print "usage: make TARGET" } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z][a-z0-9-]*:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: build
build: need-go ## Build bin/engine-provisioner, bin/pool-managerd and bin/roundhouse
	@mkdir -p bin
	go build -ldflags '-X main.version=$(VERSION)' -o bin/ \
		./services/provisioner/cmd/engine-provisioner ./services/pool-manager/cmd/pool-managerd ./cmd/roundhouse

.PHONY: demo
demo: need-demo build ## Prepare, start, ask, drain a real engine (ENGINE=quick or source)
	@bin/roundhouse demo --engine $(ENGINE)

.PHONY: test
test: need-test build tool-grpcurl ## Run every test under the race detector, real engines included (TESTFLAGS=...)
	go test -race -shuffle=on -timeout $(TEST_TIMEOUT) $(TESTFLAGS) work

.PHONY: e2e
e2e: need-test build tool-grpcurl ## Run only the tests that span both services, real engines included
	go test -race -shuffle=on -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./test/...

.PHONY: chaos
chaos: need-test ## Give both services 1,000 random commands at once, and kill engines and managers meanwhile (SEED=... COMMANDS=...)
	go test -race -count=1 -v -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./test/e2e -run '^TestChaos$$' -chaos.commands $(COMMANDS) -chaos.seed $(SEED)

.PHONY: sim
sim: need-go ## Run the pool manager's own code in a simulated world, each seed a life of its own (SEEDS=..., FROM=...)
	go test -count=1 -v -timeout 0 ./services/pool-manager/internal/simulation -run '^TestSeeds$$' -seeds $(SEEDS) -from $(FROM)

.PHONY: sim-long
sim-long: need-go ## The same for a while (LASTS=2h)
	go test -count=1 -v -timeout 0 ./services/pool-manager/internal/simulation -run '^TestSeeds$$' -lasts $(LASTS) -from $(FROM)

.PHONY: sim-mutants
sim-mutants: need-go ## Take away one guard of the pool manager after another, and see that the simulation notices
	go test -C services/pool-manager -count=1 -v -timeout 0 ./internal/simulation -run '^TestMutants$$' -mutants 2000

.PHONY: bench
bench: need-test build ## Measure both services against an engine started by hand
	ROUNDHOUSE_TEST_PROGRAMS=$(CURDIR)/bin go test -run '^$$' -bench . -benchtime 20x -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./test/bench/...

.PHONY: clean
clean: ## Remove what build and tests made; the pinned tools in .bin stay
	rm -rf bin
	find $(MODULES) -name '*.test' -type f -delete

##@ Before a commit

.PHONY: lint
lint: need-go tool-lint ## Run the linters of .golangci.yml over every module
	@$(BIN)/golangci-lint run $(MODULES:%=./%/...) || { echo "lint: failed; make fix-lint repairs what it can" >&2; exit 1; }

.PHONY: generate
generate: need-go tool-buf tool-protoc ## Write proto/gen from the proto files
	$(BIN)/buf generate

.PHONY: fix
fix: fix-format fix-generate fix-tidy fix-lint ## Repair whatever verify and lint can repair

.PHONY: verify
verify: verify-format verify-proto verify-generate verify-tidy verify-gowork-off ## Check what must hold besides the tests

.PHONY: verify-format fix-format
verify-format: need-go ## Check that every Go file is gofmt's
	@files=$$(gofmt -l $(MODULES)); \
	if [[ -n $$files ]]; then echo "$@: not formatted, run make fix-format:" >&2; echo "$$files" >&2; exit 1; fi
fix-format: need-go ## Format every Go file
	gofmt -w $(MODULES)

.PHONY: verify-proto
verify-proto: need-git tool-buf ## Lint the proto files and refuse changes that break the last tag's clients
	@$(BIN)/buf lint || { echo "$@: buf lint failed; the rules are in buf.yaml" >&2; exit 1; }
	@tag=$$(git tag --list --sort=-creatordate 'v*' 'proto/v*' | head -n 1); \
	if [[ -z $$tag ]]; then echo "$@: no tag yet, so there is nothing to break"; exit 0; fi; \
	$(BIN)/buf breaking --against ".git#tag=$$tag" || { \
		echo "$@: the contract of $$tag is broken; add a field or a method instead of changing one" >&2; exit 1; }

.PHONY: verify-generate fix-generate
verify-generate: tool-buf tool-protoc ## Check that proto/gen is what the proto files give
	@out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; $(BIN)/buf generate -o "$$out"; \
	diff -r "$$out/proto/gen/go" proto/gen/go || { echo "$@: proto/gen is stale, run make fix-generate" >&2; exit 1; }
fix-generate: generate ## Same as generate

.PHONY: verify-tidy fix-tidy
verify-tidy: need-go ## Check that every go.mod and go.sum is tidy without the workspace
	@$(call per_module,$(MODULES) $(TOOLS:%=tools/%),go mod tidy -diff,run make fix-tidy)
fix-tidy: need-go ## Tidy every go.mod and go.sum, and bring the modules to one version of each dependency
	go work sync
	@$(call per_module,$(MODULES) $(TOOLS:%=tools/%),go mod tidy,read the messages above)

.PHONY: verify-gowork-off
verify-gowork-off: need-go ## Build and vet every module alone, as one who imports it does
	@$(call per_module,$(MODULES),go build -o /dev/null ./... && go vet ./...,make fix-tidy adds what a go.mod lacks)

.PHONY: fix-lint
fix-lint: need-go tool-lint ## Let the linters repair what they can
	$(BIN)/golangci-lint run --fix $(MODULES:%=./%/...)

##@ Tools

.PHONY: tools
tools: $(TOOLS:%=tool-%) ## Install every pinned tool into .bin; a second run does nothing

# A tool is built again when its pins or the Go version change.
.PHONY: $(TOOLS:%=tool-%)
$(TOOLS:%=tool-%): tool-%: need-go
	@want=$$({ go env GOVERSION; cat tools/$*/go.mod tools/$*/go.sum; } | sha256sum); \
	if [[ -f $(BIN)/.$*.stamp && $$(<$(BIN)/.$*.stamp) == "$$want" ]]; then exit 0; fi; \
	echo "installing tools/$* into $(BIN), minutes the first time" >&2; mkdir -p $(BIN); \
	GOWORK=off GOBIN=$(CURDIR)/$(BIN) go -C tools/$* install tool; echo "$$want" >$(BIN)/.$*.stamp

.PHONY: need-go need-git need-demo need-test
need-go:
	@tools/need go
need-git:
	@tools/need git
need-demo:
	@tools/need go $(if $(filter source,$(ENGINE)),git c++ cmake ninja,python3)
need-test:
	@tools/need go git cc c++ cmake ninja python3
