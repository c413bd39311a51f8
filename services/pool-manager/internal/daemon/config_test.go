// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/roundhouse-llm/roundhouse/pkg/daemonkit"
	"github.com/roundhouse-llm/roundhouse/pkg/testkit"
)

// file returns the path of a configuration file with this text.
func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// home is where things are by default in these tests.
func home() daemonkit.Places { return daemonkit.Places{Run: "/r", State: "/s"} }

func TestBadConfiguration(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		text string
		args []string
		want []string
	}{
		{name: "an unknown key", text: "state_dir: /s\nstore_root: /t\n", want: []string{"line 2", "store_root"}},
		{name: "an unknown key of a group", text: "shutdown:\n  deadline: 1s\n", want: []string{"line 2", "deadline"}},
		{name: "a wrong type", text: "listen: 5\n", want: []string{"line 1", "5"}},
		{name: "a duration without unit", text: "shutdown:\n  drain_deadline: 5x\n", want: []string{"5x"}},
		{
			name: "everything that is wrong",
			text: "listen: [\"0.0.0.0:1\", nowhere]\nstate_dir: s\nprovisioner: http://p\nstore_roots: [\"/\", r]\nhandoff_dir: h\n" +
				"log_level: loud\nshutdown:\n  drain_deadline: -1s\n",
			want: []string{
				`listen: host "0.0.0.0"`, `listen: "nowhere"`, `state_dir: "s"`, `provisioner: unknown scheme "http"`,
				`store_roots: "/"`, `store_roots: "r"`, `handoff_dir: "h"`, `log_level: "loud"`, "shutdown.drain_deadline: -1s",
			},
		},
		{name: "a missing file", args: []string{"--config", "/nonexistent.yaml"}, want: []string{"--config", "/nonexistent.yaml"}},
		{name: "an unknown flag", args: []string{"--nope"}, want: []string{"nope", "--help"}},
		{name: "an argument", args: []string{"serve"}, want: []string{`"serve"`}},
		{name: "an address of the network", args: []string{"--listen", "tcp://10.0.0.1:9200"}, want: []string{"listen", "10.0.0.1", "127.0.0.1"}},
		{name: "an address of every network", args: []string{"--listen", ":9200"}, want: []string{"listen"}},
		{name: "a provisioner of the network", args: []string{"--provisioner", "10.0.0.1:1"}, want: []string{"provisioner", "10.0.0.1"}},
		{name: "a state directory that is not absolute", args: []string{"--state-dir", "s"}, want: []string{`state_dir: "s"`}},
		{name: "a root that is not absolute", args: []string{"--store-root", "r"}, want: []string{`store_roots: "r"`}},
		{name: "a level", args: []string{"--log-level", "fatal"}, want: []string{`log_level: "fatal"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := tt.args
			if tt.text != "" {
				args = []string{"--config", file(t, tt.text)}
			}
			_, err := configure("v", args, home(), &bytes.Buffer{})
			if err == nil {
				t.Fatal("configure succeeded")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the message does not say %q:\n%v", want, err)
				}
			}
			if lines := strings.Count(err.Error(), "\n") + 1; len(tt.want) > 4 && lines != len(tt.want) {
				t.Errorf("%d lines, want %d:\n%v", lines, len(tt.want), err)
			}
		})
	}
}

func TestConfigure(t *testing.T) {
	t.Parallel()
	full := "listen: [\"127.0.0.1:1\"]\nstate_dir: /file\nprovisioner: unix:///file/p\nstore_roots: [/file/r]\nhandoff_dir: /file/h\n" +
		"log_level: warn\nshutdown:\n  drain_deadline: 3s\n"
	defaults := Config{
		Listen: []string{"unix:///r/pool-managerd.sock"}, StateDir: "/s/pool-manager", Provisioner: "unix:///r/engine-provisioner.sock",
		StoreRoots: []string{"/s/provisioner"}, HandoffDir: "/s/pool-manager/handoff", LogLevel: "info",
		Shutdown: Shutdown{Engines: "drain", DrainDeadline: 30 * time.Second}, Restore: Restore{Strays: "end"},
	}
	moved := defaults
	moved.StateDir, moved.HandoffDir = "/elsewhere", "/elsewhere/handoff"
	fromFile := Config{
		Listen: []string{"127.0.0.1:1"}, StateDir: "/file", Provisioner: "unix:///file/p", StoreRoots: []string{"/file/r"},
		HandoffDir: "/file/h", LogLevel: "warn", Shutdown: Shutdown{Engines: "drain", DrainDeadline: 3 * time.Second}, Restore: Restore{Strays: "end"},
	}
	flags := []string{
		"--listen", "unix:///flag/a", "--listen", "localhost:2", "--state-dir", "/flag", "--provisioner", "127.0.0.1:3",
		"--store-root", "/flag/r", "--store-root", "/flag/q", "--log-level", "debug",
	}
	fromFlags := Config{
		Listen: []string{"unix:///flag/a", "localhost:2"}, StateDir: "/flag", Provisioner: "127.0.0.1:3", StoreRoots: []string{"/flag/r", "/flag/q"},
		HandoffDir: "/file/h", LogLevel: "debug", Shutdown: Shutdown{Engines: "drain", DrainDeadline: 3 * time.Second}, Restore: Restore{Strays: "end"},
	}
	for _, tt := range []struct {
		name string
		text string
		args []string
		want Config
	}{
		{"nothing", "", nil, defaults},
		{"an empty file", "# nothing\n", nil, defaults},
		{"zero is the default", "shutdown: {drain_deadline: 0s}\nlisten: []\n", nil, defaults},
		{"the handoff files go with the state", "", []string{"--state-dir", "/elsewhere"}, moved},
		{"a file", full, nil, fromFile},
		{"flags and a file", full, flags, fromFlags},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			args := tt.args
			if tt.text != "" {
				args = append(args, "--config", file(t, tt.text))
			}
			got, err := configure("v", args, home(), &bytes.Buffer{})
			if diff := cmp.Diff(tt.want, got); diff != "" || err != nil {
				t.Errorf("configuration: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	places := daemonkit.PlacesOf(0, func(string) string { return "" })
	if _, err := configure("v1.2.3", []string{"--help"}, places, &out); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
	testkit.Golden(t, "help.txt", out.Bytes())
	out.Reset()
	if _, err := configure("v1.2.3", []string{"--version"}, places, &out); !errors.Is(err, flag.ErrHelp) || out.String() != "v1.2.3\n" {
		t.Errorf("--version: %v, %q", err, &out)
	}
}
