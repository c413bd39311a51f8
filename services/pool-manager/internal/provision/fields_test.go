// SPDX-License-Identifier: Apache-2.0

package provision

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
	provisionerv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/provisioner/v1"
)

func TestFieldInPreload(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"spec":                          "spec.prepare",
		"spec.engine":                   "spec.prepare.engine",
		"spec.engine.package.sha256":    "spec.prepare.engine.package.sha256",
		"spec.model.uri":                "spec.prepare.model.uri",
		"spec.launch.extra_flags[3]":    "spec.prepare.launch.extra_flags[3]",
		"prepared_id":                   "spec.prepared_id",
		"store.root":                    "store.root",
		"specification":                 "specification",
		"":                              "",
		"policy.registries.spec.engine": "policy.registries.spec.engine",
	} {
		if got := fieldInPreload(name); got != want {
			t.Errorf("fieldInPreload(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestInPreloadLeavesTheRest(t *testing.T) {
	t.Parallel()
	plain := errors.New("plain")
	for _, err := range []error{plain, reason.New(reason.BuildFailed, "no field", reason.Cause(plain))} {
		if got := inPreload(err); !errors.Is(got, err) {
			t.Errorf("inPreload(%v) = %v", err, got)
		}
	}
	typed := reason.New(reason.DigestMismatch, "no", reason.Field("spec.model.sha256"), reason.Violation("spec.engine", "is another"),
		reason.Meta("got", "x"), reason.Remedy("mend it"), reason.Cause(plain))
	got, ok := reason.As(inPreload(fmt.Errorf("prepare: %w", typed)))
	if !ok || !errors.Is(got, plain) || got.Remedy != "mend it" || got.Metadata["got"] != "x" || got.Reason != reason.DigestMismatch {
		t.Errorf("inPreload lost something: %+v", got)
	}
	want := []reason.FieldViolation{{Name: "spec.prepare.model.sha256"}, {Name: "spec.prepare.engine", Problem: "is another"}}
	if diff := cmp.Diff(want, got.Fields); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	if typed.Fields[0].Name != "spec.model.sha256" {
		t.Error("the error of another was changed")
	}
}

// What the caller is told is what the caller has sent.
func TestErrorsNameTheFieldsOfPreload(t *testing.T) {
	t.Parallel()
	at := address(t)
	serve(t, at, &provisioner{
		prepare: func(*provisionerv1.PrepareRequest, provisionerv1.ProvisionerService_PrepareServer) error {
			return reason.New(reason.ModelNotFound, "no such file", reason.Field("spec.model.uri"), reason.Remedy("name one"))
		},
		getPrepared: func(*provisionerv1.GetPreparedRequest) (*provisionerv1.GetPreparedResponse, error) {
			return nil, reason.New(reason.PreparedNotFound, "never prepared", reason.Field("prepared_id"))
		},
	})
	c := newClient(t, at)
	invalid := validSpec()
	invalid.Engine.Kind = "NO KIND"
	id := "sha256:" + strings.Repeat("1", 64)
	prepare := func(spec *enginev1.PrepareSpec) error {
		_, err := c.Prepare(t.Context(), spec, "pool", ignore)
		return err
	}
	prepared := func(id string) error {
		_, err := c.Prepared(t.Context(), id)
		return err
	}
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"refused by the provisioner's rules", prepare(invalid), "spec.prepare.engine.kind"},
		{"refused by the provisioner", prepare(validSpec()), "spec.prepare.model.uri"},
		{"not prepared", prepared(id), "spec.prepared_id"},
		{"an id that is none", prepared("x"), "spec.prepared_id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			typed, ok := reason.As(tt.err)
			if !ok || len(typed.Fields) != 1 || typed.Fields[0].Name != tt.want {
				t.Errorf("error %+v, want field %s", tt.err, tt.want)
			}
			if !strings.HasPrefix(tt.err.Error(), tt.want+": ") {
				t.Errorf("%q does not begin with the field", tt.err)
			}
		})
	}
}
