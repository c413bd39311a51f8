// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// longestAskedWait bounds what a server may ask for with Retry-After.
const longestAskedWait = 30 * time.Second

// policy paces the attempts of one transfer: growing pauses, and an end when several attempts in a row brought nothing.
type policy struct {
	pauses   *backoff.ExponentialBackOff
	attempts int
	offset   func() int64

	failures int
	reached  int64
	// least is what the server asked for.
	least time.Duration
}

func (f *Fetcher) newPolicy(offset func() int64) *policy {
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = f.cfg.FirstDelay, max(defaultLastDelay, f.cfg.FirstDelay)
	return &policy{pauses: pauses, attempts: f.cfg.Attempts, offset: offset, reached: offset()}
}

// NextBackOff returns the pause before the next attempt, or backoff.Stop.
func (p *policy) NextBackOff() time.Duration {
	if now := p.offset(); now > p.reached {
		p.failures, p.reached = 0, now
		p.pauses.Reset()
	}
	p.failures++
	if p.failures >= p.attempts {
		return backoff.Stop
	}
	return max(p.pauses.NextBackOff(), p.least)
}

// Reset begins again with the shortest pause.
func (p *policy) Reset() {
	p.failures = 0
	p.pauses.Reset()
}

func (f *Fetcher) noteRetry(a artifact) backoff.Notify {
	return func(err error, pause time.Duration) {
		f.cfg.Log.Warn("download interrupted, trying again", zap.String("address", redact(a.address)), zap.Duration("pause", pause),
			zap.String("error", reason.Redact(err.Error())))
	}
}

// retriable keeps a Permanent error and one of the redirect policy permanent, and names a stall.
func retriable(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStalled) {
		return errStalled
	}
	if typed, ok := reason.As(err); ok {
		return backoff.Permanent(typed)
	}
	return err
}

// statusError judges an answer without content: what may pass is retried, the rest is permanent.
func statusError(response *http.Response, address string, missing reason.Reason) (wait time.Duration, err error) {
	status := response.StatusCode
	message := fmt.Sprintf("%s answered %s", redact(address), response.Status)
	switch {
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= http.StatusInternalServerError:
		if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
			wait = min(time.Duration(seconds)*time.Second, longestAskedWait)
		}
		return wait, errors.New(message)
	case status == http.StatusNotFound, status == http.StatusGone:
		return 0, backoff.Permanent(reason.New(missing, message, reason.Meta("status", status),
			reason.Remedy("check the name, the version and the address")))
	}
	return 0, backoff.Permanent(reason.New(reason.FetchFailed, message, reason.Meta("status", status),
		reason.RetryAfter(0), reason.Remedy("check that this machine may read the address")))
}

// unreachable types the last error of attempts that brought nothing. Errors that are typed already stay as they are.
func unreachable(address string, err error) error {
	if permanent, ok := errors.AsType[*backoff.PermanentError](err); ok {
		err = permanent.Err
	}
	if _, typed := reason.As(err); typed {
		return err
	}
	return reason.New(reason.FetchFailed, redact(address)+" cannot be read", reason.Cause(err),
		reason.Remedy("check the network, the proxy and the registry settings; what was downloaded is kept and resumed"))
}
