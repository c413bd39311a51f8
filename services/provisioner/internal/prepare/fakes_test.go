// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/build"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines/llamacpp"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/roots"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/runner"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/source"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// fakeFetcher has files by reference, and can be held up. What it fetched it finds again.
type fakeFetcher struct {
	store *store.Store
	files map[string]string // reference -> path

	mu      sync.Mutex
	fetched map[string]fetch.Result
	count   map[string]int
	hold    chan struct{} // closed to let fetches go on; nil lets them
	begun   chan struct{} // gets one for each fetch that has begun; nil does not
	err     error
}

func (f *fakeFetcher) Cached(request fetch.Request) (fetch.Result, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	result, ok := f.fetched[request.Ref.String()]
	if ok {
		if _, err := f.store.Blob(result.Blob.Digest); err != nil {
			return fetch.Result{}, false
		}
	}
	return result, ok
}

func (f *fakeFetcher) Fetch(ctx context.Context, request fetch.Request, progress func(done, total int64)) (fetch.Result, error) {
	f.mu.Lock()
	f.count[request.Ref.String()]++
	hold, begun, err := f.hold, f.begun, f.err
	f.mu.Unlock()
	progress(1, 10)
	if begun != nil {
		begun <- struct{}{}
	}
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return fetch.Result{}, context.Cause(ctx)
		}
	}
	if err != nil {
		return fetch.Result{}, err
	}
	path, ok := f.files[request.Ref.String()]
	if !ok {
		return fetch.Result{}, reason.New(request.Missing, "no such file", reason.Field(request.Field), reason.Remedy("name another"))
	}
	file, err := os.Open(path)
	if err != nil {
		return fetch.Result{}, err
	}
	defer func() { _ = file.Close() }()
	blob, err := f.store.Import(ctx, file, request.Want, nil)
	if err != nil {
		return fetch.Result{}, err
	}
	result := fetch.Result{Blob: blob, Name: request.Ref.Base()}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fetched[request.Ref.String()] = result
	return result, nil
}

// models returns how often the model of modelRef was fetched.
func (f *fakeFetcher) models() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.count[modelRef]
}

// fakeSources resolves every reference to a commit that can be changed.
type fakeSources struct {
	commit    string
	checkouts int
	err       error
}

func (f *fakeSources) ResolveCommit(context.Context, source.Origin) (string, error) {
	return f.commit, f.err
}

func (f *fakeSources) Checkout(_ context.Context, _ source.Origin, commit, dir string, observer source.Observer) (source.Checkout, error) {
	f.checkouts++
	observer.Progress(source.Progress{Phase: source.Receiving, Percent: 50})
	return source.Checkout{Dir: dir, Commit: commit}, os.MkdirAll(dir, 0o755)
}

// fakeBuilder writes a binary.
type fakeBuilder struct {
	builds int
	after  <-chan struct{} // the build ends after it got one; nil does not wait
	output string          // in place of what is asked for
	err    error
	last   build.Recipe
}

func (f *fakeBuilder) Build(_ context.Context, recipe build.Recipe, observer build.Observer) (build.Result, error) {
	f.builds++
	f.last = recipe
	observer.Line(runner.Stdout, "[1/2] compiling")
	observer.Progress(build.Progress{Phase: build.Compile, Percent: 50})
	if f.after != nil {
		<-f.after
	}
	if f.err != nil {
		return build.Result{}, f.err
	}
	path := filepath.Join(recipe.BuildDir, cmp.Or(f.output, "bin/llama-server"))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return build.Result{}, err
	}
	return build.Result{}, os.WriteFile(path, []byte("a built server"), 0o755)
}

// fakeTools has every tool but those that are missing.
type fakeTools struct {
	mu      sync.Mutex
	missing map[toolchain.Name]bool
}

func (f *fakeTools) lose(name toolchain.Name) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.missing = map[toolchain.Name]bool{name: true}
}

func (f *fakeTools) Require(_ context.Context, names ...toolchain.Name) ([]toolchain.Tool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var tools []toolchain.Tool
	for _, name := range names {
		if f.missing[name] {
			return nil, reason.New(reason.ToolMissing, string(name)+" is missing", reason.Remedy("install it"))
		}
		tools = append(tools, toolchain.Tool{Name: name, Path: "/usr/bin/" + string(name)})
	}
	return tools, nil
}

func (f *fakeTools) Identity(ctx context.Context) (string, error) {
	_, err := f.Require(ctx, toolchain.CXX)
	return "compilers", err
}

const (
	modelRef  = "npm:models@1.0.0/small.gguf"
	otherRef  = "npm:models@1.0.0/other.gguf"
	brokenRef = "npm:models@1.0.0/broken.gguf"
	wheelRef  = "pypi:server==1.0"
)

// fixture is a Service that runs, over fakes and a real store.
type fixture struct {
	*Service

	root     string
	fetcher  *fakeFetcher
	sources  *fakeSources
	builder  *fakeBuilder
	tools    *fakeTools
	probes   int // how often the engine was asked
	probeErr error
	stop     context.CancelFunc
}

