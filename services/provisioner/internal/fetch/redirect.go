// SPDX-License-Identifier: Apache-2.0

package fetch

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// reach tells how far from the public network an address lies.
type reach int

const (
	reachPublic reach = iota
	reachPrivate
	reachLinkLocal
	reachLoopback
)

// guardedClient is a copy of client, or a new one, that follows only redirects that mayLead allows.
func guardedClient(client *http.Client) *http.Client {
	guarded := http.Client{}
	if client != nil {
		guarded = *client
	} else {
		guarded.Transport = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:   tlsTimeout,
			MaxIdleConns:          idleConnectionsLimit,
			IdleConnTimeout:       defaultStallTimeout,
			ExpectContinueTimeout: tlsTimeout,
			ForceAttemptHTTP2:     true,
			DisableCompression:    true,
		}
	}
	guarded.CheckRedirect = func(next *http.Request, before []*http.Request) error {
		if len(before) >= redirectLimit {
			return reason.New(reason.FetchFailed, fmt.Sprintf("%s redirects more than %d times", redact(before[0].URL.String()), redirectLimit),
				reason.RetryAfter(0), reason.Remedy("name the final address itself"))
		}
		return mayLead(next.Context(), before[0].URL, next.URL)
	}
	return &guarded
}

// mayLead refuses an address that a server of the public network must not make this machine ask: a private one, one of
// the link (where cloud machines keep their credentials), loopback, or one that is not encrypted. It looks at the
// addresses that the names have now; it does not stop a name that changes its address in between.
func mayLead(ctx context.Context, from, to *url.URL) error {
	origin := reachOf(ctx, from.Hostname())
	target := reachOf(ctx, to.Hostname())
	encrypted := to.Scheme == schemeHTTPS || to.Scheme == schemeHTTP && target == reachLoopback
	allowed := origin == reachLoopback || target == reachPublic || target == reachPrivate && origin == reachPrivate || hostPort(from) == hostPort(to)
	if encrypted && allowed {
		return nil
	}
	return reason.New(reason.UntrustedArtifact, fmt.Sprintf("%s leads to %s, which is refused: it is unencrypted or not in the public network",
		redact(from.String()), redact(to.String())), reason.Remedy("name the final address itself, if it is to be trusted"))
}

// reachOf returns the most inner reach of all addresses of a host. A name that cannot be looked up is public: then only a
// proxy can ask it.
func reachOf(ctx context.Context, host string) reach {
	if isLoopback(host) {
		return reachLoopback
	}
	addresses := []netip.Addr{}
	if address, err := netip.ParseAddr(host); err == nil {
		addresses = append(addresses, address)
	} else if found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host); err == nil {
		addresses = found
	}
	result := reachPublic
	for _, address := range addresses {
		result = max(result, addressReach(address.Unmap()))
	}
	return result
}

func addressReach(address netip.Addr) reach {
	carrier := netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, 0, 0}), 10)
	switch {
	case address.IsLoopback(), address.IsUnspecified():
		return reachLoopback
	case address.IsLinkLocalUnicast(), address.IsMulticast():
		return reachLinkLocal
	case address.IsPrivate(), carrier.Contains(address):
		return reachPrivate
	}
	return reachPublic
}
