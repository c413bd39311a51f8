// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// leakPatience is how long what a test has closed may take to be gone.
const leakPatience = 5 * time.Second

// LeakCheck fails the test if, when its other clean-ups are done, goroutines run or files are open that were not there at
// the call. Call it first. It sees the whole process, so it is not for tests that run in parallel with others.
func LeakCheck(tb testing.TB) {
	tb.Helper()
	leakCheck(tb, leakPatience)
}

func leakCheck(tb testing.TB, patience time.Duration) {
	tb.Helper()
	goroutinesBefore, filesBefore := goroutines(), openFiles()
	tb.Cleanup(func() {
		Eventually(tb, patience, "everything that the test has started or opened is gone", func() (bool, string) {
			var left []string
			for id, stack := range goroutines() {
				if _, known := goroutinesBefore[id]; !known {
					left = append(left, stack)
				}
			}
			for file := range openFiles() {
				if !filesBefore[file] {
					left = append(left, "open file "+file)
				}
			}
			slices.Sort(left)
			return len(left) == 0, fmt.Sprintf("%d left:\n%s", len(left), strings.Join(left, "\n\n"))
		})
	})
}

// goroutines are the stacks by goroutine, without those of the testing framework and the caller's own.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	stacks := map[string]string{}
	for i, stack := range strings.Split(string(buf), "\n\n") {
		id, _, _ := strings.Cut(stack, " [")
		if i > 0 && !strings.Contains(stack, "testing.tRunner") && !strings.Contains(stack, "os/signal.loop") {
			stacks[id] = stack
		}
	}
	return stacks
}

// openFiles are the open descriptors with what they refer to, without those of the runtime's poller.
func openFiles() map[string]bool {
	entries, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return nil
	}
	files := map[string]bool{}
	for _, entry := range entries {
		target, err := os.Readlink(entry)
		if err != nil || strings.HasPrefix(target, "anon_inode:[event") {
			continue
		}
		files[filepath.Base(entry)+" "+target] = true
	}
	return files
}
