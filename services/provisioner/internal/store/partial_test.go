// SPDX-License-Identifier: Apache-2.0

package store_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store/storetest"
)

func TestPartialResumes(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	p, err := s.Partial(t.Context(), "k")
	must(t, err)
	must(t, p.SetNote([]byte(`{"etag":"x"}`)))
	_, err = p.Write([]byte("content "))
	must(t, err)
	must(t, p.Close())
	must(t, p.Close())

	also := sha512.New()
	p, err = s.Partial(t.Context(), "k", also)
	must(t, err)
	if p.Offset() != 8 || string(p.Note()) != `{"etag":"x"}` {
		t.Errorf("offset %d, note %s; want 8 and the note of the first holder", p.Offset(), p.Note())
	}
	_, err = p.Write([]byte(content[8:]))
	must(t, err)
	if want := sha512.Sum512([]byte(content)); !bytes.Equal(also.Sum(nil), want[:]) {
		t.Error("the second hash did not see the whole content")
	}
	blob, err := p.Commit(t.Context(), contentDigest())
	must(t, err)
	wantFile(t, blob.Path, content)
	info, err := os.Stat(blob.Path)
	must(t, err)
	if info.Mode().Perm() != 0o444 {
		t.Errorf("blob has mode %v, want read-only", info.Mode())
	}
}

func TestPartialReset(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	p, err := s.Partial(t.Context(), "k")
	must(t, err)
	must(t, p.SetNote([]byte(`1`)))
	_, err = p.Write([]byte("something else that is longer"))
	must(t, err)
	must(t, p.Reset())
	if p.Offset() != 0 || p.Note() != nil {
		t.Errorf("offset %d, note %s; want none", p.Offset(), p.Note())
	}
	_, err = p.Write([]byte(content))
	must(t, err)
	_, err = p.Commit(t.Context(), contentDigest())
	must(t, err)
	if !checkBlob(t, s) {
		t.Error("the blob is absent")
	}
}

func TestCommitOfWrongContentDropsIt(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	p, err := s.Partial(t.Context(), "k")
	must(t, err)
	_, err = p.Write([]byte("<html>"))
	must(t, err)
	if _, err := p.Commit(t.Context(), contentDigest()); reason.Of(err) != reason.DigestMismatch {
		t.Errorf("got %v, want DIGEST_MISMATCH", err)
	}
	if checkBlob(t, s) {
		t.Error("the blob is there")
	}
	p, err = s.Partial(t.Context(), "k")
	must(t, err)
	if p.Offset() != 0 {
		t.Errorf("%d bytes of the wrong content are kept", p.Offset())
	}
	must(t, p.Close())
}

func TestReserveTellsThatTheDiskIsFull(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	p, err := s.Partial(t.Context(), "k")
	must(t, err)
	defer func() { _ = p.Close() }()
	must(t, p.Reserve(1))
	err = p.Reserve(1 << 60)
	failed, _ := reason.As(err)
	if reason.Of(err) != reason.DiskFull || failed.Metadata["bytes_wanted"] != fmt.Sprint(1<<60) || failed.Metadata["path"] == "" {
		t.Errorf("got %v, want DISK_FULL with path and bytes", err)
	}
}

func TestPartialIsHeldByOne(t *testing.T) {
	t.Parallel()
	s, _ := newStore(t)
	other := open(t, store.Config{Root: s.Root()}) // as another process would: it shares no memory
	for name, second := range map[string]*store.Store{"same process": s, "another process": other} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			first, err := s.Partial(t.Context(), name)
			must(t, err)
			left := errors.New("left")
			ctx, cancel := context.WithCancelCause(t.Context())
			gone := make(chan error)
			go func() {
				_, err := second.Partial(ctx, name)
				gone <- err
			}()
			cancel(left)
			if err := <-gone; !errors.Is(err, left) {
				t.Errorf("a caller that left got %v, want its cause", err)
			}
			came := make(chan error)
			go func() {
				p, err := second.Partial(context.WithoutCancel(ctx), name)
				if err == nil && p.Offset() != int64(len(content)) {
					err = fmt.Errorf("came in at offset %d, before the first was done", p.Offset())
				}
				if err == nil {
					err = p.Close()
				}
				came <- err
			}()
			_, err = first.Write([]byte(content))
			must(t, err)
			must(t, first.Close())
			must(t, <-came)
		})
	}
}

