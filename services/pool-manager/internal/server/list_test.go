// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// put makes snapshots known as "id:STATE", none of which has an engine.
func (n *node) put(t *testing.T, pools ...string) {
	t.Helper()
	for _, text := range pools {
		id, state, _ := strings.Cut(text, ":")
		value, ok := poolv1.PoolState_value["POOL_STATE_"+state]
		if !ok {
			t.Fatalf("no state %q", state)
		}
		n.registry.Put(registry.Pool{Spec: registry.Spec{ID: registry.PoolID(id)}, State: registry.State(value)})
	}
}

// pages lists with the request until the last page, each page as its ids joined.
func (n *node) pages(t *testing.T, request *poolv1.ListPoolsRequest) []string {
	t.Helper()
	var pages []string
	for range 10 {
		response, err := n.ListPools(t.Context(), request)
		if err != nil {
			t.Fatalf("ListPools(%v): %v", request, err)
		}
		var ids []string
		for _, pool := range response.GetPools() {
			ids = append(ids, pool.GetPoolId())
		}
		pages = append(pages, strings.Join(ids, " "))
		if response.GetNextPageToken() == "" {
			return pages
		}
		request.PageToken = response.GetNextPageToken()
	}
	t.Fatalf("there is no last page: %q", pages)
	return nil
}

func TestListPools(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.put(t, "d:READY", "a:READY", "e:FAILED", "b:STOPPED", "c:READY")
	const failed, stopped = poolv1.PoolState_POOL_STATE_FAILED, poolv1.PoolState_POOL_STATE_STOPPED
	for _, tt := range []struct {
		name   string
		size   uint32
		states []poolv1.PoolState
		want   []string
	}{
		{"one page", 0, nil, []string{"a b c d e"}},
		{"pages", 2, nil, []string{"a b", "c d", "e"}},
		{"a full last page", 5, nil, []string{"a b c d e"}},
		{"one at a time", 1, nil, []string{"a", "b", "c", "d", "e"}},
		{"in a state", 0, []poolv1.PoolState{failed}, []string{"e"}},
		{"in one of two states, in pages", 1, []poolv1.PoolState{failed, stopped}, []string{"b", "e"}},
		{"none", 1, []poolv1.PoolState{poolv1.PoolState_POOL_STATE_DRAINING}, []string{""}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := n.pages(t, &poolv1.ListPoolsRequest{PageSize: tt.size, States: tt.states})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("pages (-want +got):\n%s", diff)
			}
		})
	}
}

func TestListPoolsOfNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	if got := n.pages(t, &poolv1.ListPoolsRequest{}); !slices.Equal(got, []string{""}) {
		t.Errorf("pages are %q, want an empty one", got)
	}
}

// What changes between two pages neither hides nor repeats another pool.
func TestListPoolsBetweenChanges(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.put(t, "a:READY", "b:READY", "c:READY")
	first, err := n.ListPools(t.Context(), &poolv1.ListPoolsRequest{PageSize: 2})
	if err != nil {
		t.Fatal(err)
	}
	n.registry.Delete("b") // The one that the token is about.
	n.put(t, "aa:READY", "d:READY", "c:FAILED")
	got := n.pages(t, &poolv1.ListPoolsRequest{PageSize: 2, PageToken: first.GetNextPageToken()})
	if diff := cmp.Diff([]string{"c d"}, got); diff != "" {
		t.Errorf("the second page (-want +got):\n%s", diff)
	}
}

func TestListPoolsDefaultPage(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	for i := range defaultPage + 1 {
		n.put(t, string(rune('a'+i/26))+string(rune('a'+i%26))+":READY")
	}
	if got := n.pages(t, &poolv1.ListPoolsRequest{}); len(got) != 2 || len(strings.Fields(got[0])) != 100 || got[1] == "" {
		t.Errorf("pages are %q, want one of 100 and one of 1", got)
	}
}

func TestBadPageToken(t *testing.T) {
	t.Parallel()
	n := newNode(t, Config{})
	n.put(t, "a:READY")
	for name, token := range map[string]string{
		"no token of anybody": "!", "not ours": base64.RawURLEncoding.EncodeToString([]byte("before:a")),
		"without an id": base64.RawURLEncoding.EncodeToString([]byte(pageMark)), "an id": "a",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.ListPools(t.Context(), &poolv1.ListPoolsRequest{PageToken: token})
			typed := typedError(t, err, reason.InvalidParams)
			if len(typed.Fields) != 1 || typed.Fields[0].Name != "page_token" || typed.Remedy == "" {
				t.Errorf("error %+v, want field page_token and a remedy", typed)
			}
		})
	}
}
