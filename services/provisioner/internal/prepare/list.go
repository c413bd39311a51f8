// SPDX-License-Identifier: Apache-2.0

package prepare

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	enginev1 "github.com/roundhouse-llm/roundhouse/proto/gen/go/roundhouse/engine/v1"
)

// defaultPageSize is what a page has when the caller does not care.
const defaultPageSize = 50

// place is where a prepared engine stands in the list.
type place struct {
	preparedNano int64
	id           string
}

func placeOf(prepared *enginev1.PreparedEngine) place {
	return place{preparedNano: prepared.GetPreparedAt().AsTime().UnixNano(), id: prepared.GetPreparedId()}
}

// compare puts the newest first.
func (p place) compare(other place) int {
	return cmp.Or(cmp.Compare(other.preparedNano, p.preparedNano), cmp.Compare(p.id, other.id))
}

func (p place) token() string {
	return base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", p.preparedNano, p.id))
}

func parseToken(token string) (place, error) {
	data, err := base64.RawURLEncoding.DecodeString(token)
	nano, id, _ := strings.Cut(string(data), " ")
	var p place
	if err == nil {
		p.id = id
		p.preparedNano, err = strconv.ParseInt(nano, 10, 64)
	}
	if err != nil || !strings.HasPrefix(id, idPrefix) {
		return place{}, reason.New(reason.InvalidParams, "page token is not one of this service", reason.Field("page_token"),
			reason.Remedy("give next_page_token of the page before, or nothing for the first page"))
	}
	return p, nil
}

// List returns a page of what was prepared, newest first, and the token of the next; their files are not looked at. size 0
// means 50, and token is empty for the first page. What is prepared while pages are read is on no later page. A token that
// List did not give is INVALID_PARAMS; records that cannot be read are left out and logged.
func (s *Service) List(ctx context.Context, size int, token string) (page []*enginev1.PreparedEngine, next string, err error) {
	var after place
	if token != "" {
		if after, err = parseToken(token); err != nil {
			return nil, "", err
		}
	}
	records, broken, err := s.cfg.Store.ListPrepared(ctx)
	if err != nil {
		return nil, "", fmt.Errorf("list prepared engines: %w", err)
	}
	for _, record := range records {
		prepared, _, err := decode(record.Data)
		if err != nil {
			broken = append(broken, err)
			continue
		}
		if token == "" || placeOf(prepared).compare(after) > 0 {
			page = append(page, prepared)
		}
	}
	for _, err := range broken {
		s.cfg.Log.Warn("prepared record is left out", zap.String("error", reason.Redact(err.Error())))
	}
	slices.SortFunc(page, func(a, b *enginev1.PreparedEngine) int { return placeOf(a).compare(placeOf(b)) })
	if size == 0 {
		size = defaultPageSize
	}
	if len(page) <= size {
		return page, "", nil
	}
	return page[:size], placeOf(page[size-1]).token(), nil
}