// holderRoot is set in the process that TestKilledProcess starts and kills.
const holderRoot = "STORE_TEST_HOLDER_ROOT"

func TestKilledProcess(t *testing.T) {
	t.Parallel()
	if root := os.Getenv(holderRoot); root != "" {
		holdForever(t, root)
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	self, err := os.Executable()
	must(t, err)
	holder := exec.Command(self, "-test.run=^TestKilledProcess$")
	holder.Env = append(os.Environ(), holderRoot+"="+root)
	output, err := holder.StdoutPipe()
	must(t, err)
	must(t, holder.Start())
	t.Cleanup(func() { _ = holder.Process.Kill() })
	ready, err := bufio.NewReader(output).ReadString('\n')
	if err != nil || ready != "holding\n" {
		t.Fatalf("holder said %q, %v", ready, err)
	}
	scratch := foldersIn(t, filepath.Join(root, "tmp"))
	if scratch == 0 {
		t.Error("the holder has no temporary folder")
	}
	running := open(t, store.Config{Root: root})
	if now := foldersIn(t, filepath.Join(root, "tmp")); now != scratch+1 {
		t.Errorf("opening the store beside a living process left %d temporary folders, want %d", now, scratch+1)
	}
	must(t, holder.Process.Kill())
	_ = holder.Wait()

	p, err := running.Partial(t.Context(), "key")
	must(t, err)
	if p.Offset() != 5 {
		t.Errorf("offset is %d after the kill, want 5", p.Offset())
	}
	must(t, p.Close())
	must(t, resumeContent(running, ""))
	if !checkBlob(t, running) {
		t.Error("absent after it was resumed")
	}
	open(t, store.Config{Root: root})
	if now := foldersIn(t, filepath.Join(root, "tmp")); now != 2 {
		t.Errorf("%d temporary folders, want those of the two open stores", now)
	}
}

// holdForever is the other process: it has a partial, a build and a temporary folder, and never gives them back.
func holdForever(t *testing.T, root string) {
	t.Helper()
	s, err := store.Open(store.Config{Root: root})
	must(t, err)
	p, err := s.Partial(t.Context(), "key")
	must(t, err)
	_, err = p.Write([]byte(content[:5]))
	must(t, err)
	temp, err := s.TempDir()
	must(t, err)
	must(t, os.WriteFile(filepath.Join(temp.Path, "left"), nil, 0o600))
	fmt.Println("holding")
	select {}
}

func foldersIn(t *testing.T, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	folders := 0
	for _, entry := range entries {
		if entry.IsDir() {
			folders++
		}
	}
	return folders
}

// TestCommitIsTakenUpAgain proves that a commit cut between its steps can be taken up by the next holder.
func TestCommitIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	disk := storetest.New(storetest.Never, os.ErrPermission, nil)
	s := open(t, store.Config{Root: filepath.Join(dir, "root"), FS: disk})
	p, err := s.Partial(t.Context(), "key")
	must(t, err)
	_, err = p.Write([]byte(content))
	must(t, err)
	disk.FailAt(1) // the blob's lock, after the content became read-only
	if _, err := p.Commit(t.Context(), contentDigest()); err == nil {
		t.Fatal("commit did not fail")
	}
	p, err = s.Partial(t.Context(), "key")
	must(t, err)
	if p.Offset() != int64(len(content)) {
		t.Errorf("offset is %d, want all of the content", p.Offset())
	}
	_, err = p.Commit(t.Context(), contentDigest())
	must(t, err)
}
