// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/plan"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

const archiveRef = "npm:source@1.0.0/source.tar.gz"

// tarball is a source tree, compressed, with more entries behind it.
func tarball(t *testing.T, more ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	compressed := gzip.NewWriter(&b)
	w := tar.NewWriter(compressed)
	headers := append([]tar.Header{{Name: "x/CMakeLists.txt", Size: 10}, {Name: "x/src/main.c", Size: 10}}, more...)
	for _, header := range headers {
		header.Mode = 0o644
		if err := w.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if header.Size >= megabyte { // a bomb, whose content is the same few bytes again and again
			if err := compressed.Close(); err != nil {
				t.Fatal(err)
			}
			return append(b.Bytes(), bytes.Repeat(zeros(t), int(header.Size/megabyte))...)
		}
		if _, err := w.Write(make([]byte, header.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), compressed.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const megabyte = 1 << 20

// zeros is a megabyte of them, compressed.
func zeros(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	compressed := gzip.NewWriter(&b)
	_, err := compressed.Write(make([]byte, megabyte))
	if err := errors.Join(err, compressed.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func archiveSpec(t *testing.T, f *fixture, content []byte) *enginev1.PrepareSpec {
	t.Helper()
	f.fetcher.files[archiveRef] = f.write(t, "source.tar.gz", content)
	digest, _, err := hashFile(t.Context(), f.fetcher.files[archiveRef])
	if err != nil {
		t.Fatal(err)
	}
	spec := sourceSpec("v1")
	spec.GetEngine().GetSourceBuild().Origin = &enginev1.SourceBuild_Archive{Archive: &enginev1.SourceArchive{Uri: archiveRef, Sha256: digest.Hex()}}
	return spec
}

// left are the files and folders in the store's folders of that name.
func (f *fixture) left(t *testing.T, folders ...string) []string {
	t.Helper()
	var found []string
	for _, folder := range folders {
		root := filepath.Join(f.cfg.Store.Root(), folder)
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if path != root {
				found = append(found, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func TestARefusedArchiveLeavesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		content func(t *testing.T) []byte
		want    reason.Reason
	}{
		{name: "a name outside", content: func(t *testing.T) []byte { t.Helper(); return tarball(t, tar.Header{Name: "x/../../evil"}) }, want: reason.UntrustedArtifact},
		{name: "an absolute name", content: func(t *testing.T) []byte { t.Helper(); return tarball(t, tar.Header{Name: "/tmp/evil"}) }, want: reason.UntrustedArtifact},
		{name: "a link outside", content: func(t *testing.T) []byte {
			t.Helper()
			return tarball(t, tar.Header{Name: "x/l", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd"})
		}, want: reason.UntrustedArtifact},
		{name: "a bomb", content: func(t *testing.T) []byte { t.Helper(); return tarball(t, tar.Header{Name: "x/b", Size: 65 * megabyte}) }, want: reason.UntrustedArtifact},
		{name: "cut off", content: func(t *testing.T) []byte {
			t.Helper()
			whole := tarball(t)
			return whole[:len(whole)-20]
		}, want: reason.UntrustedArtifact},
		{name: "no archive", content: func(*testing.T) []byte { return []byte("no archive") }, want: reason.UntrustedArtifact},
		{name: "no source", content: func(t *testing.T) []byte { t.Helper(); return tarball(t, tar.Header{Name: "y/f"}) }, want: reason.InvalidParams},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			spec := archiveSpec(t, f, tt.content(t))
			_, events, err := f.do(t.Context(), spec)
			found, ok := reason.As(err)
			if !ok || found.Reason != tt.want || found.Remedy == "" || len(found.Fields) != 1 || found.Fields[0].Name != plan.FieldArchive {
				t.Fatalf("Prepare: %v, want %v of the field %s with a remedy", err, tt.want, plan.FieldArchive)
			}
			if step := ended(events)[plan.EngineExtract]; step.GetState() != enginev1.StepState_STEP_STATE_FAILED {
				t.Errorf("the step of the archive: %v, want failed", step)
			}
			digest := store.Digest("sha256:" + spec.GetEngine().GetSourceBuild().GetArchive().GetSha256())
			if _, err := f.cfg.Store.Blob(digest); !errors.Is(err, store.ErrAbsent) {
				t.Errorf("the archive in the store: %v, want it absent", err)
			}
			if left := f.left(t, "sources", "engines", "builds", "partial", "quarantine"); len(left) != 0 {
				t.Errorf("left in the store: %v", left)
			}
			if scratch := f.left(t, "tmp"); len(scratch) != 2 { // the folder of this process and its lock
				t.Errorf("left in the scratch folder: %v", scratch)
			}
			if _, _, err := f.do(t.Context(), archiveSpec(t, f, tarball(t))); err != nil {
				t.Errorf("with a good archive: %v", err)
			}
		})
	}
}

func TestARefusedPackageLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.fetcher.files[wheelRef] = f.write(t, "bad.whl", tarball(t, tar.Header{Name: "../evil"}))
	_, _, err := f.do(t.Context(), f.packageSpec(t))
	if found, ok := reason.As(err); !ok || found.Reason != reason.UntrustedArtifact || found.Remedy == "" || len(found.Fields) != 1 || found.Fields[0].Name != plan.FieldPackage {
		t.Fatalf("Prepare: %v, want UNTRUSTED_ARTIFACT of the field %s", err, plan.FieldPackage)
	}
	// The model may have arrived before, and has nothing to do with it.
	if left := f.left(t, "sources", "engines", "builds", "partial", "quarantine"); len(left) != 0 {
		t.Errorf("left in the store: %v", left)
	}
	if scratch := f.left(t, "tmp"); len(scratch) != 2 {
		t.Errorf("left in the scratch folder: %v", scratch)
	}
}

func TestARefusedModelLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, _, err := f.do(t.Context(), f.externalSpec(brokenRef))
	if reason.Of(err) != reason.InvalidParams {
		t.Fatalf("Prepare: %v, want INVALID_PARAMS", err)
	}
	digest, _, err := hashFile(t.Context(), f.fetcher.files[brokenRef])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.cfg.Store.Blob(digest); !errors.Is(err, store.ErrAbsent) {
		t.Errorf("the file in the store: %v, want it absent", err)
	}
	if left := f.left(t, "models", "partial", "quarantine"); len(left) != 0 {
		t.Errorf("left in the store: %v", left)
	}
}
