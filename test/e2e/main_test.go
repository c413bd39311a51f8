// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"os"
	"testing"

	"github.com/roundhouse-llm/roundhouse/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
