// SPDX-License-Identifier: Apache-2.0

package daemonkit_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
)

func TestPlacesOf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		uid  int
		env  map[string]string
		want daemonkit.Places
	}{
		{
			"root, whose session does not count", 0, map[string]string{"XDG_RUNTIME_DIR": "/run/user/0", "XDG_STATE_HOME": "/s", "HOME": "/root"},
			daemonkit.Places{Run: "/run/roundhouse", State: "/var/lib/roundhouse"},
		},
		{
			"a user", 7, map[string]string{"XDG_RUNTIME_DIR": "/run/user/7", "XDG_STATE_HOME": "/h/state", "HOME": "/h"},
			daemonkit.Places{Run: "/run/user/7/roundhouse", State: "/h/state/roundhouse"},
		},
		{
			"a user without XDG", 7, map[string]string{"HOME": "/h"},
			daemonkit.Places{Run: "/tmp/roundhouse-7", State: "/h/.local/state/roundhouse"},
		},
		{
			"relative variables, which the XDG rules say to ignore", 7, map[string]string{"XDG_RUNTIME_DIR": "run", "XDG_STATE_HOME": "state", "HOME": "/h"},
			daemonkit.Places{Run: "/tmp/roundhouse-7", State: "/h/.local/state/roundhouse"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := daemonkit.PlacesOf(tt.uid, func(name string) string { return tt.env[name] })
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("places (-want +got):\n%s", diff)
			}
		})
	}
}

type config struct {
	Name  string   `yaml:"name"`
	Words []string `yaml:"words"`
	Group struct {
		Number int `yaml:"number"`
	} `yaml:"group"`
	Wait time.Duration `yaml:"wait"`
	On   bool          `yaml:"on"`
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	whole := config{Name: "x", Words: []string{"a", "b"}}
	whole.Group.Number = 3
	for _, tt := range []struct {
		name string
		text string
		want config
		says []string // what the error says; none: there is no error.
	}{
		{"everything", "name: x\nwords: [a, b]\ngroup:\n  number: 3\n", whole, nil},
		{"nothing", "", config{}, nil},
		{"a comment", "# nothing\n", config{}, nil},
		{"a marked document", "---\nname: x\n...\n", config{Name: "x"}, nil},
		{"an empty group", "name: x\ngroup:\n", config{Name: "x"}, nil},
		{"an alias", "words: &w [a]\nname: x\ngroup: {number: 0}\n", config{Name: "x", Words: []string{"a"}}, nil},
		{"a time", "wait: 90s\non: true\n", config{Wait: 90 * time.Second, On: true}, nil},
		{"an unknown key", "name: x\nnmae: y\n", config{}, []string{`line 2: unknown key "nmae"; there are group, name, on, wait, words`}},
		{"an unknown key of a group", "group:\n  numbr: 3\n", config{}, []string{`line 2: unknown key "numbr"; there are number`}},
		{"two unknown keys", "a: 1\nb: 2\n", config{}, []string{"line 1", "line 2"}},
		{"a key twice", "name: x\nname: y\n", config{}, []string{`line 2: key "name" is given twice`}},
		{"a wrong number", "group:\n  number: many\n", config{}, []string{`line 2: group.number: "many" is not a whole number`}},
		{"a wrong time", "wait: soon\n", config{}, []string{`line 1: wait: "soon" is not a time such as 30s`}},
		{"a wrong switch", "on: perhaps\n", config{}, []string{`line 1: on: "perhaps" is not true or false`}},
		{"a text in place of a list", "words: a\n", config{}, []string{`line 1: words: "a" is not a list`}},
		{"a list in place of a text", "name: [a]\n", config{}, []string{"line 1: name: is not a text"}},
		{"a text in place of a group", "group: 3\n", config{}, []string{"line 1: group: is not made of keys"}},
		{"no YAML", "\tname: x\n", config{}, []string{"token"}},
		{"an open list", "name: [\n", config{}, []string{"line 1"}},
		{"two documents", "name: x\n---\nname: y\n", config{}, []string{"line 2", "second document"}},
		{"a list", "- name\n", config{}, []string{"line 1: is not made of keys"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "c.conf")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := daemonkit.ReadFile[config](path)
			wantError(t, err, tt.says)
			if diff := cmp.Diff(tt.want, got); err == nil && diff != "" {
				t.Errorf("configuration (-want +got):\n%s", diff)
			}
			if err != nil && (!strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "yaml")) {
				t.Errorf("%v does not name the file, or names what reads it", err)
			}
		})
	}
}

// wantError fails unless err says all of these, or is nil if there are none.
func wantError(t *testing.T, err error, says []string) {
	t.Helper()
	if (err == nil) != (len(says) == 0) {
		t.Fatalf("error is %v, want one that says %q", err, says)
	}
	for _, word := range says {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
}

func TestReadFileThatIsNotThere(t *testing.T) {
	t.Parallel()
	if got, err := daemonkit.ReadFile[config](""); err != nil || got.Name != "" {
		t.Errorf("no file: %+v, %v", got, err)
	}
	_, err := daemonkit.ReadFile[config]("/nonexistent/c.yaml")
	wantError(t, err, []string{"--config", "/nonexistent/c.yaml"})
	_, err = daemonkit.ReadFile[config](t.TempDir())
	wantError(t, err, []string{"--config", "directory"})
}

func TestChecks(t *testing.T) {
	t.Parallel()
	listens := func(addresses ...string) error {
		_, err := daemonkit.ParseListens(addresses)
		return err
	}
	for _, tt := range []struct {
		name string
		err  error
		says []string
	}{
		{"addresses", listens("unix:///run/s", "127.0.0.1:9200", "tcp://[::1]:0"), nil},
		{"two bad addresses", listens("0.0.0.0:1", "127.0.0.1:1", "unix://s"), []string{"listen: host", "0.0.0.0", "listen: socket path"}},
		{"an absolute folder", daemonkit.CheckFolder("k", "/a"), nil},
		{"a relative folder", daemonkit.CheckFolder("k", "a"), []string{`k: "a"`}},
		{"no folder", daemonkit.CheckFolder("k", ""), []string{`k: ""`}},
		{"roots", daemonkit.CheckRoots("k", []string{"/a", "/b/c"}), nil},
		{"no roots", daemonkit.CheckRoots("k", nil), nil},
		{"two bad roots", daemonkit.CheckRoots("k", []string{"/", "/a", "b", "/.."}), []string{`k: "/"`, `k: "b"`, `k: "/.."`}},
		{"a level", daemonkit.CheckLevel("k", "debug"), nil},
		{"no level", daemonkit.CheckLevel("k", "loud"), []string{`k: "loud" is not debug, info, warn or error`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			wantError(t, tt.err, tt.says)
		})
	}
	got, err := daemonkit.ParseListens([]string{"unix:///run/s"})
	if diff := cmp.Diff([]serverkit.Listen{{Network: "unix", Name: "/run/s"}}, got); diff != "" || err != nil {
		t.Errorf("addresses: %v (-want +got):\n%s", err, diff)
	}
}
