// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/engines"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/toolchain"
)

// facts answers plan.Planner from the store and from what was learnt of the machine's tools.
type facts struct {
	catalog *engines.Catalog
	store   *store.Store
	fetcher Fetcher
	tools   Tools

	mu    sync.Mutex
	known map[toolchain.Name]string
	// probes holds the probes that were read last: an engine has hundreds of flags, and each plan looks for them. Their keys
	// hold the engine's digest, so what they said once stays true.
	probes map[string]engines.Probe
}

// maxProbes is more engines than are used on one machine at a time.
const maxProbes = 32

func newFacts(cfg Config) *facts {
	return &facts{catalog: cfg.Catalog, store: cfg.Store, fetcher: cfg.Fetcher, tools: cfg.Tools, known: make(map[toolchain.Name]string), probes: make(map[string]engines.Probe)}
}

// Fetched implements plan.Facts.
func (f *facts) Fetched(request fetch.Request) (store.Digest, int64, bool) {
	result, ok := f.fetcher.Cached(request)
	return result.Blob.Digest, result.Blob.Size, ok
}

// Engine implements plan.Facts.
func (f *facts) Engine(key string) bool {
	_, err := f.store.Engine(key)
	return err == nil
}

// Resolved implements plan.Facts.
func (f *facts) Resolved(key string) (string, bool) {
	value, err := f.store.Resolution(key)
	return value, err == nil
}

// Probe implements plan.Facts.
func (f *facts) Probe(key string) (engines.Probe, bool) {
	f.mu.Lock()
	probe, ok := f.probes[key]
	f.mu.Unlock()
	if ok {
		return probe, true
	}
	if probe, ok = recall[engines.Probe](f.store, key); ok {
		f.keepProbe(key, probe)
	}
	return probe, ok
}

func (f *facts) keepProbe(key string, probe engines.Probe) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.probes) >= maxProbes {
		clear(f.probes)
	}
	f.probes[key] = probe
}

// Tool implements plan.Facts.
func (f *facts) Tool(name toolchain.Name) (string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	identity, ok := f.known[name]
	return identity, ok
}

// File implements plan.Facts.
func (f *facts) File(path string) (store.Digest, bool) {
	info, err := os.Stat(path)
	if err != nil {
		return "", false
	}
	value, err := f.store.Resolution(stampKey(path, info))
	return store.Digest(value), err == nil
}

// learn looks for the tools that plans depend on. A missing one is no error.
func (f *facts) learn(ctx context.Context) error {
	if _, err := f.compilers(ctx); err != nil && reason.Of(err) != reason.ToolMissing {
		return err
	}
	for _, kind := range f.catalog.Kinds() {
		if name := kind.Traits().Interpreter; name != "" {
			if _, _, err := f.interpreter(ctx, name); err != nil && reason.Of(err) != reason.ToolMissing {
				return err
			}
		}
	}
	return nil
}

// compilers returns what tells the toolchain from others.
func (f *facts) compilers(ctx context.Context) (string, error) {
	identity, err := f.tools.Identity(ctx)
	if err != nil {
		return "", fmt.Errorf("identify the compilers: %w", err)
	}
	f.keep(toolchain.CXX, identity)
	return identity, nil
}

// interpreter returns the path of an interpreter and what tells it from others.
func (f *facts) interpreter(ctx context.Context, name toolchain.Name) (path, identity string, err error) {
	tools, err := f.tools.Require(ctx, name)
	if err != nil {
		return "", "", fmt.Errorf("find %s: %w", name, err)
	}
	digest, err := f.digest(ctx, tools[0].Path)
	if err != nil {
		return "", "", err
	}
	identity = tools[0].Path + " " + string(digest)
	f.keep(name, identity)
	return tools[0].Path, identity, nil
}

func (f *facts) keep(name toolchain.Name, identity string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[name] = identity
}

// digest returns the digest of a file outside the store, and hashes it only if it changed since it was hashed last.
func (f *facts) digest(ctx context.Context, path string) (store.Digest, error) {
	if digest, ok := f.File(path); ok {
		return digest, nil
	}
	digest, info, err := hashFile(ctx, path)
	if err != nil {
		return "", fmt.Errorf("hash %s: %w", path, err)
	}
	return digest, f.store.PutResolution(stampKey(path, info), string(digest))
}

func hashFile(ctx context.Context, path string) (store.Digest, fs.FileInfo, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe without a writer must not block
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return "", nil, err
	}
	if !info.Mode().IsRegular() {
		return "", nil, errNotRegular
	}
	hash, chunk := sha256.New(), make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := file.Read(chunk)
		_, _ = hash.Write(chunk[:n])
		if errors.Is(err, io.EOF) {
			return store.Digest("sha256:" + hex.EncodeToString(hash.Sum(nil))), info, nil
		}
		if err != nil {
			return "", nil, err
		}
	}
	return "", nil, context.Cause(ctx)
}

var errNotRegular = errors.New("not a regular file")

// stampKey names one content of one file: it changes when the file does, also when its times were set back.
func stampKey(path string, info fs.FileInfo) string {
	return "digest " + path + " " + store.StampOf(info).String()
}

// remember keeps value under key as JSON, if it is not there already.
func remember[T any](s *store.Store, key string, value T) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("keep %s: %w", key, err)
	}
	if old, err := s.Resolution(key); err == nil && old == string(data) {
		return nil
	}
	return s.PutResolution(key, string(data))
}

// recall returns what remember kept under key; false means that it must be found out again.
func recall[T any](s *store.Store, key string) (T, bool) {
	var value T
	text, err := s.Resolution(key)
	if err == nil {
		err = json.Unmarshal([]byte(text), &value)
	}
	return value, err == nil
}
