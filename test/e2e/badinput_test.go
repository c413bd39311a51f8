// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// badSpec is a request that must be refused, made from one that is good.
type badSpec struct {
	name   string
	change func(t *testing.T, b *bench, spec *poolv1.PoolSpec)
	want   harness.Want
}

// bench is what bad specs are made with.
type bench struct {
	node  *harness.Node
	files *harness.Files
	// outside is a folder beside the allowed one.
	outside string
}

// Requests that are wrong: each is refused with its reason, field and remedy, and leaves nothing.
func TestBadInput(t *testing.T) {
	t.Parallel()
	files := harness.ServeFiles(t)
	node := harness.Start(t, harness.Config{ProvisionerConfig: files.Index()})
	b := &bench{node: node, files: files, outside: node.Path("outside")}
	if err := os.Mkdir(b.outside, 0o755); err != nil {
		t.Fatal(err)
	}
	node.MustPrepare(t, node.FakeEngine(t)) // What is good is in the store before: what is bad must not join it.
	before := node.StoreFiles()
	for _, tt := range slices.Concat(badPools(), badEngines(), badModels(), badFlags(), badArchives()) {
		t.Run(tt.name, func(t *testing.T) { //nolint:paralleltest // what is left on the node is looked at
			spec := node.FakePool(t, "refused")
			tt.change(t, b, spec)
			tt.want.Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}).Err)
			if direct, ok := strings.CutPrefix(tt.want.Field, "spec.prepare."); ok { // the provisioner's own request has no pool around it
				want := tt.want
				want.Field = "spec." + direct
				want.Check(t, node.Prepare(t.Context(), spec.GetPrepare(), nil).Err)
			}
			node.AssertNothingRuns(t)
			if ids := node.PoolIDs(t); len(ids) != 0 {
				t.Errorf("pools = %v, want none", ids)
			}
			if diff := cmp.Diff(before, node.StoreFiles()); diff != "" {
				t.Errorf("files in the store (-before +after):\n%s", diff)
			}
			for _, path := range []string{"/tmp/escaped-roundhouse-test", node.Path("escaped"), filepath.Join(node.Store, "escaped")} {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("an archive has written %s", path)
				}
			}
		})
	}
}

func invalid(field string) harness.Want {
	return harness.Want{Code: codes.InvalidArgument, Reason: reason.InvalidParams, Field: field}
}

func untrusted(field string) harness.Want {
	return harness.Want{Code: codes.PermissionDenied, Reason: reason.UntrustedArtifact, Field: field}
}

func mismatch(field string) harness.Want {
	return harness.Want{
		Code: codes.DataLoss, Reason: reason.DigestMismatch, Field: field, Metadata: map[string]string{"want": strings.Repeat("1", 64)},
	}
}

func badPools() []badSpec {
	setID := func(id string) func(*testing.T, *bench, *poolv1.PoolSpec) {
		return func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) { spec.PoolId = id }
	}
	return []badSpec{
		{"pool id with slashes", setID("../../etc/passwd"), invalid("spec.pool_id")},
		{"pool id of 300 characters", setID(strings.Repeat("a", 300)), invalid("spec.pool_id")},
		{"no pool id", setID(""), invalid("spec.pool_id")},
		{"no workload", func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) { spec.Workload = nil }, invalid("spec.workload")},
		{"port out of range", func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) { spec.Port = 70000 }, invalid("spec.port")},
		{"two replicas at one port", func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) { spec.Port, spec.Replicas = 4000, 2 }, invalid("spec.port")},
	}
}

