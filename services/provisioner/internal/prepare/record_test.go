// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

func TestPrepared(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	made, _, err := f.do(t.Context(), f.externalSpec(modelRef))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Prepared(made.GetPreparedId())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(made, got, protocmp.Transform()); diff != "" {
		t.Errorf("Prepared (-made +got):\n%s", diff)
	}
	if launch := got.GetSpec().GetLaunch(); launch.GetContextTokens() != 2048 || launch.GetSlots() != 1 || got.GetModel().GetId() != "small" {
		t.Errorf("defaults were not filled in: %v, model %s", launch, got.GetModel().GetId())
	}
	if _, err := f.Prepared("sha256:" + strings.Repeat("0", 64)); reason.Of(err) != reason.PreparedNotFound {
		t.Errorf("an id that nobody prepared: %v, want PREPARED_NOT_FOUND", err)
	}
}

func TestPreparedNeedsItsFiles(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	made, _, err := f.do(t.Context(), f.externalSpec(modelRef))
	if err != nil {
		t.Fatal(err)
	}
	path := made.GetModel().GetFiles()[0].GetPath()
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, gguf(7), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Prepared(made.GetPreparedId()); reason.Of(err) != reason.PreparedNotFound {
		t.Errorf("after the model was changed: %v, want PREPARED_NOT_FOUND", err)
	}
	f.write(t, "again.gguf", gguf(2048))
	f.fetcher.files[modelRef] = f.root + "/again.gguf"
	again, _, err := f.do(t.Context(), f.externalSpec(modelRef))
	if err != nil {
		t.Fatalf("prepared again: %v", err)
	}
	if again.GetPreparedId() != made.GetPreparedId() {
		t.Errorf("the same files have the ids %s and %s", made.GetPreparedId(), again.GetPreparedId())
	}
	if _, err := f.Prepared(made.GetPreparedId()); err != nil {
		t.Errorf("after it was prepared again: %v", err)
	}
}

func TestPreparedIDCoversEveryField(t *testing.T) {
	t.Parallel()
	base := func() *enginev1.PreparedEngine {
		return &enginev1.PreparedEngine{Engine: &enginev1.EngineIdentity{Kind: "k"}, PreparedId: "sha256:x"}
	}
	id := func(change func(*enginev1.PreparedEngine)) string {
		prepared := base()
		change(prepared)
		got, err := preparedID(prepared)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	same := id(func(*enginev1.PreparedEngine) {})
	fields := base().ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		got := id(func(p *enginev1.PreparedEngine) {
			if field.Message() == nil {
				p.PreparedId = "sha256:y"
				return
			}
			p.ProtoReflect().Set(field, p.ProtoReflect().NewField(field))
			if field.Name() == "engine" {
				p.Engine.Kind = "other"
			}
		})
		free := field.Name() == "prepared_id" || field.Name() == "prepared_at" || field.Name() == "made_for"
		if (got == same) != free {
			t.Errorf("field %s changes the id: %t, want %t", field.Name(), got != same, !free)
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var want []string
	for i := range 5 {
		made, _, err := f.do(t.Context(), f.externalSpec(modelRef, "-t", fmt.Sprint(i+1)))
		if err != nil {
			t.Fatal(err)
		}
		want = append([]string{made.GetPreparedId()}, want...)
	}
	var got []string
	token := ""
	for range 10 {
		page, next, err := f.List(t.Context(), 2, token)
		if err != nil {
			t.Fatal(err)
		}
		for _, prepared := range page {
			got = append(got, prepared.GetPreparedId())
		}
		if token = next; token == "" {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	for _, token := range []string{"x", "!!", "bm90IG91cnM"} {
		if _, _, err := f.List(t.Context(), 2, token); reason.Of(err) != reason.InvalidParams {
			t.Errorf("token %q: %v, want INVALID_PARAMS", token, err)
		}
	}
}

func TestListLeavesOutWhatCannotBeRead(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	made, _, err := f.do(t.Context(), f.externalSpec(modelRef))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cfg.Store.PutPrepared(strings.Repeat("0", 64), []byte(`{"prepared":[]}`)); err != nil {
		t.Fatal(err)
	}
	page, next, err := f.List(t.Context(), 0, "")
	if err != nil || next != "" || len(page) != 1 || !proto.Equal(page[0], made) {
		t.Errorf("List = %v, %q, %v", page, next, err)
	}
}
