// SPDX-License-Identifier: Apache-2.0

// Package roots decides which files of this machine a request may name: those below folders that the operator allowed,
// after all links were followed. It reads the file system and changes nothing.
package roots

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/roundhouse-llm/roundhouse/pkg/reason"
)

// Roots are absolute folders. None means that no file may be named.
type Roots []string

// Resolve returns where path leads. A path that leads out of every root is UNTRUSTED_ARTIFACT, also when nothing is
// there; one that does not exist has the reason missing. Errors name field.
func (r Roots) Resolve(field, path string, missing reason.Reason) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	absent := errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
	if err != nil && !absent {
		return "", reason.New(reason.UntrustedArtifact, fmt.Sprintf("%s cannot be followed", path), reason.Field(field), reason.Cause(err),
			reason.Remedy("let the provisioner's user read the folders above it"))
	}
	if absent {
		resolved = filepath.Clean(path)
	}
	if !r.contains(resolved) {
		return "", reason.New(reason.UntrustedArtifact, fmt.Sprintf("%s is not below an allowed folder", path), reason.Field(field),
			reason.Meta("path", path), reason.Meta("allowed_roots", strings.Join(r, ":")), reason.Remedy(r.remedy()))
	}
	if absent {
		return "", reason.New(missing, path+" does not exist", reason.Field(field), reason.Meta("path", path),
			reason.Remedy("check the path on the provisioner's machine"))
	}
	return resolved, nil
}

func (r Roots) contains(path string) bool {
	for _, root := range r {
		for _, form := range []string{root, followed(root)} {
			if below, err := filepath.Rel(form, path); err == nil && filepath.IsLocal(below) {
				return true
			}
		}
	}
	return false
}

// followed returns where a root leads; one that does not exist is itself.
func followed(root string) string {
	if resolved, err := filepath.EvalSymlinks(root); err == nil {
		return resolved
	}
	return root
}

func (r Roots) remedy() string {
	if len(r) == 0 {
		return "no folder is allowed: start the provisioner with --root DIR"
	}
	return "move it below " + strings.Join(r, " or ") + ", or start the provisioner with --root DIR"
}
