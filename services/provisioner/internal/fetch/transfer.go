// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

const copyChunkBytes = 256 << 10

// validator is kept beside a partial download to resume it.
type validator struct {
	Address string `json:"address"`
	ETag    string `json:"etag,omitempty"`
	// SizeBytes is that of the whole file, 0 when the server did not tell.
	SizeBytes int64 `json:"size_bytes,omitempty"`
}

// transfer is the download of one artifact into its partial, over several attempts.
type transfer struct {
	fetcher  *Fetcher
	artifact artifact
	partial  *store.Partial
	progress func(done, total int64)
	stitched bool
}

// attempt goes on from the partial's offset to the end of the file. An error is Permanent when trying again is useless;
// wait is how long the server asked to be left alone.
func (t *transfer) attempt(ctx context.Context) (wait time.Duration, err error) {
	resume, err := t.resumePoint()
	if err != nil {
		return 0, backoff.Permanent(err)
	}
	if resume.SizeBytes > 0 && t.partial.Offset() == resume.SizeBytes {
		return 0, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := t.fetcher.cfg.StallTimeout
	watchdog := time.AfterFunc(stall, func() { cancel(errStalled) })
	defer watchdog.Stop()

	response, err := t.request(ctx, resume)
	if err != nil {
		return 0, retriable(ctx, err)
	}
	defer func() { _ = response.Body.Close() }()
	total, wait, err := t.accept(response)
	if err != nil {
		return wait, err
	}
	if err := t.prepare(response, total); err != nil {
		return 0, backoff.Permanent(err)
	}
	return 0, t.receive(ctx, response.Body, total, func() { watchdog.Reset(stall) })
}

// resumePoint drops a partial that cannot be gone on with, and returns what is known of the rest.
func (t *transfer) resumePoint() (validator, error) {
	if t.partial.Offset() == 0 {
		return validator{}, nil
	}
	var known validator
	noteErr := json.Unmarshal(t.partial.Note(), &known)
	sameServer := noteErr == nil && known.Address == t.artifact.address
	switch {
	case known.SizeBytes > 0 && t.partial.Offset() > known.SizeBytes,
		t.artifact.want == "" && t.artifact.integrity == "" && (!sameServer || known.ETag == ""):
		return validator{}, t.partial.Reset()
	case !sameServer:
		known.ETag = ""
	}
	return known, nil
}

func (t *transfer) request(ctx context.Context, resume validator) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.artifact.address, nil)
	if err != nil {
		return nil, backoff.Permanent(err)
	}
	request.Header.Set("Accept-Encoding", "identity")
	if offset := t.partial.Offset(); offset > 0 {
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		if resume.ETag != "" {
			request.Header.Set("If-Range", resume.ETag)
		}
	}
	return t.fetcher.client.Do(request)
}

// accept judges the head of an answer and returns the size of the whole file, 0 when it is not told. After it the
// partial's offset is where the body begins.
func (t *transfer) accept(response *http.Response) (total int64, wait time.Duration, err error) {
	offset := t.partial.Offset()
	switch response.StatusCode {
	case http.StatusOK:
		if offset > 0 {
			t.stitched = false
			if err := t.partial.Reset(); err != nil {
				return 0, 0, backoff.Permanent(err)
			}
		}
		return max(response.ContentLength, 0), 0, nil
	case http.StatusPartialContent:
		start, size, ok := parseContentRange(response.Header.Get("Content-Range"))
		if ok && offset > 0 && start == offset {
			t.stitched = true
			return size, 0, nil
		}
		if err := t.partial.Reset(); err != nil {
			return 0, 0, backoff.Permanent(err)
		}
		return 0, 0, fmt.Errorf("the server answered with another range (%q) than was asked for", response.Header.Get("Content-Range"))
	case http.StatusRequestedRangeNotSatisfiable:
		if err := t.partial.Reset(); err != nil {
			return 0, 0, backoff.Permanent(err)
		}
		return 0, 0, errors.New("the server has less than was downloaded before")
	}
	wait, err = statusError(response, t.artifact.address, t.artifact.missing)
	return 0, wait, err
}

// prepare checks that the file can be taken and notes how to resume it.
func (t *transfer) prepare(response *http.Response, total int64) error {
	if total > defaultMaxFileBytes {
		return reason.New(reason.LimitExceeded, fmt.Sprintf("the file has %d bytes, allowed are %d", total, int64(defaultMaxFileBytes)),
			reason.Remedy("check the address: no model file is that large"))
	}
	if err := t.partial.Reserve(total); err != nil {
		return err
	}
	if t.partial.Offset() > 0 {
		return nil
	}
	known := validator{Address: t.artifact.address, SizeBytes: total}
	if etag := response.Header.Get("ETag"); !strings.HasPrefix(etag, "W/") {
		known.ETag = etag
	}
	note, err := json.Marshal(known)
	if err != nil {
		return err
	}
	return t.partial.SetNote(note)
}

func (t *transfer) receive(ctx context.Context, body io.Reader, total int64, alive func()) error {
	chunk := make([]byte, copyChunkBytes)
	for {
		n, readErr := body.Read(chunk)
		alive()
		if n > 0 {
			if _, err := t.partial.Write(chunk[:n]); err != nil {
				return backoff.Permanent(err)
			}
			t.progress(t.partial.Offset(), total)
		}
		if t.partial.Offset() > defaultMaxFileBytes {
			return backoff.Permanent(reason.New(reason.LimitExceeded, fmt.Sprintf("the file goes on beyond %d bytes", int64(defaultMaxFileBytes)),
				reason.Remedy("check the address: no model file is that large")))
		}
		switch {
		case errors.Is(readErr, io.EOF) && t.partial.Offset() < total:
			return io.ErrUnexpectedEOF
		case errors.Is(readErr, io.EOF):
			return nil
		case readErr != nil:
			return retriable(ctx, readErr)
		}
	}
}

// parseContentRange reads "bytes START-END/SIZE", where SIZE may be "*".
func parseContentRange(text string) (start, size int64, ok bool) {
	text, found := strings.CutPrefix(text, "bytes ")
	span, whole, found2 := strings.Cut(text, "/")
	from, _, found3 := strings.Cut(span, "-")
	if !found || !found2 || !found3 {
		return 0, 0, false
	}
	start, err := strconv.ParseInt(from, 10, 64)
	if err != nil {
		return 0, 0, false
	}
	if whole == "*" {
		return start, 0, true
	}
	size, err = strconv.ParseInt(whole, 10, 64)
	return start, size, err == nil && size > start
}
