// SPDX-License-Identifier: Apache-2.0

package fetch_test

import (
	"net/http"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
	"github.com/roundhouse-llm/roundhouse/services/provisioner/internal/fetch"
)

// An address may carry credentials in its user info and its query: neither may be in an error or a log.
func TestSecretsStayHere(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		faults []fault
	}{
		{name: "unreachable", faults: []fault{hangUp, hangUp, hangUp, hangUp}},
		{name: "gone", faults: []fault{answer(404, "", "", "")}},
		{name: "forbidden", faults: []fault{answer(403, "", "", "")}},
		{name: "redirected", faults: []fault{answer(302, "Location", "http://203.0.113.1/x?sig=hunter2", "")}},
		{name: "wrong content"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			core, lines := observer.New(zapcore.DebugLevel)
			f, s := newFixture(t, func(cfg *fetch.Config) { cfg.Log = zap.New(core) }), newServer(t, body, test.faults...)
			_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, s.URL+"/m.gguf?X-Amz-Signature=hunter2"), Want: sha(other), Field: "uri"}, nil)
			if err == nil {
				t.Fatal("fetched")
			}
			if test.name == "unreachable" && lines.Len() == 0 {
				t.Error("no retry was logged")
			}
			texts := []string{err.Error(), reason.Status(err).String()}
			for _, line := range lines.All() {
				for key, value := range line.ContextMap() {
					if text, ok := value.(string); ok {
						texts = append(texts, key+"="+text)
					}
				}
			}
			for _, text := range texts {
				if strings.Contains(text, "hunter2") || strings.Contains(text, "Signature") {
					t.Errorf("it says %s", text)
				}
			}
		})
	}
}

// hangUp answers nothing.
func hangUp(w http.ResponseWriter, _ *http.Request, _ *server) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	_ = conn.Close()
}

func TestRegistryCredentialsStayHere(t *testing.T) {
	t.Parallel()
	s := newServer(t, body, answer(403, "", "", ""))
	f := newFixture(t, func(cfg *fetch.Config) {
		cfg.PyPIIndexURL = strings.Replace(s.URL, "://", "://user:hunter2@", 1) + "/simple"
	})
	_, err := f.Fetch(t.Context(), fetch.Request{Ref: mustParse(t, "pypi:a==1"), Field: "uri"}, nil)
	if reason.Of(err) != reason.FetchFailed || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "user") {
		t.Errorf("got %v, want FETCH_FAILED without credentials", err)
	}
}
