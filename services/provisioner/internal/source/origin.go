// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"unicode"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Fields of a spec that errors name.
const (
	fieldGitURL    = "engine.source_build.git.url"
	fieldGitRef    = "engine.source_build.git.ref"
	fieldBundleURI = "engine.source_build.bundle.uri"
	fieldBundleRef = "engine.source_build.bundle.ref"
)

// maxRefBytes is what the contract allows.
const maxRefBytes = 255

func (Remote) origin() {}
func (Bundle) origin() {}
func (Tree) origin()   {}

// address is a repository that git may be given.
type address struct {
	url      string
	protocol string // what git calls it: https, http or file
	path     string // of a file repository
}

// address checks the URL. Its errors are InvalidParams, or EngineNotFound for a folder that is not there.
func (r Remote) address() (address, error) {
	bad := func(problem string) (address, error) {
		return address{}, reason.New(reason.InvalidParams, fmt.Sprintf("%q %s", reason.Redact(r.URL), problem), reason.Field(fieldGitURL),
			reason.Remedy("give https://host/path, or file:/absolute/path of a repository below an allowed root"))
	}
	u, problem := parseURL(r.URL)
	if problem != "" {
		return bad(problem)
	}
	switch u.Scheme {
	case "http", "https":
		if u.Scheme == "http" && !loopback(u.Hostname()) {
			return bad("is not encrypted; http is only for loopback addresses")
		}
		if u.Hostname() == "" || len(u.Path) < 2 {
			return bad("is not an address of a repository")
		}
		return address{url: u.String(), protocol: u.Scheme}, nil
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return bad("is not an address of a repository on this machine")
		}
	default:
		return bad("is not an address that source may come from")
	}
	path := filepath.Clean(u.Path)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return address{}, reason.New(reason.EngineNotFound, fmt.Sprintf("no repository at %s", path), reason.Field(fieldGitURL),
			reason.Remedy("check the path on the provisioner's machine"))
	}
	if err != nil {
		return address{}, reason.New(reason.StorageFailed, "look at repository", reason.Field(fieldGitURL), reason.Cause(err),
			reason.Remedy("let the provisioner's user read the repository"))
	}
	if !info.IsDir() {
		return bad("is a file; a git bundle belongs into engine.source_build.bundle.uri")
	}
	return address{url: (&url.URL{Scheme: "file", Path: path}).String(), protocol: "file", path: path}, nil
}

// parseURL parses an address, or says what no address of a repository may have.
func parseURL(raw string) (u *url.URL, problem string) {
	if strings.ContainsFunc(raw, func(c rune) bool { return unicode.IsControl(c) || unicode.IsSpace(c) }) {
		return nil, "has a space or control character"
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Opaque != "":
		return nil, "is not an address of a repository"
	case u.User != nil:
		return nil, "holds a user name or password, which would be seen in logs"
	case u.RawQuery != "" || u.Fragment != "":
		return nil, "has a query or fragment"
	}
	return u, ""
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// checkRef refuses what git would not take for the name of a reference, or would take for something else.
func checkRef(ref, field string) error {
	bad := func(problem string) error {
		return reason.New(reason.InvalidParams, fmt.Sprintf("%q %s", ref, problem), reason.Field(field),
			reason.Remedy("give a tag, a branch or a full commit id"))
	}
	switch {
	case len(ref) > maxRefBytes:
		return bad(fmt.Sprintf("is longer than %d bytes", maxRefBytes))
	case strings.HasPrefix(ref, "-"):
		return bad("begins with a dash")
	case strings.ContainsFunc(ref, func(c rune) bool {
		return unicode.IsControl(c) || unicode.IsSpace(c) || strings.ContainsRune(`~^:?*[\`, c) || c == unicode.ReplacementChar
	}):
		return bad("has a character that no reference may have")
	case strings.Contains(ref, ".."), strings.Contains(ref, "@{"), strings.Contains(ref, "//"), strings.Contains(ref, "/."),
		strings.HasPrefix(ref, "."), strings.HasPrefix(ref, "/"), ref == "@",
		strings.HasSuffix(ref, "/"), strings.HasSuffix(ref, "."), strings.HasSuffix(ref, ".lock"):
		return bad("is not the name of a reference")
	}
	return nil
}

// isCommit tells whether ref is a full commit id, of a SHA-1 or a SHA-256 repository.
func isCommit(ref string) bool {
	return regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`).MatchString(ref)
}
