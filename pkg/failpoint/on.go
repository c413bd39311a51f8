// SPDX-License-Identifier: Apache-2.0

//go:build failpoint

package failpoint

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Enabled is whether Hit can kill the program.
const Enabled = true

// chosen is the moment that the environment names.
type chosen struct {
	name Name
	left atomic.Int64 // how often it is still to be hit.
}

//nolint:gochecknoglobals // The program has one environment, and dies once.
var choice = sync.OnceValue(func() *chosen {
	name, count, counted := strings.Cut(os.Getenv(Variable), ":")
	c := &chosen{name: Name(name)}
	n := 1
	if counted {
		var err error
		if n, err = strconv.Atoi(count); err != nil || n < 1 {
			panic(fmt.Sprintf("%s: %q is no count", Variable, count))
		}
	}
	if name != "" && !Known(c.name) {
		panic(fmt.Sprintf("%s: there is no failpoint %q", Variable, name))
	}
	c.left.Store(int64(n))
	return c
})

// Hit says that the program has come to a moment. It does not return if that is the one that the environment names.
func Hit(name Name) {
	c := choice()
	if c.name != name || c.left.Add(-1) != 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "failpoint %s\n", name)
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {}
}
