// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Variables that tell of which start a process is, for us and for people. Every process of a start inherits them.
const (
	NonceVar      = reservedPrefix + "NONCE"      // the start itself.
	ManagerVar    = reservedPrefix + "MANAGER"    // the pool manager that made it.
	PoolVar       = reservedPrefix + "POOL"       // the pool that it serves.
	ReplicaVar    = reservedPrefix + "REPLICA"    // the replica of the pool.
	GenerationVar = reservedPrefix + "GENERATION" // the generation of the replica.
)

const reservedPrefix = "ROUNDHOUSE_"

// Reserved tells whether only Spawn may set the variable: an engine that names such a one itself is refused by careful
// callers, and Spawn leaves it out.
func Reserved(name string) bool { return strings.HasPrefix(name, reservedPrefix) }

// environCap bounds what is read of a foreign environment in bytes. Spawn puts its marks first, so that they are found
// well before; the kernel itself allows a few MiB.
const environCap = 4 << 20

// environFirst is how much of an environment is read at first in bytes; most have less.
const environFirst = 4 << 10

// marks are what the environment of a process tells of its start.
type marks struct {
	Nonce, Manager, Pool, Replica string
	Generation                    uint64
}

// environ is the whole environment of the engine: its marks, and what the command says besides.
func (c *Command) environ() []string {
	env := []string{NonceVar + "=" + c.Nonce}
	for _, v := range []struct{ name, value string }{{ManagerVar, c.Manager}, {PoolVar, c.Pool}, {ReplicaVar, c.Replica}} {
		if v.value != "" {
			env = append(env, v.name+"="+v.value)
		}
	}
	if c.Generation != 0 {
		env = append(env, GenerationVar+"="+strconv.FormatUint(c.Generation, 10))
	}
	rest := slices.DeleteFunc(slices.Clone(c.Env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return Reserved(name)
	})
	return append(env, rest...)
}

// readMarks reads the marks in the environment that a process was started with. There are none in one that may not be
// read, because it is another user's.
func readMarks(pid int) marks {
	fd, err := unix.Open(procPath(pid, "environ"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return marks{}
	}
	defer unix.Close(fd)
	buf, size := make([]byte, environFirst), 0
	for size < environCap {
		if size == len(buf) {
			buf = slices.Concat(buf, make([]byte, size))
		}
		n, err := unix.Read(fd, buf[size:])
		if err != nil {
			return marks{}
		}
		if n == 0 {
			break
		}
		size += n
	}
	return parseMarks(buf[:size])
}

// parseMarks finds the marks among the entries. Of one that is there twice, the first counts, as programs have it.
func parseMarks(environ []byte) marks {
	m := marks{Nonce: variable(environ, NonceVar)}
	if m.Nonce == "" {
		return m // Of no start: by far the most processes.
	}
	m.Manager, m.Pool, m.Replica = variable(environ, ManagerVar), variable(environ, PoolVar), variable(environ, ReplicaVar)
	m.Generation, _ = strconv.ParseUint(variable(environ, GenerationVar), 10, 64) // Something else was not set by us.
	return m
}

// variable returns the value that a name has in an environment.
func variable(environ []byte, name string) string {
	prefix := []byte(name + "=")
	for at := 0; ; {
		i := bytes.Index(environ[at:], prefix)
		if i < 0 {
			return ""
		}
		at += i
		if at == 0 || environ[at-1] == 0 {
			value, _, _ := bytes.Cut(environ[at+len(prefix):], []byte{0})
			return string(value)
		}
		at += len(prefix)
	}
}

// carriesNonce tells whether the environment that a process was started with has the nonce.
func carriesNonce(pid int, nonce string) bool { return nonce != "" && readMarks(pid).Nonce == nonce }

// checkMarks refuses marks that the kernel would not take.
func (c *Command) checkMarks() error {
	for _, value := range []string{c.Nonce, c.Manager, c.Pool, c.Replica} {
		if strings.Contains(value, "\x00") {
			return fmt.Errorf("mark %q has a NUL byte", value)
		}
	}
	return nil
}

// BaseEnv returns the few variables of environ that an engine may have: where programs, home, temporary files and the
// time zone are, and the locale. PATH is always there.
func BaseEnv(environ []string) []string {
	allowed := []string{"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG", "LC_ALL", "LC_CTYPE"}
	env := []string{}
	for _, entry := range environ {
		if name, _, ok := strings.Cut(entry, "="); ok && slices.Contains(allowed, name) {
			env = append(env, entry)
		}
	}
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		env = append(env, "PATH=/usr/local/bin:/usr/bin:/bin")
	}
	return env
}
