// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// Files is a server of files, and of a package index, on loopback.
type Files struct {
	// URL is its address, without a slash at the end.
	URL string
	// Asked gets the path of each request for a file as it comes.
	Asked chan string
	// Left gets the path of each request whose caller went away while it waited at the gate.
	Left chan string

	gate chan struct{} // requests for files wait halfway until it is closed; nil means that they do not.
	// mu guards what follows.
	mu    sync.Mutex
	files map[string][]byte
	index map[string][]wheel
}

type wheel struct {
	Name   string            `json:"filename"`
	URL    string            `json:"url"`
	Hashes map[string]string `json:"hashes"`
}

// ServeFiles starts a server that ends with the test.
func ServeFiles(tb testing.TB) *Files {
	tb.Helper()
	f := &Files{
		Asked: make(chan string, 1000), Left: make(chan string, 1000), files: map[string][]byte{}, index: map[string][]wheel{},
	}
	server := httptest.NewServer(f)
	f.URL = server.URL
	tb.Cleanup(server.Close)
	return f
}

// Hold makes requests for files wait after the first half of their content until the returned function is called.
func (f *Files) Hold() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gate = make(chan struct{})
	return sync.OnceFunc(func() { close(f.gate) })
}

// Add serves data under a name and returns its address.
func (f *Files) Add(name string, data []byte) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files["/files/"+name] = data
	return f.URL + "/files/" + name
}

// AddWheel puts a package of one version into the index, which says that its digest is sha256.
func (f *Files) AddWheel(project, version, sha256 string, data []byte) {
	name := strings.ReplaceAll(project, "-", "_") + "-" + version + "-py3-none-any.whl"
	url := f.Add(name, data)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.index["/simple/"+project+"/"] = append(f.index["/simple/"+project+"/"], wheel{name, url, map[string]string{"sha256": sha256}})
}

// Index is the configuration of a provisioner that takes packages from here.
func (f *Files) Index() string { return "registries: {pypi: '" + f.URL + "/simple/'}\n" }

// ServeHTTP answers requests for files, ranges included, and for pages of the index.
func (f *Files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	data, found := f.files[r.URL.Path]
	wheels, indexed := f.index[r.URL.Path]
	gate := f.gate
	f.mu.Unlock()
	switch {
	case indexed:
		w.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
		_ = json.NewEncoder(w).Encode(map[string][]wheel{"files": wheels}) // the caller may be gone
	case !found:
		http.NotFound(w, r)
	case gate == nil:
		f.Asked <- r.URL.Path
		w.Header().Set("ETag", `"`+SHA256(data)+`"`)
		http.ServeContent(w, r, r.URL.Path, time.Time{}, bytes.NewReader(data))
	default:
		f.Asked <- r.URL.Path
		f.serveHalves(w, r, data, gate)
	}
}

func (f *Files) serveHalves(w http.ResponseWriter, r *http.Request, data []byte, gate <-chan struct{}) {
	w.Header().Set("ETag", `"`+SHA256(data)+`"`)
	_, _ = w.Write(data[:len(data)/2])
	_ = http.NewResponseController(w).Flush() // the caller may be gone
	select {
	case <-gate:
		_, _ = w.Write(data[len(data)/2:])
	case <-r.Context().Done():
		f.Left <- r.URL.Path
	}
}

// Zip is an archive of files by name. Names are taken as they are.
func Zip(tb testing.TB, files map[string][]byte) []byte {
	tb.Helper()
	var out bytes.Buffer
	archive := zip.NewWriter(&out)
	for name, data := range files {
		file, err := archive.Create(name)
		if err != nil {
			tb.Fatalf("write archive: %v", err)
		}
		if _, err := file.Write(data); err != nil {
			tb.Fatalf("write archive: %v", err)
		}
	}
	if err := archive.Close(); err != nil {
		tb.Fatalf("write archive: %v", err)
	}
	return out.Bytes()
}