func badEngines() []badSpec {
	external := func(path func(*testing.T, *bench) string) func(*testing.T, *bench, *poolv1.PoolSpec) {
		return func(t *testing.T, b *bench, spec *poolv1.PoolSpec) {
			t.Helper()
			spec.GetPrepare().GetEngine().GetExternal().Path = path(t, b)
		}
	}
	packaged := func(project, digest string) func(*testing.T, *bench, *poolv1.PoolSpec) {
		return func(t *testing.T, b *bench, spec *poolv1.PoolSpec) {
			t.Helper()
			b.files.AddWheel(project, "1.0.0", strings.Repeat("1", 64), harness.Zip(t, map[string][]byte{"bin/llama-server": []byte("no")}))
			spec.GetPrepare().Engine = wheelEngine(project, digest)
		}
	}
	return []badSpec{
		{"unknown engine kind", func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) {
			spec.GetPrepare().GetEngine().Kind = "frobnicator"
		},
			harness.Want{Code: codes.NotFound, Reason: reason.EngineNotFound, Field: "spec.prepare.engine.kind"}},
		{"a kind that is not got this way", func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) { spec.GetPrepare().GetEngine().Kind = "xllamacpp" },
			invalid("spec.prepare.engine.source")},
		{"engine of another sha256", func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) {
			spec.GetPrepare().GetEngine().GetExternal().Sha256 = strings.Repeat("1", 64)
		}, mismatch("spec.prepare.engine.external.sha256")},
		{"no such engine", external(func(_ *testing.T, b *bench) string { return b.node.Root + "/none" }),
			harness.Want{Code: codes.NotFound, Reason: reason.EngineNotFound, Field: "spec.prepare.engine.external.path"}},
		{"engine outside the roots", external(func(*testing.T, *bench) string { return "/bin/true" }), untrusted("spec.prepare.engine.external.path")},
		{"engine outside the roots by way of ..", external(func(_ *testing.T, b *bench) string { return b.node.Root + "/../outside/x" }),
			untrusted("spec.prepare.engine.external.path")},
		{"engine outside the roots by way of a link", external(func(t *testing.T, b *bench) string {
			t.Helper()
			return link(t, "/bin/true", filepath.Join(b.node.Root, "true"))
		}), untrusted("spec.prepare.engine.external.path")},
		{"engine that is a folder", external(func(_ *testing.T, b *bench) string { return b.node.Root }), invalid("spec.prepare.engine.external.path")},
		{"engine that is no engine", external(func(t *testing.T, b *bench) string {
			t.Helper()
			path := b.node.WriteFile(t, "script", []byte("#!/bin/sh\necho hello\n"))
			if err := os.Chmod(path, 0o755); err != nil {
				t.Fatal(err)
			}
			return path
		}), harness.Want{Code: codes.NotFound, Reason: reason.EngineNotFound, Field: "spec.prepare.engine"}},
		{"package whose bytes are others", packaged("other-bytes", strings.Repeat("1", 64)), mismatch("spec.prepare.engine.package.sha256")},
		{"package without a file of this sha256", packaged("other-digest", strings.Repeat("2", 64)),
			harness.Want{Code: codes.DataLoss, Reason: reason.DigestMismatch, Field: "spec.prepare.engine.package.sha256"}},
		{"package that does not exist", func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) {
			spec.GetPrepare().Engine = wheelEngine("no-such-package", strings.Repeat("1", 64))
		}, harness.Want{Code: codes.NotFound, Reason: reason.EngineNotFound, Field: "spec.prepare.engine.package.uri"}},
	}
}

func wheelEngine(project, digest string) *enginev1.EngineSpec {
	return harness.PackagedEngine("llamacpp", "pypi:"+project+"==1.0.0", digest).GetEngine()
}

