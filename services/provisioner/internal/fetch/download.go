// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"net/url"

	"github.com/cenkalti/backoff/v5"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

const (
	totalResumeTries  = 1000 // however slowly a server sends, it is not asked more often than this for one file
	integrityRecordID = "integrity "
)

// artifact is one file at an address and how to know that it is the right one: by want, by integrity, or by both.
type artifact struct {
	name    string
	address string
	want    store.Digest
	// integrity is the base64 of a sha512, "" when there is none.
	integrity string
	missing   reason.Reason
}

// key names the partial download: the same content from another mirror goes on where the first was cut.
func (a artifact) key() string {
	switch {
	case a.want != "":
		return string(a.want)
	case a.integrity != "":
		return "sha512-" + a.integrity
	}
	return a.address
}

var (
	errStalled  = errors.New("the server sent nothing for too long")
	errMismatch = errors.New("content is not what the registry states")
)

// download returns the blob of an artifact. Content that was put together from several answers and has a wrong digest is
// downloaded once more from its first byte before it is called wrong.
func (f *Fetcher) download(ctx context.Context, a artifact, progress func(done, total int64)) (store.Blob, error) {
	select {
	case f.downloads <- struct{}{}:
		defer func() { <-f.downloads }()
	case <-ctx.Done():
		return store.Blob{}, context.Cause(ctx)
	}
	blob, stitched, err := f.downloadOnce(ctx, a, progress)
	if stitched && reason.Of(err) == reason.DigestMismatch {
		blob, _, err = f.downloadOnce(ctx, a, progress)
	}
	return blob, err
}

func (f *Fetcher) downloadOnce(ctx context.Context, a artifact, progress func(done, total int64)) (blob store.Blob, stitched bool, err error) {
	integrity := sha512.New()
	partial, err := f.cfg.Store.Partial(ctx, a.key(), integrity)
	if err != nil {
		return store.Blob{}, false, err
	}
	defer func() { _ = partial.Close() }()
	if blob, ok := f.arrived(a); ok {
		return blob, false, partial.Discard()
	}
	transfer := &transfer{fetcher: f, artifact: a, partial: partial, progress: progress, stitched: partial.Offset() > 0}
	policy := f.newPolicy(partial.Offset)
	_, err = backoff.Retry(ctx, func() (struct{}, error) {
		wait, err := transfer.attempt(ctx)
		policy.least = wait
		return struct{}{}, err
	}, backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(0), backoff.WithMaxTries(totalResumeTries), backoff.WithNotify(f.noteRetry(a)))
	if ctx.Err() != nil && err != nil {
		return store.Blob{}, false, context.Cause(ctx)
	}
	if err != nil {
		return store.Blob{}, false, unreachable(a.address, err)
	}
	if err := checkIntegrity(a, integrity); err != nil {
		return store.Blob{}, transfer.stitched, errors.Join(err, partial.Discard())
	}
	blob, err = partial.Commit(ctx, a.want)
	if err == nil && a.want == "" {
		err = f.cfg.Store.PutResolution(integrityRecordID+a.key(), string(blob.Digest))
	}
	return blob, transfer.stitched, err
}

// arrived looks for what another caller downloaded while this one waited for its turn.
func (f *Fetcher) arrived(a artifact) (store.Blob, bool) {
	digest := a.want
	if digest == "" {
		known, err := f.cfg.Store.Resolution(integrityRecordID + a.key())
		if err != nil {
			return store.Blob{}, false
		}
		digest = store.Digest(known)
	}
	blob, err := f.cfg.Store.Blob(digest)
	return blob, err == nil
}

func checkIntegrity(a artifact, h hash.Hash) error {
	if a.integrity == "" {
		return nil
	}
	got := base64.StdEncoding.EncodeToString(h.Sum(nil))
	if subtle.ConstantTimeCompare([]byte(got), []byte(a.integrity)) == 1 {
		return nil
	}
	return reason.New(reason.DigestMismatch, fmt.Sprintf("%s has sha512-%s, the registry states sha512-%s", a.name, got, a.integrity),
		reason.Meta("want", "sha512-"+a.integrity), reason.Meta("got", "sha512-"+got), reason.Cause(errMismatch),
		reason.Remedy("try again; if it stays, the registry or a proxy before it serves a wrong file"))
}

// withUser gives address the credentials of a registry that lies on the same server.
func withUser(address, registry *url.URL) string {
	if address.User == nil && registry.User != nil && address.Scheme == registry.Scheme && hostPort(address) == hostPort(registry) {
		address.User = registry.User
	}
	return address.String()
}
