// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store/storetest"
)

// scenario is one thing a store is asked to do, for sweeps over every disk operation of it.
type scenario struct {
	name string
	// prepare makes what do needs, on a disk that does not fail.
	prepare func(t *testing.T, s *store.Store, dir string)
	do      func(s *store.Store, dir string) error
	// check fails when what do makes is there but not whole; there tells whether it is.
	check func(t *testing.T, s *store.Store) (there bool)
	// again is true if what a power cut takes back of it is done again, so that it need not be durable.
	again bool
}

func scenarios() []scenario {
	return []scenario{
		{name: "commit", do: commitContent, check: checkBlob},
		{name: "resume and commit", prepare: leavePartial, do: resumeContent, check: checkBlob},
		{name: "import", prepare: writeUserFile, do: importUserFile, check: checkBlob},
		{name: "recover blob", prepare: leaveTouchedBlob, do: recoverBlob, check: checkBlob, again: true},
		{name: "engine", do: publishEngine, check: checkEngine},
		{name: "recover engine", prepare: leaveTouchedEngine, do: publishEngine, check: checkEngine, again: true},
		{name: "model", prepare: leaveBlob, do: publishModel, check: checkModel},
		{name: "prepared record", do: func(s *store.Store, _ string) error { return s.PutPrepared("p1", []byte(`{"a":1}`)) }, check: checkPrepared},
		{name: "resolution", do: func(s *store.Store, _ string) error { return s.PutResolution("main", "abc") }, check: checkResolution},
	}
}

const content = "content of a blob"

func contentDigest() store.Digest { return digestOf(content) }

func commitContent(s *store.Store, _ string) error {
	ctx := context.Background()
	p, err := s.Partial(ctx, "key")
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	if err := p.Reset(); err != nil {
		return err
	}
	if err := p.SetNote([]byte(`"note"`)); err != nil {
		return err
	}
	if _, err := p.Write([]byte(content)); err != nil {
		return err
	}
	_, err = p.Commit(ctx, contentDigest())
	return err
}

func leaveBlob(t *testing.T, s *store.Store, dir string) {
	t.Helper()
	must(t, commitContent(s, dir))
}

func leaveTouchedBlob(t *testing.T, s *store.Store, dir string) {
	t.Helper()
	leaveBlob(t, s, dir)
	blob, err := s.Blob(contentDigest())
	must(t, err)
	must(t, os.Chtimes(blob.Path, time.Unix(1, 0), time.Unix(1, 0)))
}

func recoverBlob(s *store.Store, _ string) error {
	_, err := s.Recover(context.Background(), contentDigest(), nil)
	return err
}

func leaveTouchedEngine(t *testing.T, s *store.Store, dir string) {
	t.Helper()
	must(t, publishEngine(s, dir))
	engine, err := s.Engine("e1")
	must(t, err)
	must(t, os.Chtimes(filepath.Join(engine.Dir, "bin", "server"), time.Unix(1, 0), time.Unix(1, 0)))
}

func leavePartial(t *testing.T, s *store.Store, _ string) {
	t.Helper()
	p, err := s.Partial(t.Context(), "key")
	must(t, err)
	_, err = p.Write([]byte(content[:5]))
	must(t, err)
	must(t, p.Close())
}

func resumeContent(s *store.Store, _ string) error {
	ctx := context.Background()
	p, err := s.Partial(ctx, "key")
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	if _, err := p.Write([]byte(content[p.Offset():])); err != nil {
		return err
	}
	_, err = p.Commit(ctx, contentDigest())
	return err
}

func writeUserFile(t *testing.T, _ *store.Store, dir string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, "user.gguf"), []byte(content), 0o640))
}

func importUserFile(s *store.Store, dir string) error {
	file, err := os.Open(filepath.Join(dir, "user.gguf"))
	if err != nil {
		return err
	}
	_, err = s.Import(context.Background(), file, contentDigest(), nil)
	return errors.Join(err, file.Close())
}

func publishEngine(s *store.Store, _ string) error {
	_, err := s.PublishEngine(context.Background(), "e1", fillEngine)
	return err
}

func fillEngine(_ context.Context, dir string) (map[string]string, error) {
	return map[string]string{"version": "7"}, errors.Join(
		os.MkdirAll(filepath.Join(dir, "bin", "lib"), 0o755),
		os.WriteFile(filepath.Join(dir, "bin", "server"), []byte("engine"), 0o755),
		os.WriteFile(filepath.Join(dir, "bin", "lib", "lib.so.1"), []byte("library"), 0o644),
		os.Symlink("lib/lib.so.1", filepath.Join(dir, "bin", "lib.so")))
}

func publishModel(s *store.Store, _ string) error {
	_, err := s.PublishModel(context.Background(), store.ModelManifest{ID: "m1", Files: []store.ModelFile{
		{Name: "tiny.gguf", Role: "weights", Digest: contentDigest()}}})
	return err
}

func checkBlob(t *testing.T, s *store.Store) bool {
	t.Helper()
	blob, err := s.Blob(contentDigest())
	if errors.Is(err, store.ErrAbsent) {
		return false
	}
	must(t, err)
	wantFile(t, blob.Path, content)
	return true
}

