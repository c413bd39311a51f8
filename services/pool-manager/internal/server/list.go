// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/base64"
	"slices"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	poolv1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/pool/v1"
	"github.com/roundhouse-llm/roundhouse/services/pool-manager/internal/registry"
)

// defaultPage is how many pools a page has if the caller does not say.
const defaultPage = 100

// pageMark begins the text of a page token, before it is encoded; what follows is the last id of the page before.
const pageMark = "after:"

// ListPools answers with a page of pools, by id.
func (s *Service) ListPools(_ context.Context, request *poolv1.ListPoolsRequest) (*poolv1.ListPoolsResponse, error) {
	after, err := pageStart(request.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := int(request.GetPageSize())
	if size == 0 {
		size = defaultPage
	}
	response := &poolv1.ListPoolsResponse{}
	for _, pool := range s.registry.List() {
		if pool.Spec.ID <= after && after != "" || !inStates(pool, request.GetStates()) {
			continue
		}
		if len(response.GetPools()) == size {
			last := response.GetPools()[size-1].GetPoolId()
			response.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(pageMark + last))
			break
		}
		response.Pools = append(response.Pools, poolOf(pool))
	}
	return response, nil
}

func pageStart(token string) (registry.PoolID, error) {
	if token == "" {
		return "", nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(text) <= len(pageMark) || string(text[:len(pageMark)]) != pageMark {
		return "", reason.New(reason.InvalidParams, "not a page token of ours", reason.Field("page_token"),
			reason.Remedy("use next_page_token of an earlier answer, or leave it empty"))
	}
	return registry.PoolID(text[len(pageMark):]), nil
}

func inStates(pool *registry.Pool, states []poolv1.PoolState) bool {
	return len(states) == 0 || slices.Contains(states, stateOf(pool.State))
}
