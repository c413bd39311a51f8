// SPDX-License-Identifier: Apache-2.0

// Command engine-provisioner prepares engines and models and serves roundhouse.provisioner.v1.ProvisionerService.
package main

import (
	"context"
	"os"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/daemon"
)

// version is set by the linker.
var version = "devel"

func main() {
	os.Exit(daemon.Main(context.Background(), version, os.Args[1:], os.Stdout, os.Stderr))
}
