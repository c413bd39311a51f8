// SPDX-License-Identifier: Apache-2.0

// Command roundhouse is how a person uses Roundhouse: see `roundhouse help`.
package main

import (
	"context"
	"os"

	"github.com/roundhouse-llm/roundhouse/cmd/roundhouse/internal/command"
)

var version = "unknown" // set by the linker

func main() { os.Exit(command.Main(context.Background(), os.Args[1:], command.System(version))) }
