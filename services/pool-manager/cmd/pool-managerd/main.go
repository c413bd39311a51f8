// SPDX-License-Identifier: Apache-2.0

// Command pool-managerd owns the engine processes of one node and serves roundhouse.pool.v1.PoolManagerService.
package main

import (
	"context"
	"os"

	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/daemon"
)

// version is set by the linker.
var version = "devel"

func main() {
	os.Exit(daemon.Main(context.Background(), version, os.Args[1:], os.Stdout, os.Stderr))
}
