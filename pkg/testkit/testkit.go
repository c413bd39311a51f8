// SPDX-License-Identifier: Apache-2.0

// Package testkit holds what tests of every module share: waiting for a condition, golden files, captured logs, a check
// for leaks, and where things are. It is imported by tests only.
//
// There is nothing here to find a free port: listen on port 0 and ask for the address.
package testkit

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// pollEvery is how often a condition is looked at.
const pollEvery = 2 * time.Millisecond

// Eventually waits until condition is true and fails the test if that takes longer than within. The text that condition
// returns says how things stand; the last one is in the failure.
func Eventually(tb testing.TB, within time.Duration, what string, condition func() (bool, string)) {
	tb.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	for {
		ok, state := condition()
		if ok {
			return
		}
		select {
		case <-ticker.C:
		case <-deadline.C:
			tb.Fatalf("not within %v: %s: %s", within, what, state)
		}
	}
}

// RepoRoot is the folder of the repository that the test runs in.
func RepoRoot(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatalf("find repository: %v", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			tb.Fatal("find repository: no folder above has a go.work")
		}
		dir = parent
	}
}

// ShortDir is an empty folder for sockets, whose paths may have 107 bytes only, which a folder named after the test often
// exceeds. It goes when the test ends.
func ShortDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "rh") //nolint:usetesting // the test's own folder has a long path
	if err != nil {
		tb.Fatalf("make folder for sockets: %v", err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("remove folder for sockets: %v", err)
		}
	})
	return dir
}