func newFixture(t testing.TB, change ...func(*Config)) *fixture {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	kept, err := store.Open(store.Config{Root: filepath.Join(root, "store")})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{root: root, sources: &fakeSources{commit: strings.Repeat("a", 40)}, builder: &fakeBuilder{}, tools: &fakeTools{}}
	f.fetcher = &fakeFetcher{store: kept, fetched: map[string]fetch.Result{}, count: map[string]int{}, files: map[string]string{
		modelRef:  f.write(t, "small.gguf", gguf(2048)),
		otherRef:  f.write(t, "other.gguf", gguf(128)),
		brokenRef: f.write(t, "broken.gguf", []byte("not a model")),
		wheelRef:  f.write(t, "server.whl", wheel(t)),
	}}
	f.write(t, "llama-server", []byte("a server"))
	if err := os.Chmod(filepath.Join(root, "llama-server"), 0o755); err != nil {
		t.Fatal(err)
	}
	catalog, err := engines.NewCatalog(llamacpp.Kind{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Catalog: catalog, Store: kept, Fetcher: f.fetcher, Sources: f.sources, Builder: f.builder, Tools: f.tools,
		Run: f.run, Roots: roots.Roots{root}, Host: toolchain.Host{Arch: "amd64"}, Log: zap.NewNop(),
	}
	for _, c := range change {
		c(&cfg)
	}
	if f.Service, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	f.stop = stop
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := errors.Join(<-ended, kept.Close()); err != nil {
			t.Error(err)
		}
	})
	return f
}

// run is a llama-server that answers its probes.
func (f *fixture) run(_ context.Context, command runner.Command) (runner.Result, error) {
	f.probes++
	if f.probeErr != nil {
		return runner.Result{}, f.probeErr
	}
	text := "version: 1 (test)"
	if command.Args[len(command.Args)-1] == "--help" {
		help, err := os.ReadFile("../engines/llamacpp/testdata/help-v0.5.0.txt")
		if err != nil {
			return runner.Result{}, err
		}
		text = string(help)
	}
	for line := range strings.Lines(text) {
		command.Lines(runner.Stdout, strings.TrimSuffix(line, "\n"))
	}
	return runner.Result{}, nil
}

func (f *fixture) write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(f.root, name)
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func (f *fixture) externalSpec(model string, flags ...string) *enginev1.PrepareSpec {
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_External{External: &enginev1.ExternalBinary{
			Path: filepath.Join(f.root, "llama-server"),
		}}},
		Model:  &enginev1.ModelSpec{Uri: model},
		Launch: &enginev1.LaunchSpec{Flags: flags},
	}
}

func sourceSpec(ref string) *enginev1.PrepareSpec {
	return &enginev1.PrepareSpec{
		Engine: &enginev1.EngineSpec{Kind: "llamacpp", Source: &enginev1.EngineSpec_SourceBuild{SourceBuild: &enginev1.SourceBuild{
			Origin:      &enginev1.SourceBuild_Git{Git: &enginev1.GitRepository{Url: "https://git.example/x", Ref: ref}},
			Accelerator: enginev1.Accelerator_ACCELERATOR_CPU,
		}}},
		Model: &enginev1.ModelSpec{Uri: modelRef},
	}
}

// prepare runs Prepare to its end and returns what it said on the way.
func (f *fixture) do(ctx context.Context, spec *enginev1.PrepareSpec) (*enginev1.PreparedEngine, []*enginev1.Progress, error) {
	var events []*enginev1.Progress
	prepared, err := f.Prepare(ctx, spec, nil, func(event *enginev1.Progress) error {
		events = append(events, event)
		return nil
	})
	return prepared, events, err
}

// ended returns the last state of each step, by id.
func ended(events []*enginev1.Progress) map[string]*enginev1.Step {
	steps := map[string]*enginev1.Step{}
	for _, event := range events {
		if step := event.GetStep(); step != nil {
			steps[step.GetId()] = step
		}
	}
	return steps
}

// gguf is the smallest model: a header and one tensor of 32 numbers.
func gguf(context uint32) []byte {
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	text := func(s string) {
		put(uint64(len(s)))
		b.WriteString(s)
	}
	b.WriteString("GGUF")
	put(uint32(3))
	put(uint64(1)) // tensors
	put(uint64(2)) // metadata
	text("general.architecture")
	put(uint32(8)) // a string
	text("llama")
	text("llama.context_length")
	put(uint32(4)) // an unsigned number
	put(context)
	text("w")
	put(uint32(1))
	put(uint64(32))
	put(uint32(0)) // 32-bit numbers
	put(uint64(0))
	b.Write(make([]byte, (32-b.Len()%32)%32+32*4))
	return b.Bytes()
}

func wheel(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, content := range map[string]string{"server/bin/llama-server": "a packaged server", "server/bin/libx.so": "a library", "server/LICENSE": "MIT"} {
		file, err := w.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
