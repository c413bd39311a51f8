// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"os"
	"strings"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/build"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/xllamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/preflight"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/prepare"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/source"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// parts are what the service is made of.
type parts struct {
	preparer *prepare.Service
	checker  preflight.Checker
}

func newParts(config Config, kept *store.Store, log *zap.Logger) (parts, error) {
	catalog, err := engines.NewCatalog(llamacpp.Kind{}, xllamacpp.Kind{})
	if err != nil {
		return parts{}, err
	}
	tools, err := toolchain.New(toolchain.Config{Path: config.ToolPath})
	if err != nil {
		return parts{}, err
	}
	fetcher, err := fetch.New(fetch.Config{
		Store: kept, PyPIIndexURL: config.Registries.PyPI, NPMRegistryURL: config.Registries.NPM, FileRoots: config.Roots, Log: log,
	})
	if err != nil {
		return parts{}, err
	}
	network := networkEnv(os.Environ())
	sources, err := source.New(source.Config{Tools: tools, Env: network})
	if err != nil {
		return parts{}, err
	}
	builder, err := build.New(build.Config{Tools: tools})
	if err != nil {
		return parts{}, err
	}
	host, err := toolchain.ReadHost()
	if err != nil {
		return parts{}, fmt.Errorf("look at the machine: %w", err)
	}
	preparer, err := prepare.New(prepare.Config{
		Catalog: catalog, Store: kept, Fetcher: fetcher, Sources: sources, Builder: builder, Tools: tools,
		Roots: config.Roots, Host: host, Grace: config.CancelGrace, Log: log,
	})
	if err != nil {
		return parts{}, err
	}
	return parts{
		preparer: preparer,
		checker:  preflight.Checker{Tools: tools, Catalog: catalog, StoreRoot: kept.Root(), Roots: config.Roots},
	}, nil
}

// networkEnv returns the variables that say how the network is reached.
func networkEnv(environ []string) []string {
	var kept []string
	for _, variable := range environ {
		name, _, _ := strings.Cut(variable, "=")
		switch strings.ToUpper(name) {
		case "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH":
			kept = append(kept, variable)
		}
	}
	return kept
}
