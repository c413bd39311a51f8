// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// ModelFile is one file of a model: a blob under the name that engines expect.
type ModelFile struct {
	// Name is the original file name, without folders.
	Name string `json:"name"`
	// Role tells what the file is for; the store gives it no meaning.
	Role   string `json:"role,omitempty"`
	Digest Digest `json:"digest"`
}

// ModelManifest is what PublishModel is to publish. The blobs of Files must be in the store.
type ModelManifest struct {
	// ID must be derived from Files: the same ID with other files is refused.
	ID    string
	Files []ModelFile
}

// StagedFile is a file of a published model.
type StagedFile struct {
	ModelFile

	// Path is absolute, a symbolic link to the blob; all files of a model lie in one directory.
	Path string
	// Size is in bytes.
	Size int64
}

// Model is one published model.
type Model struct {
	ID string
	// Dir is absolute and has the files under their original names.
	Dir   string
	Files []StagedFile
}

type modelRecord struct {
	ID    string      `json:"id"`
	Files []ModelFile `json:"files"`
}

// Model looks up a published model and checks that every file of it is the blob that it was. It wraps ErrAbsent when
// there is none, and when a blob of it is absent.
func (s *Store) Model(id string) (Model, error) {
	if err := checkKey("model id", id); err != nil {
		return Model{}, err
	}
	var record modelRecord
	dir := s.path("models", id)
	model := Model{ID: id, Dir: filepath.Join(dir, filesName)}
	err := s.loadTree(dir, func(manifest json.RawMessage) (bool, error) {
		if readable := json.Unmarshal(manifest, &record) == nil; !readable || record.ID != id {
			return false, nil
		}
		for _, file := range record.Files {
			path := filepath.Join(model.Dir, file.Name)
			blob, err := s.Blob(file.Digest)
			if err != nil {
				return false, err
			}
			target, err := s.fs.Readlink(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EINVAL) { // no link
				return false, err
			}
			if target != s.linkTo(blob) {
				return false, nil
			}
			model.Files = append(model.Files, StagedFile{ModelFile: file, Path: path, Size: blob.Size})
		}
		return true, nil
	})
	if err != nil {
		return Model{}, fmt.Errorf("look up model %s: %w", id, err)
	}
	return model, nil
}

// linkTo is where a file of a model leads: it stays right when the store is moved. A hard link would be a change of the
// blob, whose stamp tells changes.
func (s *Store) linkTo(blob Blob) string {
	return filepath.Join("..", "..", "..", strings.TrimPrefix(blob.Path, s.root+string(filepath.Separator)))
}

// PublishModel gives the blobs of a model their names in one directory, which appears at once, and returns it. A model
// that is there already is returned as it is. A blob that the store lacks is an error that wraps ErrAbsent.
func (s *Store) PublishModel(ctx context.Context, manifest ModelManifest) (Model, error) {
	if err := checkManifest(manifest); err != nil {
		return Model{}, err
	}
	release, err := s.lock(ctx, "model "+manifest.ID)
	if err != nil {
		return Model{}, err
	}
	defer release()
	model, err := s.Model(manifest.ID)
	if err == nil && !slices.EqualFunc(model.Files, manifest.Files, func(have StagedFile, want ModelFile) bool { return have.ModelFile == want }) {
		return Model{}, reason.New(reason.Internal, fmt.Sprintf("model %s is in the store with other files", manifest.ID), reason.Remedy("report it: it is a defect of Roundhouse"))
	}
	if err == nil || !errors.Is(err, ErrAbsent) {
		return model, err
	}
	if err := s.stageModel(manifest); err != nil {
		return Model{}, diskError("publish model "+manifest.ID, s.path("models", manifest.ID), 0, err)
	}
	return s.Model(manifest.ID)
}

func (s *Store) stageModel(manifest ModelManifest) error {
	staged := s.temp()
	defer func() { _ = s.removeTree(staged) }()
	files := filepath.Join(staged, filesName)
	for _, dir := range []string{staged, files} {
		if err := s.fs.MkdirAll(dir, dirMode); err != nil {
			return err
		}
	}
	record := modelRecord{ID: manifest.ID}
	for _, file := range manifest.Files {
		blob, err := s.Blob(file.Digest)
		if err != nil {
			return err
		}
		if err := s.fs.Symlink(s.linkTo(blob), filepath.Join(files, file.Name)); err != nil {
			return err
		}
		record.Files = append(record.Files, file)
	}
	if err := s.fs.SyncDir(files); err != nil {
		return err
	}
	payload, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return s.publishTree(staged, s.path("models", manifest.ID), payload)
}

func checkManifest(manifest ModelManifest) error {
	if err := checkKey("model id", manifest.ID); err != nil {
		return err
	}
	if len(manifest.Files) == 0 {
		return reason.New(reason.InvalidParams, "model "+manifest.ID+" has no files", reason.Remedy("name a file"))
	}
	names := map[string]bool{}
	for _, file := range manifest.Files {
		if file.Name != filepath.Base(file.Name) || !filepath.IsLocal(file.Name) || file.Name == "." || names[file.Name] {
			return reason.New(reason.InvalidParams, fmt.Sprintf("model %s: %.140q is not a unique plain file name", manifest.ID, file.Name),
				reason.Remedy("name files that have names of their own, without folders"))
		}
		names[file.Name] = true
	}
	return nil
}
