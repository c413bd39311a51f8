// SPDX-License-Identifier: Apache-2.0

package runner

import (
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
)

// NotFoundError says that no folder of a PATH has a program of that name.
type NotFoundError struct {
	Name string
	// Path is the list that was searched.
	Path string
}

// Error names the program and the folders.
func (e *NotFoundError) Error() string { return fmt.Sprintf("no %s in %s", e.Name, e.Path) }

// LookPath returns the absolute path of the first executable regular file called name in path, a colon-separated list
// of absolute folders; relative ones are passed over. The error is a *NotFoundError. It never reads the process's own
// PATH.
func LookPath(name, path string) (string, error) {
	for file := range LookAll(name, path) {
		return file, nil
	}
	return "", &NotFoundError{Name: name, Path: path}
}

// LookAll gives every program that LookPath might find, in order, looking no further than it is asked to.
func LookAll(name, path string) iter.Seq[string] {
	return func(yield func(string) bool) {
		if name == "" || strings.ContainsRune(name, '/') {
			return
		}
		for _, dir := range filepath.SplitList(path) {
			if !filepath.IsAbs(dir) {
				continue
			}
			file := filepath.Join(dir, name)
			info, err := os.Stat(file)
			if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 && !yield(file) {
				return
			}
		}
	}
}
