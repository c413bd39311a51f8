// SPDX-License-Identifier: Apache-2.0

package daemonkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"

	"go.yaml.in/yaml/v3"

	"github.com/roundhouse-llm/roundhouse/pkg/serverkit"
)

// Places are the folders that the daemons of one user use unless told otherwise.
type Places struct {
	// Run is for sockets.
	Run string
	// State is for what must be remembered.
	State string
}

// PlacesOf returns the places of a user: those of the system for root, else those of the XDG base directories.
func PlacesOf(uid int, getenv func(string) string) Places {
	if uid == 0 {
		return Places{Run: "/run/roundhouse", State: "/var/lib/roundhouse"}
	}
	p := Places{Run: fmt.Sprintf("/tmp/roundhouse-%d", uid), State: filepath.Join(getenv("HOME"), ".local/state/roundhouse")}
	if dir := getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		p.Run = filepath.Join(dir, "roundhouse")
	}
	if dir := getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		p.State = filepath.Join(dir, "roundhouse")
	}
	return p
}

// ReadFile reads a configuration file, which is one YAML document or empty; no path is an empty file. C is a struct whose
// fields have their keys as yaml tags. A key that C does not have, a value of another type and a second document are errors
// that name the line.
func ReadFile[C any](path string) (C, error) {
	var config C
	if path == "" {
		return config, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return config, fmt.Errorf("--config: %w", err)
	}
	if err := decodeOne(yaml.NewDecoder(bytes.NewReader(text)), reflect.ValueOf(&config).Elem()); err != nil {
		return config, fmt.Errorf("--config %s: %w", path, err)
	}
	return config, nil
}

// ParseListens reads addresses to serve on. The error holds one for each bad address, which names the key listen.
func ParseListens(addresses []string) ([]serverkit.Listen, error) {
	listens := make([]serverkit.Listen, len(addresses))
	var errs []error
	for i, address := range addresses {
		listen, err := serverkit.ParseListen(address)
		listens[i] = listen
		errs = append(errs, err)
	}
	return listens, errors.Join(errs...)
}

// CheckFolder returns an error with the key unless path is absolute.
func CheckFolder(key, path string) error {
	if !filepath.IsAbs(path) {
		return fmt.Errorf("%s: %q is not an absolute path", key, path)
	}
	return nil
}

// CheckRoots returns an error with the key for each folder that is not absolute or is the root of everything.
func CheckRoots(key string, folders []string) error {
	var errs []error
	for _, folder := range folders {
		if !filepath.IsAbs(folder) || filepath.Clean(folder) == "/" {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path below /", key, folder))
		}
	}
	return errors.Join(errs...)
}

// CheckLevel returns an error with the key unless level is a log level.
func CheckLevel(key, level string) error {
	if _, err := serverkit.NewLogger(level, nowhere{}); err != nil {
		return fmt.Errorf("%s: %q is not debug, info, warn or error", key, level)
	}
	return nil
}

// nowhere takes what is logged.
type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

func (nowhere) Sync() error { return nil }
