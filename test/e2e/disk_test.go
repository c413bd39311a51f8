// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/test/harness"
)

// A store whose disk is full takes nothing half, says so, and goes on when there is room.
func TestStoreIsFull(t *testing.T) {
	t.Parallel()
	disk := harness.NewDisk(t, "2m")
	node := harness.Start(t, harness.Config{Store: disk.Path})
	files := harness.ServeFiles(t)
	data := append(harness.TinyGGUF("large"), make([]byte, 4<<20)...)
	for _, uri := range []string{"file:" + node.WriteFile(t, "large.gguf", data), files.Add("large.gguf", data)} {
		spec := node.FakePool(t, "large")
		spec.GetPrepare().Model = &enginev1.ModelSpec{Uri: uri, Sha256: harness.SHA256(data)}
		harness.Want{Code: codes.ResourceExhausted, Reason: reason.DiskFull}.Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: spec}).Err)
		if ids := node.PoolIDs(t); len(ids) != 0 {
			t.Errorf("pools = %v, want none", ids)
		}
		if free := disk.Free(t); free < 1<<20 {
			t.Errorf("%d bytes are free after %s did not fit, want what was free before", free, uri)
		}
	}
	node.MustPreload(t, node.FakePool(t, "small"))
	disk.Resize(t, "16m")
	large := node.FakePool(t, "large")
	large.GetPrepare().Model = &enginev1.ModelSpec{Uri: "file:" + node.Root + "/large.gguf"}
	node.MustPreload(t, large)
}

// A state directory whose disk is full, or may not be written any more: what runs goes on, what is new is refused.
func TestStateCannotBeWritten(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		spoil func(t *testing.T, state string) (mend func())
		want  harness.Want
	}{
		{"full", fill, harness.Want{Code: codes.ResourceExhausted, Reason: reason.DiskFull}},
		{"read only", func(t *testing.T, state string) (mend func()) {
			t.Helper()
			return harness.Cover(t, filepath.Join(state, "replicas"))
		}, harness.Want{Code: codes.Internal, Reason: reason.StorageFailed}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			disk := harness.NewDisk(t, "256k")
			node := harness.New(t, harness.Config{State: disk.Path})
			node.StartProvisioner(t)
			node.StartPoolManager(t)
			served := node.MustPreload(t, node.FakePool(t, "before"))
			mend := tt.spoil(t, disk.Path)
			tt.want.Check(t, node.Preload(t.Context(), &poolv1.PreloadRequest{Spec: node.FakePool(t, "refused")}).Err)
			if engines := node.Engines(); len(engines) != 1 {
				t.Errorf("engines = %v, want the one that was there before", engines)
			}
			if _, err := harness.NewChat("tiny", 2).Ask(t.Context(), served.GetReplicas()[0].GetEndpoint()); err != nil {
				t.Errorf("the engine that was there before does not serve: %v", err)
			}
			if ids := node.PoolIDs(t); len(ids) != 1 || ids[0] != "before" {
				t.Errorf("pools = %v, want the one that was there before", ids)
			}
			mend()
			node.MustPreload(t, node.FakePool(t, "after"))
			for _, id := range []string{"before", "after"} {
				if drained := node.Drain(t.Context(), &poolv1.DrainRequest{PoolId: id}); drained.Err != nil {
					t.Errorf("Drain of %s: %v", id, drained.Err)
				}
			}
		})
	}
}

// fill writes a file until the disk takes no more. The returned function removes it.
func fill(t *testing.T, dir string) (mend func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	filler, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for err == nil {
		_, err = filler.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// Daemons whose state directory cannot be written do not start, and say which it is.
func TestStateDirOfNoUse(t *testing.T) {
	t.Parallel()
	disk := harness.NewDisk(t, "64k")
	disk.SetReadOnly(t)
	node := harness.New(t, harness.Config{})
	for name, daemon := range map[string]*harness.Daemon{
		"pool manager": node.RunPoolManager(t, "--state-dir", filepath.Join(disk.Path, "state")),
		"provisioner":  node.RunProvisioner(t, "--state-dir", filepath.Join(disk.Path, "store")),
	} {
		if code := daemon.Wait(t); code != 3 {
			t.Errorf("%s: exit code = %d, want 3:\n%s", name, code, daemon.Log(t))
		}
		if log := daemon.Log(t); !containsAll(log, disk.Path, "read-only") {
			t.Errorf("%s does not say what is wrong:\n%s", name, log)
		}
	}
}

func containsAll(text string, parts ...string) bool {
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}
