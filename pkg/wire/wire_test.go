// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/pkg/wire"
)

func TestParseAddress(t *testing.T) {
	t.Parallel()
	longest := "/" + strings.Repeat("x", 106)
	tests := []struct {
		name, text string
		want       string // String of the result; empty if it must be refused
	}{
		{"socket", "unix:///run/roundhouse/p.sock", "unix:///run/roundhouse/p.sock"},
		{"socket path is cleaned", "unix:///run//x/../p.sock", "unix:///run/p.sock"},
		{"socket path is taken as it stands", "unix:///run/a%20b?c#d", "unix:///run/a%20b?c#d"},
		{"longest socket path", "unix://" + longest, "unix://" + longest},
		{"socket path too long", "unix://" + longest + "x", ""},
		{"relative socket path", "unix://run/p.sock", ""},
		{"socket path of one slash", "unix:/run/p.sock", ""},
		{"abstract socket", "unix://@name", ""},
		{"folder", "unix:///run/", ""},
		{"root", "unix:///", ""},
		{"NUL", "unix:///run/a\x00b", ""},
		{"tcp", "tcp://127.0.0.1:9200", "tcp://127.0.0.1:9200"},
		{"bare", "127.0.0.1:9200", "tcp://127.0.0.1:9200"},
		{"any loopback address", "127.1.2.3:1", "tcp://127.1.2.3:1"},
		{"IPv6", "tcp://[::1]:0", "tcp://[::1]:0"},
		{"IPv4 in IPv6", "tcp://[::ffff:127.0.0.1]:5", "tcp://127.0.0.1:5"},
		{"localhost", "localhost:7", "tcp://127.0.0.1:7"},
		{"every interface", "tcp://0.0.0.0:9200", ""},
		{"every IPv6 interface", "tcp://[::]:9200", ""},
		{"no host", ":9200", ""},
		{"host name", "tcp://example.com:9200", ""},
		{"name that begins like loopback", "tcp://127.0.0.1.example.com:9200", ""},
		{"private address", "tcp://10.0.0.1:9200", ""},
		{"IPv4 in IPv6, elsewhere", "tcp://[::ffff:10.0.0.1]:5", ""},
		{"zone", "tcp://[::1%lo]:5", ""},
		{"decimal address", "tcp://2130706433:80", ""},
		{"no port", "tcp://127.0.0.1", ""},
		{"empty port", "127.0.0.1:", ""},
		{"named port", "127.0.0.1:http", ""},
		{"port too large", "127.0.0.1:65536", ""},
		{"negative port", "127.0.0.1:-1", ""},
		{"other scheme", "http://127.0.0.1:80", ""},
		{"path after the port", "tcp://127.0.0.1:80/x", ""},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := wire.ParseAddress("listen", tt.text)
			if tt.want != "" {
				if err != nil || got.String() != tt.want {
					t.Fatalf("ParseAddress(%q) = %v, %v; want %s", tt.text, got, err, tt.want)
				}
				if again, err := wire.ParseAddress("listen", got.String()); err != nil || again != got {
					t.Errorf("ParseAddress(%q) = %v, %v; want the same again", got, again, err)
				}
				return
			}
			refused, ok := reason.As(err)
			if !ok || refused.Reason != reason.InvalidParams || refused.Remedy == "" {
				t.Fatalf("ParseAddress(%q) = %v, %v; want INVALID_PARAMS with a remedy", tt.text, got, err)
			}
			if diff := cmp.Diff([]reason.FieldViolation{{Name: "listen"}}, refused.Fields); diff != "" {
				t.Errorf("fields (-want +got):\n%s", diff)
			}
		})
	}
}
