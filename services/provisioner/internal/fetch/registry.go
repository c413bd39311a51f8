// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/archive"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// find asks a registry which file a package request means.
type find func(ctx context.Context, req Request) (artifact, error)

// fetchPackage gets the package file of a request and, when it names a member, that one file out of it.
func (f *Fetcher) fetchPackage(ctx context.Context, req Request, find find, progress func(done, total int64)) (Result, error) {
	if req.Ref.Member != "" {
		return f.fetchMember(ctx, req, find, progress)
	}
	if req.Archive == "" {
		req.Archive = req.Want
	}
	a, err := find(ctx, req)
	if err != nil {
		return Result{}, err
	}
	blob, err := f.download(ctx, a, progress)
	if err != nil {
		return Result{}, err
	}
	result := Result{Blob: blob, Name: a.name}
	return result, f.remember(f.requestKey(req), result)
}

func (f *Fetcher) fetchMember(ctx context.Context, req Request, find find, progress func(done, total int64)) (Result, error) {
	whole := req
	whole.Ref.Member, whole.Want = "", ""
	pack, ok, err := f.kept(ctx, whole, progress)
	if err != nil {
		return Result{}, err
	}
	if !ok {
		if pack, err = f.fetchPackage(ctx, whole, find, progress); err != nil {
			return Result{}, err
		}
	}
	blob, err := f.extract(ctx, req, pack.Blob)
	if err != nil {
		return Result{}, err
	}
	result := Result{Blob: blob, Name: req.Ref.Base(), Archive: pack.Blob.Digest}
	return result, f.remember(f.requestKey(req), result)
}

// extract makes one file of a package a blob of its own.
func (f *Fetcher) extract(ctx context.Context, req Request, pack store.Blob) (store.Blob, error) {
	options := archive.Options{}
	if req.Ref.Scheme == SchemeNPM {
		options.Strip = 1 // every npm package has one folder around it
	}
	opened, err := archive.Open(pack.Path, options)
	if err != nil {
		return store.Blob{}, err
	}
	defer func() { _ = opened.Close() }()
	partial, err := f.cfg.Store.Partial(ctx, fmt.Sprintf("member %s of %s", req.Ref.Member, pack.Digest))
	if err != nil {
		return store.Blob{}, err
	}
	defer func() { _ = partial.Close() }()
	if err := partial.Reset(); err != nil {
		return store.Blob{}, err
	}
	if _, err := opened.Member(ctx, req.Ref.Member, partial); err != nil {
		return store.Blob{}, errors.Join(err, partial.Discard())
	}
	return partial.Commit(ctx, req.Want)
}

// npmVersion is what an npm registry tells about one version of a package.
type npmVersion struct {
	Dist struct {
		Tarball   string `json:"tarball"`
		Integrity string `json:"integrity"`
	} `json:"dist"`
}

func (f *Fetcher) findTarball(ctx context.Context, req Request) (artifact, error) {
	address := f.cfg.NPMRegistryURL + strings.ReplaceAll(req.Ref.Package, "/", "%2f") + "/" + url.PathEscape(req.Ref.Version)
	var version npmVersion
	if err := f.getJSON(ctx, address, "application/json", req.Missing, &version); err != nil {
		return artifact{}, err
	}
	tarball, err := f.fileAddress(ctx, address, version.Dist.Tarball)
	if err != nil {
		return artifact{}, err
	}
	a := artifact{name: baseName(req.Ref.Package) + "-" + req.Ref.Version + ".tgz", address: tarball, want: req.Archive, missing: req.Missing}
	for _, digest := range strings.Fields(version.Dist.Integrity) {
		text, ok := strings.CutPrefix(digest, "sha512-")
		if raw, err := base64.StdEncoding.DecodeString(text); ok && err == nil && len(raw) == 64 {
			a.integrity = text
		}
	}
	if a.integrity == "" && a.want == "" {
		return artifact{}, reason.New(reason.UntrustedArtifact, fmt.Sprintf("the registry gives no sha512 for %s", req.Ref),
			reason.Remedy("give the sha256 of the package file"))
	}
	return a, nil
}

// fileAddress resolves the address of a file that the answer of a registry names, and checks that it may lead there.
func (f *Fetcher) fileAddress(ctx context.Context, registry, named string) (string, error) {
	from, err := url.Parse(registry)
	if err != nil {
		return "", reason.New(reason.InvalidParams, fmt.Sprintf("registry address %q cannot be read", redact(registry)), reason.Remedy("check the registry settings"))
	}
	to, err := from.Parse(named)
	if err != nil || named == "" || to.Host == "" {
		return "", reason.New(reason.UntrustedArtifact, fmt.Sprintf("%s names a file at no address (%.200q)", redact(registry), reason.Redact(named)),
			reason.Remedy("check the registry settings"))
	}
	to.Fragment, to.RawFragment = "", ""
	if err := mayLead(ctx, from, to); err != nil {
		return "", err
	}
	return withUser(to, from), nil
}

// getJSON asks a registry and decodes its answer into out, trying again what may pass.
func (f *Fetcher) getJSON(ctx context.Context, address, accept string, missing reason.Reason, out any) error {
	a := artifact{address: address, missing: missing}
	policy := f.newPolicy(func() int64 { return 0 })
	body, err := backoff.Retry(ctx, func() ([]byte, error) {
		body, wait, err := f.getOnce(ctx, a, accept)
		policy.least = wait
		return body, err
	}, backoff.WithBackOff(policy), backoff.WithMaxElapsedTime(0), backoff.WithNotify(f.noteRetry(a)))
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return unreachable(address, err)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return reason.New(reason.FetchFailed, redact(address)+" answered something else than JSON", reason.Cause(err),
			reason.Remedy("check the registry address: it must speak the registry's JSON interface"))
	}
	return nil
}

func (f *Fetcher) getOnce(ctx context.Context, a artifact, accept string) (body []byte, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, f.cfg.StallTimeout, errStalled)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, a.address, nil)
	if err != nil {
		return nil, 0, backoff.Permanent(err)
	}
	request.Header.Set("Accept", accept)
	response, err := f.client.Do(request)
	if err != nil {
		return nil, 0, retriable(ctx, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		wait, err := statusError(response, a.address, a.missing)
		return nil, wait, err
	}
	body, err = io.ReadAll(io.LimitReader(response.Body, maxMetadataBytes+1))
	if err != nil {
		return nil, 0, retriable(ctx, err)
	}
	if len(body) > maxMetadataBytes {
		return nil, 0, backoff.Permanent(reason.New(reason.LimitExceeded, fmt.Sprintf("%s answers more than %d bytes", redact(a.address), maxMetadataBytes),
			reason.Remedy("check the registry settings")))
	}
	return bytes.TrimSpace(body), 0, nil
}
