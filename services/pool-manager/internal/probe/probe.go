// SPDX-License-Identifier: Apache-2.0

// Package probe asks an engine over HTTP: whether it is ready, which model it serves, how much it has to do, and for a
// completion.
//
// Ready means that the asked page answered as expected on a socket that belongs to the engine's own processes (G6): an
// answer of somebody else on the same port never counts. Questions go out on a connection of their own, without
// proxy, redirect or compression, with a bounded answer and, but for completions, a time limit each, so that a stuck
// engine costs no more than that. A Prober has no state and may be used by many goroutines. It never starts, stops or signals anything.
package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// defaultLimit is the time for one question: far more than an answer takes, and a stuck engine is asked again.
	defaultLimit = time.Second
	// maxAnswer is the most of an answer's body that is read in bytes; a large page of metrics has some 100 KiB.
	maxAnswer = 4 << 20
	// maxHeader is the most of an answer's header that is read in bytes.
	maxHeader = 64 << 10
)

// Config is how to ask.
type Config struct {
	Limit time.Duration // for one question, from dialing to the last byte; zero is one second.
}

// Prober asks engines.
type Prober struct {
	client *http.Client
	limit  time.Duration
}

// New returns a Prober.
func New(c Config) (*Prober, error) {
	if c.Limit < 0 {
		return nil, fmt.Errorf("probe limit %v is negative", c.Limit)
	}
	if c.Limit == 0 {
		c.Limit = defaultLimit
	}
	return &Prober{
		limit: c.Limit,
		client: &http.Client{
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DialContext:            (&net.Dialer{}).DialContext,
				DisableKeepAlives:      true, // A connection kept open would delay the engine's stop.
				DisableCompression:     true,
				MaxResponseHeaderBytes: maxHeader,
			},
		},
	}, nil
}

// answer is what an engine said.
type answer struct {
	status int
	body   []byte
}

// Broken is whether a question failed because its connection was refused or broke, as it does when its engine has just ended.
func Broken(err error) bool {
	return errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// get asks once. An answer larger than maxAnswer is an error.
func (p *Prober) get(ctx context.Context, at netip.AddrPort, path string) (answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.limit, fmt.Errorf("no answer within %v", p.limit))
	defer cancel()
	return p.send(ctx, at, path, nil)
}

// send asks once, with a GET or, if there is a body, with a POST of that JSON. Only ctx bounds how long it takes.
func (p *Prober) send(ctx context.Context, at netip.AddrPort, path string, body []byte) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+path, http.NoBody)
	if body != nil {
		req, err = http.NewRequestWithContext(ctx, http.MethodPost, "http://"+at.String()+path, bytes.NewReader(body))
	}
	if err != nil {
		return answer{}, fmt.Errorf("ask %s%s: %w", at, path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "roundhouse-probe")
	resp, err := p.client.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("ask %s%s: %w", at, path, causeOf(ctx, err))
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return answer{}, fmt.Errorf("ask %s%s: %w", at, path, causeOf(ctx, err))
	}
	if len(said) > maxAnswer {
		return answer{}, fmt.Errorf("ask %s%s: the answer has more than %d bytes", at, path, maxAnswer)
	}
	return answer{status: resp.StatusCode, body: said}, nil
}

// causeOf prefers why the context ended to the library's word for it.
func causeOf(ctx context.Context, err error) error {
	if ctx.Err() != nil && !errors.Is(err, context.Cause(ctx)) {
		return context.Cause(ctx)
	}
	return err
}
