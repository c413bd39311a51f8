// SPDX-License-Identifier: Apache-2.0

// Package wire holds what both ends of a connection must agree on: how addresses are written, which of them may be used
// at all, and how large a message may be.
//
// Roundhouse is reached over a Unix socket or over loopback TCP. Any other address is refused here, before anything is
// opened. Nothing here touches the network or the file system.
package wire

import (
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Sizes of messages.
const (
	// MaxRequestBytes is the largest request. A spec with every flag at its limit is about 0.5 MiB.
	MaxRequestBytes = 4 << 20
	// MaxResponseBytes is the largest response: a full page of 1000 pools with their last log lines.
	MaxResponseBytes = 16 << 20
)

// maxSocketPathBytes is what fits a sockaddr_un, whose 108 bytes end with a NUL.
const maxSocketPathBytes = 107

// Network is how an address is reached.
type Network string

// The networks, as package net names them.
const (
	Unix Network = "unix"
	TCP  Network = "tcp"
)

// Address is a Unix socket or a port on loopback. Make it with ParseAddress.
type Address struct {
	// Network says what Name is.
	Network Network
	// Name is the absolute path of a socket, or a loopback IP and a port such as 127.0.0.1:9200.
	Name string
}

// String writes the address so that ParseAddress reads it back.
func (a Address) String() string { return string(a.Network) + "://" + a.Name }

// ParseAddress reads unix:///absolute/path, tcp://IP:port or IP:port. The IP is a literal loopback address or
// "localhost", which is 127.0.0.1 and is not looked up; the path is taken as it stands. Everything else is refused with
// InvalidParams for the field.
func ParseAddress(field, text string) (Address, error) {
	scheme, rest, found := strings.Cut(text, "://")
	if !found {
		scheme, rest = string(TCP), text
	}
	switch Network(scheme) {
	case Unix:
		return parseSocket(field, rest)
	case TCP:
		return parsePort(field, text, rest)
	}
	return Address{}, refuse(field, "unknown scheme "+strconv.Quote(scheme), "write unix:///path or tcp://127.0.0.1:PORT")
}

func parseSocket(field, name string) (Address, error) {
	switch {
	case !path.IsAbs(name):
		return Address{}, refuse(field, "socket path "+strconv.Quote(name)+" is not absolute",
			"write unix:// and a path that begins with a slash")
	case strings.ContainsRune(name, 0):
		return Address{}, refuse(field, "socket path has a NUL byte", "remove it")
	case strings.HasSuffix(name, "/"), strings.HasSuffix(name, "/."), strings.HasSuffix(name, "/.."):
		return Address{}, refuse(field, "socket path "+strconv.Quote(name)+" is a folder", "add a file name")
	case len(name) > maxSocketPathBytes:
		return Address{}, refuse(field, "socket path has "+strconv.Itoa(len(name))+" bytes",
			"use a path of at most "+strconv.Itoa(maxSocketPathBytes)+" bytes")
	}
	return Address{Network: Unix, Name: path.Clean(name)}, nil
}

func parsePort(field, text, rest string) (Address, error) {
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return Address{}, refuse(field, strconv.Quote(text)+" is neither unix:///path nor IP:port",
			"write unix:///path or tcp://127.0.0.1:PORT")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return Address{}, refuse(field, "port "+strconv.Quote(port)+" is not a number from 0 to 65535", "give such a number")
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Unmap().IsLoopback() || ip.Zone() != "" {
		return Address{}, refuse(field, "host "+strconv.Quote(host)+" is not a loopback address: there is no encryption here",
			"use 127.0.0.1, [::1] or a Unix socket")
	}
	return Address{Network: TCP, Name: net.JoinHostPort(ip.Unmap().String(), port)}, nil
}

func refuse(field, message, remedy string) error {
	return reason.New(reason.InvalidParams, message, reason.Field(field), reason.Remedy(remedy))
}