func checkEngine(t *testing.T, s *store.Store) bool {
	t.Helper()
	engine, err := s.Engine("e1")
	if errors.Is(err, store.ErrAbsent) {
		return false
	}
	must(t, err)
	wantFile(t, filepath.Join(engine.Dir, "bin", "server"), "engine")
	wantFile(t, filepath.Join(engine.Dir, "bin", "lib.so"), "library")
	return true
}

func checkModel(t *testing.T, s *store.Store) bool {
	t.Helper()
	model, err := s.Model("m1")
	if errors.Is(err, store.ErrAbsent) {
		return false
	}
	must(t, err)
	wantFile(t, filepath.Join(model.Dir, "tiny.gguf"), content)
	return true
}

func checkPrepared(t *testing.T, s *store.Store) bool {
	t.Helper()
	data, err := s.Prepared("p1")
	if errors.Is(err, store.ErrAbsent) {
		return false
	}
	must(t, err)
	if string(data) != `{"a":1}` {
		t.Errorf("prepared record is %s", data)
	}
	return true
}

func checkResolution(t *testing.T, s *store.Store) bool {
	t.Helper()
	value, err := s.Resolution("main")
	if errors.Is(err, store.ErrAbsent) {
		return false
	}
	must(t, err)
	if value != "abc" {
		t.Errorf("resolution is %q", value)
	}
	return true
}

// visiblePath tells which names of a store are promises.
func visiblePath(path string) bool {
	for _, folder := range []string{"blobs", "engines", "models", "prepared", "resolutions"} {
		if strings.Contains(path, "/root/"+folder+"/") {
			return true
		}
	}
	return false
}

// TestEveryDiskOperationMayFail lets operation 0, 1, 2 ... of each scenario fail until a run needs no more of them.
func TestEveryDiskOperationMayFail(t *testing.T) {
	t.Parallel()
	causes := map[string]error{"disk full": syscall.ENOSPC, "broken disk": syscall.EIO}
	wantReason := map[string]reason.Reason{"disk full": reason.DiskFull, "broken disk": reason.StorageFailed}
	for _, sc := range scenarios() {
		for what, cause := range causes {
			t.Run(sc.name+"/"+what, func(t *testing.T) {
				t.Parallel()
				failures := 0
				for n := 0; ; n++ {
					failed, err := sweepOnce(t, sc, n, cause)
					if failed == "" {
						break
					}
					if err != nil {
						failures++
						if got := reason.Of(err); got != wantReason[what] {
							t.Errorf("%s: got reason %v (%v), want %v", failed, got, err, wantReason[what])
						}
					}
				}
				if failures < 5 {
					t.Errorf("only %d operations made the scenario fail, so the sweep proves little", failures)
				}
			})
		}
	}
}

func sweepOnce(t *testing.T, sc scenario, n int, cause error) (failed string, err error) {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() { makeRemovable(dir) })
	disk := storetest.New(storetest.Never, cause, visiblePath)
	s := open(t, store.Config{Root: filepath.Join(dir, "root"), FS: disk})
	if sc.prepare != nil {
		sc.prepare(t, s, dir)
	}
	disk.FailAt(n)
	err = sc.do(s, dir)
	failed = strings.ReplaceAll(disk.Failed(), s.Root(), "")
	disk.FailAt(storetest.Never)
	if failed == "" && err != nil {
		t.Fatalf("nothing was made to fail: %v", err)
	}
	if broken := disk.Broken(); err == nil && len(broken) > 0 {
		t.Errorf("%s: %v", failed, broken)
	}
	if there := sc.check(t, open(t, store.Config{Root: s.Root()})); err == nil && !there {
		t.Errorf("%s: the call succeeded and made nothing", failed)
	}
	must(t, sc.do(s, dir))
	if !sc.check(t, s) {
		t.Errorf("%s: after a second try there is nothing", failed)
	}
	if broken := disk.Broken(); len(broken) > 0 && !sc.again {
		t.Errorf("%s: after a second try: %v", failed, broken)
	}
	if left, _ := os.ReadDir(filepath.Join(s.Root(), "partial")); len(left) > 0 {
		t.Errorf("%s: partial content is left: %v", failed, left)
	}
	return failed, err
}

// TestOpenMayFail lets every disk operation of Open, and of the Close after it, fail.
func TestOpenMayFail(t *testing.T) {
	t.Parallel()
	for n := 0; ; n++ {
		disk := storetest.New(n, syscall.ENOSPC, nil)
		root := filepath.Join(t.TempDir(), "root")
		s, err := store.Open(store.Config{Root: root, FS: disk})
		if err != nil && reason.Of(err) != reason.DiskFull {
			t.Errorf("%s: got %v, want a full disk", disk.Failed(), err)
		}
		if err == nil {
			if err := s.Close(); err != nil && disk.Failed() == "" {
				t.Errorf("close: %v", err)
			}
		}
		again := open(t, store.Config{Root: root})
		must(t, commitContent(again, ""))
		if disk.Failed() == "" {
			break
		}
	}
}

func open(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(cfg)
	must(t, err)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(got, []byte(want)) {
		t.Errorf("%s has %q, want %q", path, got, want)
	}
}

// makeRemovable gives published folders their write bit back, so that a user without privileges can clean up.
func makeRemovable(dir string) {
	_ = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			_ = os.Chmod(path, 0o755)
		}
		return nil
	})
}

func digestOf(text string) store.Digest {
	digest, err := store.ParseDigest(fmt.Sprintf("%x", sum(text)))
	if err != nil {
		panic(err)
	}
	return digest
}
