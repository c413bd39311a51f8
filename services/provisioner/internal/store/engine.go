// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Engine is one published engine: a read-only directory of files that were hashed before they became visible.
type Engine struct {
	Key string
	// Dir is absolute; the paths of Files are relative to it.
	Dir string
	// Digest is that of the list of files with their modes and digests, so two equal engines have one digest.
	Digest Digest
	Files  []TreeFile
	// Labels is what the maker told about the engine, such as its version and commit.
	Labels map[string]string
}

// engineManifest is the record of a published engine.
type engineManifest struct {
	Key    string            `json:"key"`
	Digest Digest            `json:"digest"`
	Labels map[string]string `json:"labels,omitempty"`
	Files  []TreeFile        `json:"files"`
}

// Fill makes the files of an engine in dir, an empty directory, and returns what is worth knowing about them.
type Fill func(ctx context.Context, dir string) (labels map[string]string, err error)

// Engine looks up a published engine and checks that no file of it was changed, by the stamps. It wraps ErrAbsent when
// there is none, and when it was changed.
func (s *Store) Engine(key string) (Engine, error) {
	if err := checkKey("engine key", key); err != nil {
		return Engine{}, err
	}
	var m engineManifest
	dir := s.path("engines", key)
	err := s.loadTree(dir, func(manifest json.RawMessage) (bool, error) {
		if readable := json.Unmarshal(manifest, &m) == nil; !readable || m.Key != key {
			return false, nil
		}
		for _, file := range m.Files {
			if same, err := s.unchanged(filepath.Join(dir, filesName, file.Path), file.Stamp); !same {
				return false, err
			}
		}
		return true, nil
	})
	if err != nil {
		return Engine{}, fmt.Errorf("look up engine %s: %w", key, err)
	}
	return Engine{Key: key, Dir: filepath.Join(dir, filesName), Digest: m.Digest, Files: m.Files, Labels: m.Labels}, nil
}

// PublishEngine returns the engine of key, and calls fill to make it only when it is absent, at most once at a time among
// all processes. An engine that Engine cannot vouch for is hashed first, and is good if it has what it had. What fill made
// is hashed, made read-only and durable, and appears at once; what was damaged goes to quarantine then. A file that is neither
// regular nor a link within the engine is UNTRUSTED_ARTIFACT. An error of fill is returned wrapped; nothing is left then.
func (s *Store) PublishEngine(ctx context.Context, key string, fill Fill) (Engine, error) {
	if err := checkKey("engine key", key); err != nil {
		return Engine{}, err
	}
	release, err := s.lock(ctx, "engine "+key)
	if err != nil {
		return Engine{}, err
	}
	defer release()
	if engine, err := s.Engine(key); err == nil || !errors.Is(err, ErrAbsent) {
		return engine, err
	}
	if err := s.recoverEngine(ctx, key); err == nil {
		return s.Engine(key)
	} else if !errors.Is(err, ErrAbsent) {
		return Engine{}, endError(ctx, "verify engine "+key, s.path("engines", key), 0, err)
	}
	staged := s.temp()
	defer func() { _ = s.removeTree(staged) }()
	files := filepath.Join(staged, filesName)
	for _, dir := range []string{staged, files} { // the modes are those of the published engine
		if err := s.fs.MkdirAll(dir, dirMode); err != nil {
			return Engine{}, diskError("stage engine "+key, dir, 0, err)
		}
	}
	labels, err := fill(ctx, files)
	if err != nil {
		return Engine{}, fmt.Errorf("make engine %s: %w", key, err)
	}
	if err := s.sealEngine(ctx, key, staged, labels); err != nil {
		return Engine{}, endError(ctx, "publish engine "+key, s.path("engines", key), 0, err)
	}
	return s.Engine(key)
}

// recoverEngine hashes an engine whose stamps are not those of its manifest. If it has what it had all the same, as after a
// copy of the store, its manifest gets the new stamps; if not, the error wraps ErrAbsent.
func (s *Store) recoverEngine(ctx context.Context, key string) error {
	dir := s.path("engines", key)
	manifest, err := s.readRecord(filepath.Join(dir, manifestName))
	if errors.Is(err, errTorn) {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	if err != nil {
		return err
	}
	var m engineManifest
	if err := json.Unmarshal(manifest, &m); err != nil || m.Key != key {
		return fmt.Errorf("the manifest is of another engine: %w", ErrAbsent)
	}
	m.Files, err = s.sealTree(ctx, filepath.Join(dir, filesName))
	if _, refused := reason.As(err); refused || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	if err != nil {
		return err
	}
	if treeDigest(m.Files) != m.Digest {
		return fmt.Errorf("it has other content: %w", ErrAbsent)
	}
	if manifest, err = json.Marshal(m); err != nil {
		return err
	}
	return s.writeRecord(filepath.Join(dir, manifestName), manifest)
}

func (s *Store) sealEngine(ctx context.Context, key, staged string, labels map[string]string) error {
	files, err := s.sealTree(ctx, filepath.Join(staged, filesName))
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(engineManifest{Key: key, Digest: treeDigest(files), Labels: labels, Files: files})
	if err != nil {
		return err
	}
	return s.publishTree(staged, s.path("engines", key), manifest)
}

func (s *Store) sealTree(ctx context.Context, dir string) ([]TreeFile, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	return sealer{store: s, root: root}.seal(ctx, dir, "")
}

// treeDigest covers what a tree is, and not when it was made.
func treeDigest(files []TreeFile) Digest {
	h := sha256.New()
	for _, file := range files {
		_, _ = fmt.Fprintf(h, "%q %o %d %s %q\n", file.Path, file.Mode, file.SizeBytes, file.Digest, file.Link)
	}
	return digestOf(h)
}