func link(t *testing.T, target, path string) string {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func badModels() []badSpec {
	model := func(uri func(*testing.T, *bench) string) func(*testing.T, *bench, *poolv1.PoolSpec) {
		return func(t *testing.T, b *bench, spec *poolv1.PoolSpec) {
			t.Helper()
			spec.GetPrepare().GetModel().Uri = uri(t, b)
		}
	}
	file := func(name string, data []byte) func(*testing.T, *bench, *poolv1.PoolSpec) {
		return model(func(t *testing.T, b *bench) string {
			t.Helper()
			return "file:" + b.node.WriteFile(t, name, data)
		})
	}
	missing := harness.Want{Code: codes.NotFound, Reason: reason.ModelNotFound, Field: "spec.prepare.model.uri"}
	whole := harness.TinyGGUF("cut")
	return []badSpec{
		{"no such model", model(func(_ *testing.T, b *bench) string { return "file:" + b.node.Root + "/none.gguf" }), missing},
		{"no such model at an address", func(_ *testing.T, b *bench, spec *poolv1.PoolSpec) {
			spec.GetPrepare().Model = &enginev1.ModelSpec{Uri: b.files.URL + "/files/none.gguf", Sha256: strings.Repeat("1", 64)}
		}, missing},
		{"model of another sha256", func(t *testing.T, b *bench, spec *poolv1.PoolSpec) {
			t.Helper()
			spec.GetPrepare().Model = &enginev1.ModelSpec{
				Uri: "file:" + b.node.WriteFile(t, "other.gguf", harness.TinyGGUF("other")), Sha256: strings.Repeat("1", 64),
			}
		}, mismatch("spec.prepare.model.sha256")},
		{"model of another sha256 at an address", func(_ *testing.T, b *bench, spec *poolv1.PoolSpec) {
			spec.GetPrepare().Model = &enginev1.ModelSpec{
				Uri: b.files.Add("other.gguf", harness.TinyGGUF("elsewhere")), Sha256: strings.Repeat("1", 64),
			}
		}, mismatch("spec.prepare.model.sha256")},
		{"model at an address without a sha256", model(func(_ *testing.T, b *bench) string { return b.files.URL + "/files/x.gguf" }),
			untrusted("spec.prepare.model.sha256")},
		{"model that is a folder", model(func(_ *testing.T, b *bench) string { return "file:" + b.node.Root }), invalid("spec.prepare.model.uri")},
		{"model that is no GGUF file", file("text.gguf", []byte(strings.Repeat("this is no model\n", 100))), invalid("spec.prepare.model.uri")},
		{"model without a byte", file("empty.gguf", nil), invalid("spec.prepare.model.uri")},
		{"model with a cut header", file("cut.gguf", whole[:60]), invalid("spec.prepare.model.uri")},
		{"model with cut weights", file("short.gguf", whole[:len(whole)-1]), invalid("spec.prepare.model.uri")},
		{"model outside the roots", model(func(*testing.T, *bench) string { return "file:/etc/passwd" }), untrusted("spec.prepare.model.uri")},
		{"model outside the roots by way of ..", model(func(_ *testing.T, b *bench) string { return "file:" + b.node.Root + "/../outside/m.gguf" }),
			untrusted("spec.prepare.model.uri")},
		{"model outside the roots by way of a link", model(func(t *testing.T, b *bench) string {
			t.Helper()
			return "file:" + link(t, "/etc/passwd", filepath.Join(b.node.Root, "linked.gguf"))
		}), untrusted("spec.prepare.model.uri")},
		{"model of an unknown scheme", model(func(*testing.T, *bench) string { return "gopher:hole" }), invalid("spec.prepare.model.uri")},
	}
}

func badFlags() []badSpec {
	var bad []badSpec
	for _, flags := range []string{
		"--frobnicate", "--port 1", "--port=1", "--host 0.0.0.0", "--model /x", "-m /x", "--reuse-port", "--parallel 3", "--alias x", "stray", "--threads",
	} {
		bad = append(bad, badSpec{"flag " + flags, func(_ *testing.T, _ *bench, spec *poolv1.PoolSpec) {
			spec.GetPrepare().GetLaunch().Flags = strings.Fields(flags)
		}, invalid("spec.prepare.launch.flags[0]")})
	}
	return bad
}

// badArchives are archives, with the digest that was asked for, that would write outside of where they are extracted.
func badArchives() []badSpec {
	var bad []badSpec
	for _, name := range []string{"../../escaped", "/tmp/escaped-roundhouse-test"} {
		bad = append(bad, badSpec{"wheel with " + name, func(t *testing.T, b *bench, spec *poolv1.PoolSpec) {
			t.Helper()
			data := harness.Zip(t, map[string][]byte{"bin/llama-server": []byte("x"), name: []byte("escaped")})
			project := "escape-" + harness.SHA256(data)[:8]
			b.files.AddWheel(project, "1.0.0", harness.SHA256(data), data)
			spec.GetPrepare().Engine = wheelEngine(project, harness.SHA256(data))
		}, untrusted("spec.prepare.engine.package.uri")})
		bad = append(bad, badSpec{"source archive with " + name, func(t *testing.T, b *bench, spec *poolv1.PoolSpec) {
			t.Helper()
			spec.GetPrepare().Engine = b.node.ProjectEngine(t, harness.Project{Hostile: []string{name}}).GetEngine()
		}, untrusted("spec.prepare.engine.source_build.archive.uri")})
	}
	return bad
}
